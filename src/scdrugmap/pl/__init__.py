"""Figures: matplotlib axes in, axes out."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_benchmark": ["benchmark"],
        "_calibration": ["calibration"],
        "_catalogue": ["catalogue"],
        "_critical_difference": ["critical_difference"],
        "_curves": ["precision_recall", "roc"],
        "_heatmap": ["heatmap"],
        "_profile": ["profile"],
        "_radar": ["radar"],
        "_response": ["response"],
        "_violin": ["violin"],
    },
)
