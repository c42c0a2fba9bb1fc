"""Figures: matplotlib axes in, axes out."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_attribution": ["attribution"],
        "_biomarkers": ["biomarkers"],
        "_catalogue": ["catalogue"],
        "_pathways": ["pathways"],
        "_perturb": ["perturb"],
        "_profile": ["profile"],
        "_response": ["response"],
        "_results": [
            "benchmark",
            "calibration",
            "circular",
            "critical_difference",
            "heatmap",
            "precision_recall",
            "radar",
            "roc",
            "violin",
        ],
        "_tables": ["few_shot_curve", "gene_coverage", "leakage"],
        "_trust": ["prediction_sets", "sample_calls"],
    },
)
