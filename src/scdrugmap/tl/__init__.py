"""Tools: embed cells, train predictors, predict response, benchmark."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_benchmark": ["benchmark"],
        "_embed": ["embed"],
        "_few_shot_curve": ["few_shot_curve"],
        "_leakage_report": ["leakage_report"],
        "_predict_response": ["predict_response"],
        "_profile": ["profile"],
        "_recommend": ["Recommendation", "recommend"],
        "_train": ["train"],
    },
)
