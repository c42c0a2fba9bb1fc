"""What else differs between resistant and sensitive samples: treatment, batch, depth, cell cycle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from scdrugmap.interpret import moderated

if TYPE_CHECKING:
    from scdrugmap.interpret.pseudobulk import Units

#: A number that differs this clearly between the classes may stand behind an effect.
P_COVARIATE = 0.05
#: Genes of the cell cycle whose joint level is a proxy of proliferation (a few of those of Tirosh et al. 2016).
CELL_CYCLE = (
    "MKI67", "TOP2A", "PCNA", "MCM2", "MCM5", "MCM6", "TYMS", "RRM2", "CDK1", "CCNB1", "CCNB2", "BIRC5", "UBE2C",
    "TPX2", "AURKB", "CENPF", "HMGB2", "NUSAP1", "CDC20", "CCNA2",
)  # fmt: skip


@dataclass(eq=False)
class Confounding:
    """Columns and numbers of the units that may explain the labels.

    Parameters
    ----------
    columns
        Name to ``(units,)`` values: time point, batch, drug ...
    covariates
        Name to ``(units,)`` numbers: log depth, level of the cell-cycle genes ...
    """

    columns: dict[str, np.ndarray]
    covariates: dict[str, np.ndarray]
    reasons: list[str] = field(default_factory=list)
    complete: bool = False

    def flag(self, Y: np.ndarray, units: Units, effect: np.ndarray) -> np.ndarray:
        """Tell which genes' effects cannot be told from something else; notes the reasons.

        Parameters
        ----------
        Y
            ``(units, genes)`` log expression.
        units
            Labels and groups.
        effect
            ``(genes,)`` effect of resistance without the covariates.
        """
        out = np.zeros(Y.shape[1], dtype=bool)
        for name, values in self.columns.items():
            if same_division(values, units.y, units.study):
                self.reasons.append(f"{name} divides the samples just as the label does: no p value can be given")
                self.complete = True
                out[:] = True
        for name, values in self.covariates.items():
            p, apart = _associated(values, units)
            if not p < P_COVARIATE:
                continue
            if apart and p < 0.01:
                self.reasons.append(f"{name} differs between the classes in every sample (p = {p:.2g})")
                out[:] = True
                continue
            gone = _vanishes(Y, units, values, effect)
            self.reasons.append(f"{name} differs between the classes (p = {p:.2g}); it explains {gone.sum()} effects")
            out |= gone
        return out


def same_division(values: np.ndarray, y: np.ndarray, study: np.ndarray) -> bool:
    """Tell whether a column determines the label within every study that has both labels.

    A column that names (nearly) every sample by itself determines anything and says nothing.

    Examples
    --------
    >>> same_division(np.array(["pre", "pre", "post", "post"]), np.array([1, 1, 0, 0]), np.zeros(4))
    True
    """
    seen = False
    for name in np.unique(study):
        inside = study == name
        own, labels = pd.factorize(values[inside])[0], y[inside]
        if len(np.unique(labels)) < 2:
            continue
        n_values = own.max() + 1
        if n_values < 2 or n_values > max(len(own) // 2, 2) or (own < 0).any():
            return False
        if any(len(np.unique(labels[own == v])) > 1 for v in range(n_values)):
            return False
        seen = True
    return seen


def _within(values: np.ndarray, study: np.ndarray) -> np.ndarray:
    """Values without the means of the studies."""
    frame = pd.Series(values)
    return (frame - frame.groupby(pd.factorize(study)[0]).transform("mean")).to_numpy()


def _associated(values: np.ndarray, units: Units) -> tuple[float, bool]:
    """Return the p value of the difference between the classes within studies, and whether no sample of one reaches the other."""
    centred = _within(values, units.study)
    a, b = centred[units.y == 0], centred[units.y == 1]
    if min(len(a), len(b)) < 3 or np.ptp(centred) == 0:
        return 1.0, False
    return float(stats.ttest_ind(a, b).pvalue), bool(a.min() > b.max() or b.min() > a.max())


def _vanishes(Y: np.ndarray, units: Units, values: np.ndarray, effect: np.ndarray) -> np.ndarray:
    """Genes whose effect loses more than half of itself, or its sign, once the covariate stands in the model."""
    study = pd.get_dummies(pd.Series(units.study).astype(str)).to_numpy(dtype=float)
    design = np.column_stack([study, _within(values, units.study), units.y == 0]).astype(float)
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return np.ones(Y.shape[1], dtype=bool)
    kept = moderated.fit(Y, design).coefficients[-1] * np.sign(effect)
    return kept < 0.5 * np.abs(effect)
