"""Prediction sets that hold the true class as often as was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scdrugmap._errors import InputError
from scdrugmap._keys import CLASSES
from scdrugmap._logging import warn

#: Text of a set by (resistant in it, sensitive in it).
SET_TEXT = {(False, False): "", (True, False): CLASSES[0], (False, True): CLASSES[1], (True, True): "|".join(CLASSES)}


@dataclass(frozen=True, eq=False)
class ConformalSets:
    """Class-conditional conformal classifier, per category of cells where categories are given.

    Parameters
    ----------
    margin
        Log-odds (cells,) of the calibration cells, which the head had not seen.
    y
        Their true class, 0 or 1.
    category
        Their Mondrian category as a code, all 0 without categories.
    categories
        Name of each code.
    coverage
        Share of sets that should hold the true class, unless another is asked for at prediction.

    Notes
    -----
    The guarantee holds for each class (and category) if new cells are exchangeable with the calibration cells. Cells
    of one sample are alike, so that the coverage of a single new sample may lie well beside the nominal level; it is
    the average over samples that comes near it. The calibration scores are cross-fitted over whole groups.

    References
    ----------
    Vovk, Gammerman and Shafer 2005, Algorithmic Learning in a Random World; implementation: crepes.

    Examples
    --------
    >>> import numpy as np
    >>> sets = ConformalSets.fit(np.linspace(-2, 2, 100), np.arange(100) // 50, coverage=0.9)
    >>> sets.predict(np.array([-3.0, 3.0])).tolist()
    ['resistant', 'sensitive']
    """

    margin: np.ndarray
    y: np.ndarray
    category: np.ndarray
    categories: tuple[str, ...]
    coverage: float

    @classmethod
    def fit(
        cls, margin: np.ndarray, y: np.ndarray, *, coverage: float = 0.9, category: np.ndarray | None = None
    ) -> ConformalSets:
        """Calibrate on scores of cells that the head has not seen.

        Parameters
        ----------
        margin
            Log-odds (cells,).
        y
            0 or 1 (cells,).
        coverage
            Between 0 and 1.
        category
            Mondrian category of each cell (its tissue, drug ...), within each of which the coverage is to hold.

        Returns
        -------
        The fitted sets.

        Raises
        ------
        InputError
            If ``coverage`` is no share, or a class has no cell.
        """
        _check_coverage(coverage)
        y = np.asarray(y).astype(np.int64)
        if len(np.unique(y)) < 2:
            raise InputError("y", "calibration cells of one class", "both classes", "calibrate on more samples.")
        names = np.zeros(len(y), dtype="U1") if category is None else np.asarray(category).astype(str)
        known, codes = np.unique(names, return_inverse=True)
        return cls(np.asarray(margin, np.float64), y, codes.astype(np.int64), tuple(map(str, known)), float(coverage))

    def p_values(self, margin: np.ndarray, category: np.ndarray | None = None) -> np.ndarray:
        """Conformal p-value of each class.

        Parameters
        ----------
        margin
            Log-odds (cells,).
        category
            Mondrian category of each cell; required where the sets were fitted with categories. A category that
            has no calibration cell of a class is judged by all calibration cells of that class, with a warning.

        Returns
        -------
        Array (cells, 2) in the order resistant, sensitive.

        Raises
        ------
        InputError
            If categories are needed and not given.
        """
        from crepes import ConformalClassifier

        margin = np.asarray(margin, np.float64)
        codes = self._codes(len(margin), category)
        out = np.empty((len(margin), 2))
        for c, sign in ((0, 1.0), (1, -1.0)):
            mine = self.y == c
            alphas, seen = sign * self.margin[mine], self.category[mine]
            known = np.isin(codes, seen)
            if len(margin) and not known.all():
                names = sorted(set(np.asarray(category).astype(str)[~known].tolist()))
                warn(
                    f"no {CLASSES[c]} calibration cell in {', '.join(names[:5])}: "
                    f"{int((~known).sum())} cells are judged by all categories together."
                )
            if known.any():
                fitted = ConformalClassifier().fit(alphas, bins=seen)
                new = (sign * margin[known])[:, None]
                out[known, c] = fitted.predict_p(new, bins=codes[known], smoothing=False)[:, 0]
            if not known.all():
                everywhere = ConformalClassifier().fit(alphas)
                out[~known, c] = everywhere.predict_p((sign * margin[~known])[:, None], smoothing=False)[:, 0]
        return out

    def predict(
        self, margin: np.ndarray, category: np.ndarray | None = None, coverage: float | None = None
    ) -> np.ndarray:
        """Prediction set of each cell as text.

        Parameters
        ----------
        margin, category
            As in :meth:`p_values`.
        coverage
            Instead of the one of the fit.

        Returns
        -------
        Array (cells,) of ``"resistant"``, ``"sensitive"``, ``"resistant|sensitive"`` or ``""`` (neither is likely).
        """
        level = self.coverage if coverage is None else coverage
        _check_coverage(level)
        inside = self.p_values(margin, category) > 1 - level
        texts = np.array([SET_TEXT[r, s] for r in (False, True) for s in (False, True)])
        return texts[inside[:, 0] * 2 + inside[:, 1]]

    @property
    def mondrian(self) -> bool:
        """Whether the sets were fitted per category."""
        return self.categories != ("",)

    def state(self) -> dict[str, np.ndarray]:
        """Return the calibration cells' scores, classes and categories."""
        return {"margin": self.margin, "y": self.y, "category": self.category}

    @classmethod
    def from_state(cls, meta: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> ConformalSets:
        """Rebuild from :meth:`state` and the names of the categories and the coverage."""
        margin, y, category = (np.asarray(state[k]) for k in ("margin", "y", "category"))
        return cls(margin, y, category, tuple(meta["categories"]), float(meta["coverage"]))

    def _codes(self, n: int, category: np.ndarray | None) -> np.ndarray:
        """Codes of the query's categories; -1 for one that calibration has not seen."""
        if not self.mondrian:
            return np.zeros(n, np.int64)
        if category is None:
            raise InputError(
                "conformal_by",
                None,
                f"the category of every cell (one of {', '.join(self.categories[:8])} ...)",
                "add the column that the predictor was calibrated with to adata.obs.",
            )
        at = {name: i for i, name in enumerate(self.categories)}
        names, inverse = np.unique(np.asarray(category).astype(str), return_inverse=True)
        return np.array([at.get(str(name), -1) for name in names], dtype=np.int64)[inverse]


def _check_coverage(coverage: float) -> None:
    if not 0 < coverage < 1:
        raise InputError("coverage", coverage, "a share between 0 and 1", "pass 0.9.")
