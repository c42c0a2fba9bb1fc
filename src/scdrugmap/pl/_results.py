"""Figures of a benchmark result; they are drawn in :mod:`scdrugmap.figures`, where the report finds them too."""

from scdrugmap.figures.benchmark import benchmark
from scdrugmap.figures.calibration import calibration
from scdrugmap.figures.circular import circular
from scdrugmap.figures.critical_difference import critical_difference
from scdrugmap.figures.curves import precision_recall, roc
from scdrugmap.figures.heatmap import heatmap
from scdrugmap.figures.radar import radar
from scdrugmap.figures.violin import violin

__all__ = [
    "benchmark",
    "calibration",
    "circular",
    "critical_difference",
    "heatmap",
    "precision_recall",
    "radar",
    "roc",
    "violin",
]
