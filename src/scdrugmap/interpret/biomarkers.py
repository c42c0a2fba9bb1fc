"""Genes that differ between resistant and sensitive samples: one unit per sample and label, inference over units."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from scdrugmap.interpret import moderated
from scdrugmap.interpret.confounding import Confounding
from scdrugmap.interpret.meta import Pooled, random_effects
from scdrugmap.interpret.moderated import Effects
from scdrugmap.interpret.pseudobulk import Pseudobulk, Units

#: Samples per class below which no p value is given.
MIN_SAMPLES = 3
#: A gene is tested where at least as many units as the smaller class has hold this many counts.
MIN_COUNT = 10
COLUMNS = (
    "gene", "log2_fc", "se", "low", "high", "t", "p", "q", "n_resistant", "n_sensitive", "sign_consistency",
    "detection_resistant", "detection_sensitive", "confounded",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Comparison:
    """A table and what has to be said about it."""

    table: pd.DataFrame
    reasons: list[str] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)


def compare(
    bulk: Pseudobulk,
    units: Units,
    genes: np.ndarray,
    *,
    confounding: Confounding | None = None,
    covariates: np.ndarray | None = None,
    effects: Any = None,
) -> Comparison:
    """Compare resistant with sensitive units, gene by gene.

    Parameters
    ----------
    bulk
        Summed counts of the units.
    units
        Labels and groups of the units.
    genes
        ``(genes,)`` names.
    confounding
        What else differs between the classes.
    covariates
        ``(units, k)`` columns that the linear model holds besides the label.
    effects
        Instead of the moderated t: a callable ``(bulk, units, tested)`` that returns :class:`Effects` of the tested
        genes.

    Returns
    -------
    One row per gene, most significant first; positive effects are higher in *resistant*.
    """
    reasons: list[str] = []
    mixed = [s for s in np.unique(units.study) if len(np.unique(units.y[units.study == s])) == 2]
    compared = np.isin(units.study, mixed) if mixed else np.ones(len(units.y), dtype=bool)
    n_resistant, n_sensitive = int((compared & (units.y == 0)).sum()), int((compared & (units.y == 1)).sum())
    smaller = min(n_resistant, n_sensitive)
    tested = (bulk.counts >= MIN_COUNT).sum(axis=0) >= max(smaller, 1)
    estimate = estimated(bulk.log_cpm, units, covariates)
    if not np.isfinite(estimate.effect).any():
        reasons.append("no study has samples of both classes: label and study cannot be told apart")
    log2_fc, shown = estimate.effect, estimate
    if effects is not None:
        shown = effects(bulk, units, tested)
        log2_fc = np.where(tested, shown.effect, log2_fc)
    if smaller < MIN_SAMPLES:
        reasons.append(
            f"{n_resistant} resistant and {n_sensitive} sensitive samples: fewer than {MIN_SAMPLES} in a class, so that "
            "effects are given without standard error and p value"
        )
    elif not np.isfinite(shown.se).any() and not reasons:
        reasons.append("no degree of freedom is left to estimate a variance from")
    confounded = np.zeros(len(genes), dtype=bool)
    if confounding is not None:
        confounded = confounding.flag(bulk.log_cpm, units, log2_fc)
        reasons += confounding.reasons
    usable = tested & (smaller >= MIN_SAMPLES) & (confounding is None or not confounding.complete)
    low, high = shown.interval()
    columns = {"se": shown.se, "low": low, "high": high, "t": shown.t, "p": shown.p}
    columns = {k: np.where(usable, v, np.nan) for k, v in columns.items()}
    table = pd.DataFrame(
        {
            "gene": np.asarray(genes, dtype=object).astype(str),
            "log2_fc": log2_fc,
            **columns,
            "q": moderated.adjusted(columns["p"]),
            "n_resistant": n_resistant,
            "n_sensitive": n_sensitive,
            "sign_consistency": sign_consistency(bulk.log_cpm, units, log2_fc),
            "detection_resistant": _detection(bulk, units.y == 0),
            "detection_sensitive": _detection(bulk, units.y == 1),
            "confounded": confounded,
        }
    )[list(COLUMNS)]
    if isinstance(shown, Pooled):
        table["n_studies"], table["i2"] = shown.n_studies, shown.i2
    strength = np.where(np.isfinite(columns["t"]), np.abs(columns["t"]), -1.0)
    order = np.lexsort([-np.abs(np.nan_to_num(log2_fc)), ~tested, -strength])
    return Comparison(table.iloc[order].reset_index(drop=True), reasons, {"genes_tested": int(tested.sum())})


def estimated(Y: np.ndarray, units: Units, covariates: np.ndarray | None = None) -> Effects:
    """Effect of resistance in each gene: moderated t within studies, random effects over them.

    Parameters
    ----------
    Y
        ``(units, genes)`` log expression.
    units
        Labels and groups.
    covariates
        ``(units, k)`` further columns of the model.
    """
    studies = [s for s in np.unique(units.study) if len(np.unique(units.y[units.study == s])) == 2]
    rows = np.flatnonzero(np.isin(units.study, studies))
    if not studies:
        return Effects(np.full(Y.shape[1], np.nan), np.full(Y.shape[1], np.nan), np.nan)
    used = units.take(rows)
    design, where = _design(used, studies, None if covariates is None else covariates[rows])
    fitted = moderated.fit(Y[rows], design)
    contrasts = np.eye(design.shape[1])[where]
    parts = [moderated.moderated(fitted, c) for c in contrasts]
    if len(parts) == 1:
        return parts[0]
    if fitted.df <= 0:
        mean = np.mean([p.effect for p in parts], axis=0)
        return Effects(mean, np.full(len(mean), np.nan), np.nan)
    pooled = random_effects(np.array([p.effect for p in parts]), np.array([p.se**2 for p in parts]), share=True)
    # The pooled effect is known no better than the variances within the studies.
    return type(pooled)(pooled.effect, pooled.se, min(pooled.df, parts[0].df), pooled.tau2, pooled.i2, pooled.n_studies)


def _design(units: Units, studies: list[Any], covariates: np.ndarray | None) -> tuple[np.ndarray, list[int]]:
    """Block (or study) levels, one effect of resistance per study, and covariates as far as they can be told apart."""
    columns, where = [], []
    for study in studies:
        inside = units.study == study
        columns += _levels(units, inside)
    for study in studies:
        where.append(len(columns))
        columns.append(((units.study == study) & (units.y == 0)).astype(float))
    if covariates is not None:
        for extra in covariates.T:
            trial = np.column_stack([*columns, extra])
            if np.linalg.matrix_rank(trial) == trial.shape[1]:
                columns.append(extra)
    return np.column_stack(columns), where


def _levels(units: Units, inside: np.ndarray) -> list[np.ndarray]:
    """Columns of the levels within one study: one per block where enough blocks hold both labels, else one in all."""
    rows = np.flatnonzero(inside)
    blocks = pd.factorize(units.block[rows])[0]
    both = np.array([len(np.unique(units.y[rows][blocks == b])) == 2 for b in range(blocks.max() + 1)])
    paired = both[blocks]
    n_levels = blocks.max() + 1
    if both.sum() >= MIN_SAMPLES and paired.sum() * 2 >= len(rows) and len(rows) - n_levels >= 2:
        return [_at(rows[blocks == b], len(inside)) for b in range(n_levels)]
    return [inside.astype(float)]


def _at(rows: np.ndarray, n: int) -> np.ndarray:
    out = np.zeros(n)
    out[rows] = 1.0
    return out


def sign_consistency(Y: np.ndarray, units: Units, effect: np.ndarray) -> np.ndarray:
    """Share of units that lie on the side of their study's middle that the effect says.

    Parameters
    ----------
    Y
        ``(units, genes)`` log expression.
    units
        Labels and groups.
    effect
        ``(genes,)`` effect of resistance.
    """
    right, n = np.zeros(Y.shape[1]), 0
    for study in np.unique(units.study):
        inside = units.study == study
        if len(np.unique(units.y[inside])) < 2:
            continue
        means = [Y[inside & (units.y == c)].mean(axis=0) for c in (0, 1)]
        side = np.where(units.y[inside] == 0, 1.0, -1.0)[:, None]
        right += (side * (Y[inside] - (means[0] + means[1]) / 2) * np.sign(effect) > 0).sum(axis=0)
        n += int(inside.sum())
    return right / n if n else np.full(Y.shape[1], np.nan)


def _detection(bulk: Pseudobulk, units: np.ndarray) -> np.ndarray:
    """Share of the cells of these units that express each gene."""
    total = bulk.n_cells[units].sum()
    return bulk.detected[units].sum(axis=0) / total if total else np.full(bulk.counts.shape[1], np.nan)


def shuffled_calls(bulk: Pseudobulk, units: Units, tested: np.ndarray, rng: np.random.Generator, n: int = 10) -> float:
    """Mean number of genes with q < 0.05 when the labels of the samples are shuffled within studies."""
    calls = []
    for _ in range(n):
        y = units.y.copy()
        for study in np.unique(units.study):
            inside = np.flatnonzero(units.study == study)
            y[inside] = rng.permutation(y[inside])
        shuffled = estimated(bulk.log_cpm[:, tested], Units(y, units.study, units.block, units.names))
        calls.append(int((moderated.adjusted(shuffled.p) < 0.05).sum()))
    return float(np.mean(calls))
