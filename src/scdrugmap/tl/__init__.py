"""Tools: embed cells, train predictors, predict response, benchmark, interpret."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_attribute": ["attribute"],
        "_attribution_report": ["attribution_report"],
        "_benchmark": ["benchmark"],
        "_biomarkers": ["biomarkers"],
        "_embed": ["embed"],
        "_few_shot_curve": ["few_shot_curve"],
        "_leakage_report": ["leakage_report"],
        "_pathways": ["pathways"],
        "_perturb": ["perturb"],
        "_predict_response": ["predict_response"],
        "_profile": ["profile"],
        "_recommend": ["Recommendation", "recommend"],
        "_train": ["train"],
    },
)
