"""Bring the cells of another study nearer to those of the training, without a look at their labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from scdrugmap._errors import InputError, UnknownNameError

#: What the argument ``adapt`` may be; ``"pathways"`` is the representation ``pathways`` with ``"study"``.
ADAPTATIONS = ("none", "study", "coral", "pathways")
#: A study with fewer cells has no mean and spread of its own.
MIN_CELLS = 10
#: What a table says about scores that were adapted.
TRANSDUCTIVE = "transductive: adapted to the test cells, whose labels took no part"


def check_adapt(adapt: Any) -> None:
    """Refuse a name that is none of :data:`ADAPTATIONS`."""
    if adapt not in ADAPTATIONS:
        raise UnknownNameError("adapt", adapt, ADAPTATIONS)


@dataclass(frozen=True, eq=False)
class Adaptation:
    """What was measured on the training cells, and how new cells are brought to it.

    Parameters
    ----------
    kind
        ``"study"``: every feature to mean zero and variance one within each study; a study of the training keeps the mean
        and the spread that it had there. ``"coral"``: the covariance (and the mean) of the cells of a new study is made that
        of the training cells; training cells stay as they are.
    arrays
        ``mean`` and ``scale`` per study (k, d), or ``mean`` (1, d) and ``covariance`` (d, d).
    studies
        Names of the studies of the training.

    References
    ----------
    Sun B, Feng J, Saenko K (2016). Return of frustratingly easy domain adaptation. AAAI; here the test cells are brought to
    the training cells, so that one head serves every query.
    """

    kind: str
    arrays: Mapping[str, np.ndarray] = field(repr=False)
    studies: tuple[str, ...] = ()

    @classmethod
    def fit(cls, X: np.ndarray, study: np.ndarray, kind: str) -> Self:
        """Measure training cells.

        Parameters
        ----------
        X
            Features (cells, d), finite.
        study
            Study of each cell.
        kind
            ``"study"`` or ``"coral"``.

        Examples
        --------
        >>> X = np.random.default_rng(0).normal(3, 2, size=(50, 2))
        >>> adapted = Adaptation.fit(X, np.repeat("a", 50), "study")(X, np.repeat("b", 50))
        >>> adapted.mean(axis=0).round(6).tolist()
        [0.0, 0.0]
        """
        if kind not in ("study", "coral"):
            raise UnknownNameError("adapt", kind, ("study", "coral"))
        if kind == "coral":
            return cls(kind, {"mean": X.mean(axis=0, keepdims=True, dtype=np.float64), "covariance": _covariance(X)})
        names = np.unique(study.astype(str))
        parts = [_mean_and_spread(X[study.astype(str) == n], n) for n in names]
        arrays = {"mean": np.stack([m for m, _ in parts]), "scale": np.stack([s for _, s in parts])}
        return cls(kind, arrays, tuple(names.tolist()))

    def __call__(self, X: np.ndarray, study: np.ndarray, *, training: bool = False) -> np.ndarray:
        """Adapt cells; a row with a missing value stays missing, and has no part in what is measured.

        Parameters
        ----------
        X
            Features (cells, d).
        study
            Study of each cell.
        training
            Whether these are the training cells.

        Raises
        ------
        InputError
            If a new study has fewer than ``MIN_CELLS`` cells.
        """
        if training and self.kind == "coral":
            return X
        out, names = np.array(X, dtype=np.float32), study.astype(str)
        usable = np.isfinite(X).all(axis=1)
        for name in np.unique(names[usable]):
            rows = np.flatnonzero((names == name) & usable)
            if self.kind == "coral":
                out[rows] = self._recoloured(X[rows], name)
                continue
            if name in self.studies:
                at = self.studies.index(name)
                mean, scale = self.arrays["mean"][at], self.arrays["scale"][at]
            else:
                mean, scale = _mean_and_spread(X[rows], name)
            out[rows] = (X[rows] - mean) / scale
        return out

    def _recoloured(self, X: np.ndarray, name: str) -> np.ndarray:
        _enough(X, name)
        centred = X - X.mean(axis=0, dtype=np.float64)
        white = centred @ _power(_covariance(X), -0.5)
        return white @ _power(self.arrays["covariance"], 0.5) + self.arrays["mean"]


def _enough(X: np.ndarray, name: str) -> None:
    if len(X) < MIN_CELLS:
        raise InputError(
            "adapt", f"{len(X)} cells of study {str(name)!r}", f"{MIN_CELLS} or more, from which its mean and spread are taken",
            "pass adapt='none', or more cells.",
        )  # fmt: skip


def _mean_and_spread(X: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    _enough(X, name)
    scale = X.std(axis=0, dtype=np.float64)
    return X.mean(axis=0, dtype=np.float64), np.where(scale > 1e-6 * scale.max(initial=0), scale, 1)


def _covariance(X: np.ndarray) -> np.ndarray:
    """Covariance, shrunken towards a multiple of the identity by a tenth: there may be fewer cells than features."""
    centred = X - X.mean(axis=0, dtype=np.float64)
    own = centred.T @ centred / max(len(X) - 1, 1)
    return 0.9 * own + 0.1 * np.trace(own) / len(own) * np.eye(len(own))


def _power(matrix: np.ndarray, exponent: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    floor = 1e-9 * max(values.max(), 1e-300)
    return (vectors * np.maximum(values, floor) ** exponent) @ vectors.T
