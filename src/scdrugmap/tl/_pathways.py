"""``sd.tl.pathways``: the programmes behind a ranking of genes, or active in the cells."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scdrugmap import __version__, _anndata
from scdrugmap._errors import InputError, MissingKeyError, ScDrugMapWarning, UnknownNameError
from scdrugmap._keys import KEYS

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

OF = (KEYS.biomarkers, KEYS.attribution, KEYS.perturbation, "cells")
#: Fewest distinct divisions of the samples from which shuffled labels say something.
MIN_SHUFFLES = 20
N_SHUFFLES = 199


def pathways(
    adata: AnnData | MuData,
    *,
    source: str | Path = "hallmark",
    of: Literal["biomarkers", "attribution", "perturbation", "cells"] = "biomarkers",
    method: Literal["ulm", "ora", "gsea", "mlm", "viper", "waggr", "aucell"] = "ulm",
    min_genes: int = 5,
    key: str = "response",
    groups: str = "sample",
    layer: str | None = None,
    mod: str = "rna",
    rng: int | np.random.Generator | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    """Score sets of genes against what another tool found, or in the cells themselves.

    Parameters
    ----------
    adata
        Cells; with the table of the tool that ``of`` names.
    source
        ``"hallmark"`` (MSigDB), ``"progeny"``, ``"collectri"``: fetched once through the download layer, with licence and
        digest; ``"resistance"``: the package's short list of genes with known roles, a help for reading and no evidence;
        or the path of a GMT file.
    of
        ``"biomarkers"`` (its t), ``"attribution"``, ``"perturbation"`` (its mean change), or ``"cells"``: activity of each set
        in each cell and sample, and its difference between resistant and sensitive samples where labels are known.
    method
        ``"ulm"``: slope t of the ranking on the weights of the set; ``"ora"``: odds of the upper tenth of the ranking;
        ``"gsea"``: running sum; ``"mlm"``, ``"viper"``, ``"waggr"``, ``"aucell"``: by decoupler, which
        the extra ``scdrugmap[interpret]`` installs. ``of="cells"`` knows ``"ulm"`` and those of decoupler.
    min_genes
        Sets with fewer genes in the data are left out.
    key, groups
        Columns of ``obs`` with labels and samples, for shuffled labels and ``of="cells"``.
    layer
        Layer of the raw counts; ``X`` if ``None``.
    mod
        Modality of a MuData.
    rng
        Seed of everything shuffled; ``sd.settings.seed`` if ``None``.
    copy
        Return a modified copy.

    Returns
    -------
    ``None``, or the copy. Writes:

    ``uns["pathways"]``
        Data frame, one row per set, most significant first: ``set``; ``score``, **positive = with resistance**; ``low`` and
        ``high``, a 95 % interval over samples (leaving out one sample at a time; missing below three); ``p``, ``q``;
        ``n_genes`` of the set in the data. Without labels ``of="cells"`` scores are mean activities.
    ``obsm["pathway_activity"]``
        With ``of="cells"``: cells x sets; the names are in the record.
    ``uns["pathways_record"]``
        Source, licence, version and SHA-256; and ``p_type``: ``"sample permutation"`` where at least 20 distinct divisions of
        the samples allow it, ``"gene permutation"`` otherwise, whose p values are too small because genes are correlated.

    Raises
    ------
    MissingKeyError
        If the table that ``of`` names is not there.
    UnknownNameError
        For an unknown source, ranking or method.
    MissingDependencyError
        For a method of decoupler where that is not installed.
    OfflineError
        If the source has to be fetched and offline mode forbids it; a GMT file of one's own works offline.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=1, n_cells=400, n_genes=400, rng=0)
    >>> sd.tl.biomarkers(adata)
    >>> sd.tl.pathways(adata, source="resistance", min_genes=1)
    >>> adata.uns["pathways"].columns.tolist()
    ['set', 'score', 'low', 'high', 'p', 'q', 'n_genes']
    """
    from scdrugmap._random import seed_of
    from scdrugmap.interpret.decoupled import METHODS as DECOUPLER
    from scdrugmap.interpret.enrichment import METHODS
    from scdrugmap.interpret.gene_sets import gene_sets

    edit = _anndata.edit(adata, copy=copy, mod=mod)
    cells = edit.adata
    _anndata.refuse_empty(cells, genes=True)
    if of not in OF:
        raise UnknownNameError("of", of, OF)
    if method not in (*METHODS, *DECOUPLER):
        raise UnknownNameError("method", method, (*METHODS, *DECOUPLER))
    if of == "cells" and method in METHODS[1:]:
        raise InputError("method", method, f"'ulm' or one of {', '.join(DECOUPLER)} for of='cells'", "leave it out.")
    if not isinstance(min_genes, int | np.integer) or min_genes < 1:
        raise InputError("min_genes", min_genes, "a number of genes of at least 1", "pass 5.")
    if of != "cells" and of not in cells.uns:
        tool = {KEYS.biomarkers: "biomarkers", KEYS.attribution: "attribute", KEYS.perturbation: "perturb"}[of]
        raise MissingKeyError("of", repr(of), f"the table uns[{of!r}]", f"call sd.tl.{tool} first.")
    rng_ = np.random.default_rng(seed_of(rng))
    sets = gene_sets(source)
    symbols = _symbols(cells)
    record: dict[str, Any] = {"params": {"of": of, "method": method, "min_genes": int(min_genes)}, **sets.provenance}
    if of == "cells":
        names, weights = sets.matrix(symbols, min_genes)
        table, activity, p_type = _of_cells(cells, names, weights, method, key, groups, layer)
        cells.obsm["pathway_activity"] = activity
        record["sets"] = np.array(names, dtype=str)
    else:
        statistic, by_sample = _ranking(cells, of, groups)
        known = np.isfinite(statistic)
        names, weights = sets.matrix(np.where(known, symbols, ""), min_genes)
        table, p_type = _of_ranking(
            cells, of, names, weights[:, known], statistic, by_sample, known, method, rng_, key, groups, layer
        )
    record |= {"p_type": p_type, "scdrugmap": __version__}
    if p_type == "gene permutation":
        warnings.warn(
            "too few samples to shuffle their labels: the p values of the sets shuffle genes, which are correlated, and are "
            "too small.",
            ScDrugMapWarning,
            stacklevel=2,
        )
    cells.uns[KEYS.pathways], cells.uns[KEYS.pathways + KEYS.record] = table, record
    return edit.finish()


def _symbols(adata: AnnData) -> np.ndarray:
    """Symbols where there are any, else the names."""
    symbols = _anndata.gene_ids(adata).symbols.astype(str)
    return symbols if (symbols != "").any() else adata.var_names.to_numpy().astype(str)


def _ranking(adata: AnnData, of: str, groups: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Statistic of every gene, NaN where there is none, and its parts per sample (genes x samples)."""
    table = adata.uns[of]
    names = adata.var_names.astype(str)
    if of == KEYS.biomarkers:
        if "stratum" in table:
            raise InputError("of", "biomarkers with strata", "one table", "call sd.tl.biomarkers without by=.")
        own = table.set_index("gene")
        column = "t" if own["t"].notna().any() else "log2_fc"
        return own[column].reindex(names).to_numpy(dtype=float), None
    if of == KEYS.attribution:
        means = np.asarray(adata.varm[KEYS.attribution])
        return means.mean(axis=1), means
    wide = table.pivot(index="gene", columns="sample", values="delta_logit").reindex(names)
    return wide.mean(axis=1).to_numpy(dtype=float), wide.to_numpy(dtype=float)


def _of_ranking(
    adata: AnnData,
    of: str,
    names: list[str],
    weights: Any,
    statistic: np.ndarray,
    by_sample: np.ndarray | None,
    known: np.ndarray,
    method: str,
    rng: np.random.Generator,
    key: str,
    groups: str,
    layer: str | None,
) -> tuple[pd.DataFrame, str]:
    """Score the sets, with intervals over samples and, where they can be had, p values from shuffled labels."""
    from scdrugmap.interpret.decoupled import METHODS as DECOUPLER
    from scdrugmap.interpret.enrichment import enrich, jackknife

    found = enrich(statistic[known], weights, method, rng)
    p, p_type = found.p, "gene permutation"

    def scored(values: np.ndarray) -> np.ndarray:
        return enrich(np.nan_to_num(values), weights, method, rng, n=1).score

    if by_sample is not None:
        n = by_sample.shape[1]
        parts = [scored(np.delete(by_sample[known], i, axis=1).mean(axis=1)) for i in range(n)] if n > 2 else []
    else:
        parts, null = _resampled(adata, known, scored, rng, key, groups, layer)
        if len(null) and method != "ora":
            from scipy import stats

            # The null spread replaces the one that independent genes would have; it never makes a set surer.
            spread = np.maximum(null.std(axis=0), 1.0) if method == "ulm" else null.std(axis=0)
            # Some scores of decoupler lie about another number than zero.
            away = found.score - (null.mean(axis=0) if method in DECOUPLER else 0.0)
            p, p_type = 2 * stats.norm.sf(np.abs(away) / np.where(spread > 0, spread, 1)), "sample permutation"
    low, high = jackknife(found.score, np.array(parts)) if len(parts) else (np.full(len(names), np.nan),) * 2
    return _table(names, weights, found.score, low, high, p), p_type


def _resampled(
    adata: AnnData, known: np.ndarray, scored: Any, rng: np.random.Generator, key: str, groups: str, layer: str | None
) -> tuple[list[np.ndarray], np.ndarray]:
    """Scores without each sample, and under shuffled labels where enough divisions of the samples exist."""
    from math import comb

    from scdrugmap.interpret.biomarkers import estimated
    from scdrugmap.interpret.pseudobulk import Units
    from scdrugmap.tl._biomarkers import bulk_of, labelled_cohort

    if key not in adata.obs or groups not in adata.obs:
        return [], np.empty((0, 0))
    cohort = labelled_cohort(adata, key, groups)
    bulk, units, _, _ = bulk_of(adata, cohort, np.ones(adata.n_obs, dtype=bool), 1, layer)
    Y = bulk.log_cpm[:, known]

    def t_of(rows: np.ndarray, y: np.ndarray) -> np.ndarray | None:
        part = Units(y[rows], units.study[rows], units.block[rows], units.names[rows])
        effects = estimated(Y[rows], part)
        return effects.t if np.isfinite(effects.t).any() else None

    everything = np.arange(len(units.y))
    parts = [t_of(np.delete(everything, i), units.y) for i in everything]
    if any(t is None for t in parts):
        parts = []
    divisions = 1
    for study in np.unique(units.study):
        own = units.y[units.study == study]
        divisions *= comb(len(own), int(own.sum()))
    null: list[np.ndarray] = []
    if divisions >= MIN_SHUFFLES:
        for _ in range(N_SHUFFLES):
            y = units.y.copy()
            for study in np.unique(units.study):
                inside = np.flatnonzero(units.study == study)
                y[inside] = rng.permutation(y[inside])
            t = t_of(everything, y)
            if t is not None:
                null.append(scored(t))
    return [scored(t) for t in parts if t is not None], np.array(null)


def _of_cells(
    adata: AnnData, names: list[str], weights: Any, method: str, key: str, groups: str, layer: str | None
) -> tuple[pd.DataFrame, np.ndarray, str]:
    """Activity of every set in every cell, and its difference between the classes over samples."""
    from scipy import stats

    from scdrugmap.embedding.source import CountSource
    from scdrugmap.interpret.biomarkers import estimated
    from scdrugmap.interpret.decoupled import decoupled
    from scdrugmap.interpret.enrichment import ulm
    from scdrugmap.interpret.pseudobulk import Units
    from scdrugmap.models.kit.expression import log_normalize
    from scdrugmap.models.kit.values import check_values

    source = CountSource(_anndata.counts(adata, layer))
    activity = np.empty((adata.n_obs, len(names)), dtype=np.float32)
    for first, X in source.blocks(2048):
        check_values(X, counts=True, model="sd.tl.pathways")
        Y = log_normalize(X.astype(np.float64))
        activity[first : first + X.shape[0]] = ulm(Y, weights) if method == "ulm" else decoupled(Y, weights, method)
    samples = np.full(adata.n_obs, "all")
    if groups in adata.obs:
        samples = _anndata.as_text(adata.obs[groups])
    if key in adata.obs and groups in adata.obs:
        from scdrugmap.tl._biomarkers import labelled_cohort

        cohort = labelled_cohort(adata, key, groups)
        kept = cohort.y >= 0
        frame = pd.DataFrame(activity[kept]).groupby([cohort.study[kept], cohort.sample[kept], cohort.y[kept]]).mean()
        study, sample, y = (frame.index.get_level_values(i).to_numpy() for i in range(3))
        units = Units(y.astype(int), study.astype(str), sample.astype(str), sample.astype(str))
        effects = estimated(frame.to_numpy(dtype=float), units)
        low, high = effects.interval()
        return _table(names, weights, effects.effect, low, high, effects.p), activity, "samples"
    frame = pd.DataFrame(activity).groupby(samples).mean()
    mean, n = frame.mean().to_numpy(), len(frame)
    half = stats.t.ppf(0.975, n - 1) * frame.std().to_numpy() / np.sqrt(n) if n > 1 else np.full(len(mean), np.nan)
    return _table(names, weights, mean, mean - half, mean + half, np.full(len(mean), np.nan)), activity, "none"


def _table(
    names: list[str], weights: Any, score: np.ndarray, low: np.ndarray, high: np.ndarray, p: np.ndarray
) -> pd.DataFrame:
    """One row per set, most significant first."""
    from scdrugmap.interpret.moderated import adjusted

    table = pd.DataFrame(
        {
            "set": names,
            "score": score,
            "low": low,
            "high": high,
            "p": p,
            "q": adjusted(p),
            "n_genes": np.diff(weights.tocsr().indptr),
        }
    )
    order = np.lexsort([-np.abs(table["score"]), table["p"].fillna(1)])
    table = table.iloc[order].reset_index(drop=True)
    table.index = table.index.astype(str)
    return table
