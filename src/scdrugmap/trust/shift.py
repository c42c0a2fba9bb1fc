"""Is the query, as a whole, something that the predictor can speak about?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import sparse

Name = Literal["in domain", "shifted", "cannot tell"]
IN_DOMAIN: Name = "in domain"
SHIFTED: Name = "shifted"
CANNOT_TELL: Name = "cannot tell"

#: Weight of the coherence beside the similarity, and the supports between which nothing can be told. They lie in the gap
#: that simulated pairs leave (0.65 to 0.97, but for other programmes in the same kind of cells); where in it, real pairs
#: helped to say (``benchmarks/shift.py``).
COHERENCE_WEIGHT = 0.3
SHIFTED_BELOW, IN_DOMAIN_FROM = 0.68, 0.78
#: Where the head calls both classes (each for this share of cells or more) and its signature is coherent in training,
#: the query has to keep this much of the coherence: otherwise the calls follow something else.
BOTH_CALLED, COHERENT, LEAST_KEPT = 0.15, 0.005, 0.15
#: What of a prediction is left where the query is shifted: the rest is the share of sensitive cells in training.
LEFT_OF_SCORE = 0.25
#: Cells that are read of the training data and of a query, and the least that a verdict needs.
MAX_CELLS, MIN_CELLS = 2000, 10
N_SIGNATURE, N_PROFILE, N_PROFILES = 200, 1500, 20
MIN_SIGNATURE, MIN_PROFILE = 15, 100
N_SKETCH, N_FEATURES = 300, 64
_ARRAYS = ("weight", "correlation", "profiles", "columns", "sketch")


@dataclass(frozen=True)
class Verdict:
    """What is said about a query.

    Parameters
    ----------
    verdict
        ``"in domain"``, ``"shifted"`` or ``"cannot tell"``.
    reason
        Why, in a sentence.
    figures
        ``coherence`` and ``coherence_training``, ``similarity``, ``support``, ``auc``, ``coverage`` and what they
        rest on; NaN where there is nothing to compute one from.
    """

    verdict: Name
    reason: str
    figures: dict[str, float]

    def record(self) -> dict[str, Any]:
        """Return what ``uns`` holds."""
        return {"verdict": self.verdict, "reason": self.reason, **self.figures}


@dataclass(frozen=True, eq=False)
class ShiftReference:
    """What a predictor remembers of its training data to judge a query by.

    Parameters
    ----------
    genes, weight
        Genes that go along with the log-odds of the training cells most, and their correlation with it.
    correlation
        Correlations (genes, genes) between them in training.
    profile_genes, profiles
        Most expressed genes, and mean expression (clusters, genes) of the training cells over them.
    columns, sketch
        Some features of some training cells, and which columns they are.

    Notes
    -----
    *Coherence* is the mean correlation, aligned by the sign of their weights, between the signature genes in the
    query, and in training on the same genes: a programme that the query does not have is not coherent there. One
    class alone has none either. *Similarity* is the Pearson correlation of the log expression profiles of clusters of
    the query with the nearest profile of training, averaged over cells: cells of another kind, another species or
    with wrong names have no near one. ``support = similarity + 0.3 min(coherence / coherence in training, 1)`` decides:
    below 0.68 the query is shifted, from 0.78 on it is in domain, unless the head calls both classes and the coherence is
    gone. *AUC* is the two-sample classifier's on features;
    batches of one study reach 0.99, which is why it is shown and does not decide.

    A programme of another drug in the same kind of cells is seen only if both classes are called and the coherence is
    gone: "in domain" says that the cells are like those of training, not that the labels carry over.

    Only means of clusters, correlations and a sketch of features are kept, no cell's expression and no name of a
    sample.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> rng = np.random.default_rng(0)
    >>> y = np.arange(400) % 2
    >>> mean = rng.gamma(1, 4, size=300) * np.where(np.arange(300) < 60, 1 + 2 * y[:, None], 1)
    >>> X, names = sparse.csr_matrix(rng.poisson(mean).astype(float)), np.array([f"G{i}" for i in range(300)])
    >>> margin = y - 0.5 + rng.normal(scale=0.1, size=400)
    >>> reference = ShiftReference.fit(X[:200], names, margin[:200], X[:200, :5].toarray(), rng=0)
    >>> reference.judge(X[200:], names, X[200:, :5].toarray(), margin[200:]).verdict
    'in domain'
    >>> reference.judge(X[200:], rng.permutation(names), X[200:, :5].toarray(), margin[200:]).verdict
    'shifted'
    """

    genes: np.ndarray
    weight: np.ndarray
    correlation: np.ndarray
    profile_genes: np.ndarray
    profiles: np.ndarray
    columns: np.ndarray
    sketch: np.ndarray

    @classmethod
    def fit(
        cls,
        X: sparse.csr_matrix,
        genes: np.ndarray,
        margin: np.ndarray,
        features: np.ndarray,
        *,
        rng: int | np.random.Generator | None = None,
    ) -> ShiftReference | None:
        """Learn what the training cells are like.

        Parameters
        ----------
        X
            Counts (cells, genes) of training cells, at most some thousands.
        genes
            Name of each gene; an empty one has none.
        margin
            Their log-odds.
        features
            What the head sees of them.
        rng
            Seed of the clusters and of the sketch.

        Returns
        -------
        The reference, or ``None`` where there are too few cells or genes, or the values are no counts.
        """
        genes = np.asarray(genes).astype(str)
        if X.shape[0] < MIN_CELLS or not _expression(X) or np.std(margin) == 0:
            return None
        generator = np.random.default_rng(rng)
        X = _merged(X, genes)[0]
        genes = np.unique(genes[genes != ""])
        values = _normalised(X)
        mean = np.asarray(values.mean(axis=0)).ravel()
        seen = np.asarray((values > 0).mean(axis=0)).ravel() >= 0.02
        if seen.sum() < MIN_PROFILE:
            return None
        weight = np.where(seen, _correlation_with(values.log1p(), margin), 0)
        carry = np.argsort(-np.abs(weight), kind="stable")[: min(N_SIGNATURE, int(seen.sum()))]
        common = np.argsort(-mean * seen, kind="stable")[: min(N_PROFILE, int(seen.sum()))]
        signature = values[:, carry].log1p().toarray()
        some = np.sort(generator.permutation(X.shape[0])[:N_SKETCH])
        columns = np.sort(generator.permutation(features.shape[1])[:N_FEATURES])
        return cls(
            genes[carry],
            weight[carry],
            _correlations(signature),
            genes[common],
            _profiles(values[:, common], generator)[0].astype(np.float32),
            columns,
            np.asarray(features)[np.ix_(some, columns)].astype(np.float32),
        )

    def judge(self, X: sparse.csr_matrix, genes: np.ndarray, features: np.ndarray, margin: np.ndarray) -> Verdict:
        """Judge a query.

        Parameters
        ----------
        X
            Its counts (cells, genes), at most some thousands of cells.
        genes
            Name of each gene.
        features, margin
            What the head sees of these cells, and their log-odds.

        Returns
        -------
        The verdict, its reason and the figures that it rests on.
        """
        genes = np.asarray(genes).astype(str)
        figures = {"n_cells": float(X.shape[0]), "auc": self._auc(features)}
        if X.shape[0] < MIN_CELLS:
            return Verdict(CANNOT_TELL, f"{X.shape[0]} cells are too few", figures)
        if not _expression(X):
            return Verdict(CANNOT_TELL, "the values of the query are no counts", figures)
        foreign = self._other_species(genes)
        X, found = _merged(X, genes)
        values = _normalised(X)
        at, on_signature = _places(found, self.genes)
        figures["coverage"] = float(np.abs(self.weight[on_signature]).sum() / np.abs(self.weight).sum())
        figures |= self._coherence(values[:, at].log1p().toarray(), on_signature)
        at, on_profile = _places(found, self.profile_genes)
        figures["n_profile_genes"] = float(len(at))
        if foreign:
            return Verdict(SHIFTED, foreign, figures)
        if figures["n_signature_genes"] < MIN_SIGNATURE or len(at) < MIN_PROFILE:
            return Verdict(CANNOT_TELL, "too few of the genes of training are in the query", figures)
        figures["similarity"] = self._similarity(values[:, at], on_profile)
        called = float(np.mean(margin > 0))
        return self._decided(figures | {"minority_called": min(called, 1 - called)})

    def state(self) -> dict[str, np.ndarray]:
        """Return the numbers; the names of the genes are text beside them."""
        return {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}

    def meta(self) -> dict[str, list[str]]:
        """Return the names of the genes."""
        return {"genes": self.genes.tolist(), "profile_genes": self.profile_genes.tolist()}

    @classmethod
    def from_state(cls, meta: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> ShiftReference:
        """Rebuild from :meth:`state` and :meth:`meta`."""
        names = {name: np.asarray(meta[name], dtype=str) for name in ("genes", "profile_genes")}
        return cls(**names, **{name: np.asarray(state[name]) for name in _ARRAYS})

    def _coherence(self, values: np.ndarray, on: np.ndarray) -> dict[str, float]:
        """Sign-aligned mean correlation of the signature in the query, and in training over the same genes."""
        alive = values.std(axis=0) > 0
        values, on = values[:, alive], on[alive]
        sign = np.sign(self.weight[on])
        own = _mean_off_diagonal(_correlations(values) * np.outer(sign, sign))
        training = _mean_off_diagonal(self.correlation[np.ix_(on, on)] * np.outer(sign, sign))
        return {"coherence": own, "coherence_training": training, "n_signature_genes": float(len(on))}

    def _similarity(self, values: sparse.csr_matrix, on: np.ndarray) -> float:
        """Correlation of the query's profiles with the nearest profile of training, averaged over cells."""
        profiles, sizes = _profiles(values, np.random.default_rng(0))
        near = (_standardised(profiles) @ _standardised(self.profiles[:, on]).T / len(on)).max(axis=1)
        return float(np.average(near, weights=sizes))

    def _auc(self, features: np.ndarray) -> float:
        """AUC of a classifier of query against training, in folds."""
        query = np.asarray(features, np.float64)[:, self.columns]
        query = query[~np.isnan(query).any(axis=1)]
        query = query[np.random.default_rng(0).permutation(len(query))[:N_SKETCH]]
        if min(len(query), len(self.sketch)) < MIN_CELLS:
            return np.nan
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import roc_auc_score
        from sklearn.model_selection import StratifiedKFold, cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        both = np.concatenate([self.sketch, query])
        side = np.repeat([0, 1], [len(self.sketch), len(query)])
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=500))
        folds = StratifiedKFold(3, shuffle=True, random_state=0)
        found = cross_val_predict(model, both, side, cv=folds, method="decision_function")
        return float(roc_auc_score(side, found))

    def _other_species(self, genes: np.ndarray) -> str:
        """Say so if the names are those of training but for their case, as mouse and human symbols are."""
        known = {str(g) for g in self.profile_genes}
        here = {str(g) for g in genes}
        same, upper = len(known & here), len({g.upper() for g in known} & {g.upper() for g in here})
        if same < 0.1 * len(known) and upper > 0.5 * len(known):
            return "its genes are written as those of another species"
        return ""

    @staticmethod
    def _decided(figures: dict[str, float]) -> Verdict:
        """Weigh the figures."""
        training = figures["coherence_training"]
        kept = float(np.clip(figures["coherence"] / training, 0, 1)) if training > 0 else 0.0
        support = figures["similarity"] + COHERENCE_WEIGHT * kept
        figures = figures | {"coherence_kept": kept, "support": support}
        about = f"profiles correlate {figures['similarity']:.2f} with training, {kept:.0%} of the signature's coherence"
        if support < SHIFTED_BELOW:
            return Verdict(SHIFTED, f"{about}: the cells are unlike those of training", figures)
        mixed = figures["minority_called"] >= BOTH_CALLED and training >= COHERENT
        if mixed and kept < LEAST_KEPT:
            return Verdict(CANNOT_TELL, f"{about}, and yet both classes are called", figures)
        if support < IN_DOMAIN_FROM:
            return Verdict(CANNOT_TELL, f"{about}: between what is safe and what is not", figures)
        return Verdict(IN_DOMAIN, about, figures)


def flattened(score: np.ndarray, prior: float) -> np.ndarray:
    """Draw probabilities towards the share of sensitive cells in training.

    Parameters
    ----------
    score
        P(sensitive); NaN stays.
    prior
        Share of sensitive cells in training.

    Examples
    --------
    >>> flattened(np.array([0.9, 0.1]), 0.5).tolist()
    [0.6, 0.4]
    """
    score = np.asarray(score)
    return (prior + LEFT_OF_SCORE * (score - prior)).astype(score.dtype)


def _expression(X: sparse.csr_matrix) -> bool:
    """Whether the values can be counts: finite, none below zero, some above."""
    return bool(X.nnz and np.isfinite(X.data).all() and X.data.min() >= 0 and X.data.max() > 0)


def _merged(X: sparse.csr_matrix, genes: np.ndarray) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Add up columns of one name and leave out those without; names come back sorted."""
    names, code = np.unique(genes, return_inverse=True)
    to = sparse.csr_matrix((np.ones(len(genes)), (np.arange(len(genes)), code)), shape=(len(genes), len(names)))
    kept = names != ""
    return sparse.csr_matrix(X.astype(np.float64) @ to)[:, kept], names[kept]


def _normalised(X: sparse.csr_matrix) -> sparse.csr_matrix:
    """Counts per ten thousand."""
    total = np.asarray(X.sum(axis=1)).ravel()
    return sparse.csr_matrix(sparse.diags(1e4 / np.where(total > 0, total, 1)) @ X)


def _places(names: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns of the wanted genes that are there, and which of the wanted those are; ``names`` is sorted."""
    at = np.searchsorted(names, wanted)
    there = (at < len(names)) & (names[np.minimum(at, len(names) - 1)] == wanted)
    return at[there], np.flatnonzero(there)


def _correlation_with(X: sparse.csr_matrix, margin: np.ndarray) -> np.ndarray:
    """Pearson correlation of every column with the log-odds."""
    z = (margin - np.mean(margin)) / np.std(margin)
    mean = np.asarray(X.mean(axis=0)).ravel()
    sd = np.sqrt(np.maximum(np.asarray(X.multiply(X).mean(axis=0)).ravel() - mean**2, 0))
    return np.divide(X.T @ z / X.shape[0], sd, out=np.zeros(X.shape[1]), where=sd > 1e-9)


def _correlations(values: np.ndarray) -> np.ndarray:
    """Correlations between columns; zero with one that does not vary."""
    centred = values - values.mean(axis=0)
    length = np.sqrt((centred**2).sum(axis=0))
    centred = centred / np.where(length > 0, length, 1)
    return centred.T @ centred


def _mean_off_diagonal(matrix: np.ndarray) -> float:
    n = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (n * (n - 1))) if n > 1 else np.nan


def _profiles(values: sparse.csr_matrix, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Mean expression of clusters of cells, 25 cells or more each on average, and their sizes."""
    from sklearn.cluster import KMeans

    n = values.shape[0]
    k = int(np.clip(n // 25, 1, N_PROFILES))
    label = np.zeros(n, dtype=np.int64)
    if k > 1:
        seed = int(generator.integers(2**31))
        label = KMeans(k, n_init=1, random_state=seed, max_iter=50).fit_predict(values.log1p())
    label = np.unique(label, return_inverse=True)[1]
    sizes = np.bincount(label)
    member = sparse.csr_matrix((1 / sizes[label], (label, np.arange(n))), shape=(len(sizes), n))
    return (member @ values).toarray(), sizes


def _standardised(profiles: np.ndarray) -> np.ndarray:
    """Log profiles over the genes that both sides have, centred and of unit variance."""
    total = profiles.sum(axis=1, keepdims=True)
    logs = np.log1p(1e4 * profiles / np.where(total > 0, total, 1))
    logs = logs - logs.mean(axis=1, keepdims=True)
    sd = logs.std(axis=1, keepdims=True)
    return logs / np.where(sd > 0, sd, 1)
