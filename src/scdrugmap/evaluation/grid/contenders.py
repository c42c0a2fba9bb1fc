"""Who takes part: representations, fitted baselines and trivial rules, each predicting the test cells of a fold."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from scdrugmap._errors import InputError

#: Components that a sample probe looks at; the covariance of thousands of features took half of a run.
PROBED = 100
#: Cells that are checked and predicted, and to which a fitted representation is applied, at once.
BLOCK = 8192
Predict = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


#: What stands for a head in digests. Version 0.1 called the published head "mlp": its units go on as "published", and
#: are never taken for those of the head that is called "mlp" now.
_DIGESTED = {"published": "mlp", "mlp": "mlp, standardised and trained to convergence"}


@dataclass(frozen=True, eq=False)
class Head:
    """A classifier by name or as an estimator, where it computes, and a digest of its parameters."""

    spec: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None

    @property
    def name(self) -> str:
        """Name in tables."""
        return self.spec if isinstance(self.spec, str) else type(self.spec).__name__

    @property
    def digest(self) -> str:
        """Digest of the kind and all parameters."""
        what = self.spec if isinstance(self.spec, str) else f"{type(self.spec).__module__}.{self.spec!r}"
        what = _DIGESTED.get(what, what)
        return hashlib.sha256(repr((what, sorted(self.options.items()))).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Contender:
    """One model with one strategy.

    Parameters
    ----------
    name
        Name in tables.
    strategy
        ``"frozen"``, ``"lora"``, ``"prompt"``, or ``"baseline"``.
    kind
        ``"array"``: a representation of every cell, made without labels. ``"fitted"``: learnt from the training
        cells of each fold. ``"rule"``: ignores the cells' content. ``"custom"``: trains and predicts by itself.
        ``"absent"``: cannot take part; it stands in the table with the reason.
    digest
        Digest of the content; part of the key under which results are stored.
    heads
        Classifiers trained on it.
    X
        ``(n, d)`` for an array.
    model
        Name of the fitted model, or of the rule.
    options
        Options of the fitted model.
    predict
        For ``custom``: ``(train rows, test rows, seed)`` to P(sensitive) of the test rows.
    note
        Caveat that goes into every row of the table.
    manifest
        Further provenance: checkpoint digest, obsm key.
    reason
        Why it cannot take part, or empty.
    adapt
        See :mod:`scdrugmap.heads.adapt`.
    """

    name: str
    strategy: str
    kind: Literal["array", "fitted", "rule", "custom", "absent"]
    digest: str
    heads: tuple[Head, ...] = (Head(""),)
    X: np.ndarray | None = None
    model: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    predict: Predict | None = None
    note: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    adapt: str = "none"

    def adapted(self, how: str) -> Contender:
        """Return it with the cells of a new study brought to those of the training."""
        digest = f"{self.digest}:adapt={how}"
        return replace(self, name=f"{self.name} + {how}", digest=digest, adapt=how)


def array_digest(X: np.ndarray) -> str:
    """SHA-256 of an array's shape, type and content."""
    digest = hashlib.sha256(repr((X.shape, str(X.dtype))).encode())
    digest.update(np.ascontiguousarray(X).data)
    return digest.hexdigest()


def array_contender(
    name: str,
    X: Any,
    heads: Sequence[Head],
    *,
    strategy: str = "frozen",
    n: int | None = None,
    note: str = "",
    manifest: Mapping[str, Any] | None = None,
) -> Contender:
    """Wrap a representation that exists already.

    Raises
    ------
    InputError
        If it is not a numeric cells x features array.
    """
    X = np.asarray(X.to_numpy() if hasattr(X, "to_numpy") else X.toarray() if hasattr(X, "toarray") else X)
    if X.ndim != 2 or X.shape[1] == 0 or X.dtype.kind not in "fiub" or (n is not None and len(X) != n):
        raise InputError(
            "models",
            f"{name!r}: array of shape {X.shape} and type {X.dtype}",
            f"a numeric array of {n if n is not None else 'n'} cells x features",
            "pass one row per cell of adata, in its order.",
        )
    X = X.astype(np.float32, copy=False)
    return Contender(
        name, strategy, "array", array_digest(X), tuple(heads), X, note=note, manifest=dict(manifest or {})
    )


RULES = ("all_sensitive", "majority", "random")


def rule_contenders() -> list[Contender]:
    """Call all cells sensitive; call the training majority; call at random with the training share."""
    return [Contender(name, "baseline", "rule", name, model=name) for name in RULES]


def rule_scores(rule: str, y_train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """P(sensitive) of the test rows under a rule.

    Examples
    --------
    >>> import numpy as np
    >>> rule_scores("majority", np.array([1, 1, 1, 0]), np.arange(2), 0).tolist()
    [0.75, 0.75]
    """
    share = float(np.mean(y_train))
    if rule == "all_sensitive":
        return np.ones(len(test))
    if rule == "majority":
        return np.full(len(test), share)
    rng = np.random.default_rng([seed, zlib.crc32(np.ascontiguousarray(test).tobytes())])
    return (rng.random(len(test)) < share).astype(float)


def fit_predict(
    X: np.ndarray,
    y: np.ndarray,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    head: Head,
    *,
    groups: np.ndarray | None,
    seed: int,
    adapt: str = "none",
    study: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Train one head per fold and return P(sensitive) of its test rows.

    Parameters
    ----------
    X
        ``(m, d)`` float32; a row with a missing value (a cell without embedding) trains nothing, and gets the share of
        sensitive training cells as its score.
    y
        ``(m,)`` 0 or 1.
    folds
        Train and test positions in ``X``.
    head
        Classifier.
    groups
        ``(m,)`` samples, kept whole by inner validation splits.
    seed
        Seed of every head.
    adapt, study
        How cells of a new study are brought to the training cells of a fold, and the study of each cell.

    Returns
    -------
    list
        ``(len(test),)`` float64 per fold.
    """
    from scdrugmap.heads.adapt import Adaptation
    from scdrugmap.heads.fit import fit_folds, fit_with
    from scdrugmap.heads.make import head_on, make_head

    usable = np.concatenate([np.isfinite(X[i : i + BLOCK]).all(axis=1) for i in range(0, len(X), BLOCK)] or [[]])
    kept = folds
    if not usable.all():
        X = np.where(usable[:, None], X, np.float32(0))
        kept = [(train[usable[train]], test[usable[test]]) for train, test in folds]
    for (train, _), (trained, _) in zip(folds, kept, strict=True):
        if len(np.unique(y[trained])) < 2:
            raise ValueError(f"only {len(trained)} of {len(train)} training cells have an embedding, of one class")
    made = head_on(make_head(head.spec, random_state=seed, **head.options), head.device)
    if adapt == "none":
        fitted = fit_folds(made, X, y, [train for train, _ in kept], groups)
        known = [_probabilities(model, X, test) for model, (_, test) in zip(fitted, kept, strict=True)]
    else:
        assert study is not None
        known = []
        for train, test in kept:
            adaptation = Adaptation.fit(X[train], study[train], adapt)
            X_train = adaptation(X[train], study[train], training=True)
            model = fit_with(made, X_train, y[train], None if groups is None else groups[train])
            adapted = adaptation(X[test], study[test])
            known.append(_probabilities(model, adapted, np.arange(len(test))))
    out = []
    for (_, test), (train, _), score in zip(folds, kept, known, strict=True):
        out.append(np.full(len(test), float(y[train].mean())))
        out[-1][usable[test]] = score
    return out


def _probabilities(model: Any, X: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """P(sensitive) of some rows, read a block at a time."""
    second = list(model.classes_).index(1)
    parts = (rows[i : i + BLOCK] for i in range(0, len(rows), BLOCK))
    return np.concatenate([model.predict_proba(X[part])[:, second] for part in parts] or [[]])


def probe_halves(sample: np.ndarray, seed: int, most: int = 5000) -> tuple[np.ndarray, np.ndarray]:
    """Divide every sample into two halves at random; empty with fewer than two samples of four cells.

    Parameters
    ----------
    sample
        ``(m,)`` integer codes.
    seed
        Seed.
    most
        Cells used at most.

    Examples
    --------
    >>> import numpy as np
    >>> [len(half) for half in probe_halves(np.repeat([0, 1], 6), 0)]
    [6, 6]
    """
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(sample))[:most])
    codes, counts = np.unique(sample[rows], return_counts=True)
    rows = rows[np.isin(sample[rows], codes[counts >= 4])]
    if len(np.unique(sample[rows])) < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    order = rows[np.lexsort((rng.random(len(rows)), sample[rows]))]
    return np.sort(order[::2]), np.sort(order[1::2])


def sample_probe(X: np.ndarray, sample: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Predict the sample of each test cell from a representation.

    Notes
    -----
    Linear discriminant analysis with a shrunken covariance on standardised features, of more than ``PROBED`` of them on
    their leading components. A representation that knows the sample can score high under a random-cell split without
    knowing anything about response.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X = np.where(np.isfinite(X).all(axis=1)[:, None], X, np.float32(0))
    steps: list[Any] = [StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")]
    n_components = min(PROBED, len(train) - 1)
    if X.shape[1] > PROBED and n_components > 0:
        steps.insert(1, TruncatedSVD(n_components, n_iter=2, random_state=0))
    probe = make_pipeline(*steps)
    return probe.fit(X[train], sample[train]).predict(X[test]).astype(np.int64)
