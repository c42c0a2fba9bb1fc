"""Does a new cell lie where the training cells are?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from scdrugmap._errors import InputError

_ARRAYS = ("mean", "scale", "components", "anchors")


@dataclass(frozen=True, eq=False)
class OutOfDomain:
    """Distance of cells to the nearest training cells in the embedding space.

    Parameters
    ----------
    mean, scale
        Of the features of the training cells.
    components
        Leading principal axes (k, features) of the standardised features.
    anchors
        Coordinates (m, k + 1) of the training cells that stand for all.
    threshold
        Distance above which a cell is out of domain.
    n_neighbors
        Neighbours whose mean distance counts.

    Notes
    -----
    Features are standardised and projected to at most 32 principal axes; the length of what the axes leave over is
    one more coordinate, so that cells off the training plane are seen too. The Euclidean distance is the mean over the ten nearest of at most 5,000 training cells. The threshold is the 0.99 quantile of
    the distances of training cells to cells of *other* groups where groups are given: a new sample is not flagged
    for being new, but for lying farther off than samples of the training set do from each other.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(400, 5))
    >>> OutOfDomain.fit(X, rng=0).flag(np.stack([X[0], X[0] + 50])).tolist()
    [False, True]
    """

    mean: np.ndarray
    scale: np.ndarray
    components: np.ndarray
    anchors: np.ndarray
    threshold: float
    n_neighbors: int

    @classmethod
    def fit(
        cls,
        X: np.ndarray,
        *,
        groups: np.ndarray | None = None,
        quantile: float = 0.99,
        n_neighbors: int = 10,
        n_components: int = 32,
        max_anchors: int = 5000,
        rng: int | np.random.Generator | None = None,
    ) -> OutOfDomain:
        """Learn where the training cells are.

        Parameters
        ----------
        X
            Cells x features.
        groups
            Group (sample) of each cell.
        quantile
            Share of training cells that counts as in domain.
        n_neighbors, n_components, max_anchors
            See the notes of the class.
        rng
            Seed of the draw of anchors.

        Returns
        -------
        The fitted flag.

        Raises
        ------
        InputError
            If there are fewer than three cells or ``quantile`` is no share.
        """
        from sklearn.decomposition import PCA

        if len(X) < 3 or not 0 < quantile < 1:
            raise InputError("X or quantile", (len(X), quantile), "three cells or more, a share", "pass quantile=0.99.")
        generator = np.random.default_rng(rng)
        at = np.arange(len(X))
        if len(at) > max_anchors:
            at = np.sort(generator.choice(len(X), max_anchors, replace=False))
        part = np.asarray(X[at], np.float64)
        mean, scale = part.mean(0), part.std(0)
        scale[scale < 1e-12] = 1
        k = min(n_components, part.shape[1], len(part) - 1)
        solver = "full" if min(part.shape) <= 500 else "randomized"
        seed = int(generator.integers(2**31))
        axes = PCA(k, svd_solver=solver, random_state=seed).fit((part - mean) / scale).components_
        axes = np.array(axes, order="C")
        new = cls(mean, scale, axes, np.empty((0, k + 1)), np.inf, min(n_neighbors, len(at) - 1))
        points = new._coordinates(part)
        own = np.arange(len(at)) if groups is None else np.unique(np.asarray(groups)[at], return_inverse=True)[1]
        distances = _training_distances(points, own, new.n_neighbors)
        threshold = float(np.quantile(distances, quantile))
        return cls(mean, scale, axes, points, threshold, new.n_neighbors)

    def distance(self, X: np.ndarray) -> np.ndarray:
        """Mean distance to the nearest training cells.

        Parameters
        ----------
        X
            Cells x features.

        Returns
        -------
        Array (cells,), in standard deviations of a feature.
        """
        from sklearn.neighbors import NearestNeighbors

        nearest = NearestNeighbors(n_neighbors=self.n_neighbors).fit(self.anchors)
        out = np.empty(len(X))
        for start in range(0, len(X), 4096):
            points = self._coordinates(np.asarray(X[start : start + 4096], np.float64))
            out[start : start + 4096] = nearest.kneighbors(points)[0].mean(1)
        return out

    def flag(self, X: np.ndarray) -> np.ndarray:
        """Tell which cells are out of domain.

        Parameters
        ----------
        X
            Cells x features.

        Returns
        -------
        Array (cells,) of bool.
        """
        return self.distance(X) > self.threshold

    def state(self) -> dict[str, np.ndarray]:
        """Return the arrays; ``threshold`` and ``n_neighbors`` are plain numbers beside them."""
        return {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}

    @classmethod
    def from_state(cls, meta: Mapping[str, float], state: Mapping[str, np.ndarray]) -> OutOfDomain:
        """Rebuild from :meth:`state` and the two numbers."""
        arrays = {name: np.asarray(state[name]) for name in _ARRAYS}
        return cls(**arrays, threshold=float(meta["threshold"]), n_neighbors=int(meta["n_neighbors"]))

    def _coordinates(self, X: np.ndarray) -> np.ndarray:
        """Coordinates on the axes and the length of the residual."""
        centred = (X - self.mean) / self.scale
        on_axes = centred @ self.components.T
        residual = np.sqrt(np.maximum((centred**2).sum(1) - (on_axes**2).sum(1), 0))
        return np.column_stack([on_axes, residual])


def _training_distances(points: np.ndarray, own: np.ndarray, n_neighbors: int) -> np.ndarray:
    """Distance of each training cell to the nearest cells of other groups (other cells without groups)."""
    from sklearn.neighbors import NearestNeighbors

    if len(np.unique(own)) == len(own) or len(np.unique(own)) < 2:
        return NearestNeighbors(n_neighbors=n_neighbors).fit(points).kneighbors()[0].mean(1)
    out = np.empty(len(points))
    for group in np.unique(own):
        mine = own == group
        others = points[~mine]
        nearest = NearestNeighbors(n_neighbors=min(n_neighbors, len(others))).fit(others)
        out[mine] = nearest.kneighbors(points[mine])[0].mean(1)
    return out
