"""``sd.pp.check``: look at data before anything runs on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdrugmap import _anndata
from scdrugmap._errors import InputError
from scdrugmap._keys import KEYS
from scdrugmap.embedding.cells import counts_elsewhere
from scdrugmap.embedding.source import CountSource
from scdrugmap.evaluation.splits.duplicates import MIN_GENES, content_hash
from scdrugmap.genes.identifiers import dated, recognise
from scdrugmap.pp._check_labels import check_labels
from scdrugmap.pp._report import CheckReport, Finding, Level, sort_findings

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


def check(
    adata: AnnData | MuData,
    *,
    layer: str | None = None,
    label_key: str = KEYS.response,
    sample_key: str = KEYS.sample,
    study_key: str = KEYS.study,
    models: str | Sequence[str] | None = None,
    mod: str = "rna",
    chunk_size: int = 4096,
) -> CheckReport:
    """Check that data can be embedded, trained on and predicted, and say how to mend what cannot.

    Looks at the counts (raw? NaN, negative, empty cells, cells that occur twice), the genes (kind of identifier,
    species, duplicates) and the labels (classes, per study and per sample). Reads the counts once, ``chunk_size`` cells
    at a time, wherever they are (memory, backed file, zarr, dask), and changes nothing.

    Parameters
    ----------
    adata
        Annotated data.
    layer
        Layer that holds the raw counts; ``X`` if ``None``.
    label_key, sample_key, study_key
        Columns of ``obs`` with the labels, samples and studies.
    models
        Names of models, or ``"all"``: also compare the genes with their vocabularies (see
        :func:`scdrugmap.pp.gene_coverage`).
    mod
        Modality of a MuData.
    chunk_size
        Cells read at once.

    Returns
    -------
    A report: print it, ask ``.ok``, or read ``.findings``, ``.facts``, ``.labels``, ``.to_frame()``, ``.to_dict()``.

    Raises
    ------
    InputTypeError
        ``adata`` is neither an AnnData nor a MuData.
    MissingKeyError
        There is no such layer or modality. A missing column of ``obs`` is a finding, not an error.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_cells=100, n_genes=100, rng=0)
    >>> adata.X.data[0] = 0.5
    >>> report = sd.pp.check(adata)
    >>> report.errors[0].slot
    'X'
    """
    data = _anndata.reading(adata, mod=mod)
    if chunk_size < 1:
        raise InputError("chunk_size", chunk_size, "a number of cells of at least 1", "pass chunk_size=4096.")
    findings: list[Finding] = []
    facts: dict[str, Any] = {}
    labels = pd.DataFrame()
    slot = "X" if layer is None else f"layers[{layer!r}]"
    counts = _anndata.counts(data, layer, quiet=True)
    if data.n_obs == 0 or data.n_vars == 0:
        findings.append(Finding("error", slot, "no cells" if data.n_obs == 0 else "no genes", "check the filters."))
    else:
        survey = _survey(counts, chunk_size)
        _check_counts(data, survey, slot, layer, findings, facts)
        _check_cells(data, survey, slot, sample_key, study_key, findings, facts)
        _check_features(data, layer, findings, facts)
        _check_genes(data, survey, layer, findings, facts)
        labels = check_labels(data, label_key, sample_key, study_key, findings, facts)
        if models is not None:
            _check_models(data, models, layer, findings)
    return CheckReport(data.n_obs, data.n_vars, sort_findings(findings), facts, labels)


@dataclass
class _Survey:
    """One pass over the counts."""

    total: np.ndarray
    detected: np.ndarray
    gene_cells: np.ndarray
    hashes: np.ndarray
    n_stored: int
    n_not_finite: int
    n_negative: int
    n_fractional: int
    minimum: float
    maximum: float


def _survey(counts: Any, chunk_size: int) -> _Survey:
    source = CountSource(counts)
    n, n_genes = source.shape
    out = _Survey(
        np.zeros(n), np.zeros(n, int), np.zeros(n_genes, int), np.zeros((n, 2), np.uint64), 0, 0, 0, 0, np.inf, -np.inf
    )
    for start, block in source.blocks(chunk_size):
        rows = slice(start, start + block.shape[0])
        data = block.data
        finite = np.isfinite(data)
        out.n_stored += data.size
        out.n_not_finite += int((~finite).sum())
        out.n_negative += int((data < 0).sum())
        out.n_fractional += int((finite & (data != np.rint(data))).sum())
        if finite.any():
            out.minimum = min(out.minimum, float(data[finite].min()))
            out.maximum = max(out.maximum, float(data[finite].max()))
        out.total[rows] = np.asarray(block.sum(axis=1, dtype=np.float64)).ravel()
        nonzero = block.astype(bool)
        out.detected[rows] = np.asarray(nonzero.sum(axis=1)).ravel()
        out.gene_cells += np.asarray(nonzero.sum(axis=0)).ravel()
        out.hashes[rows] = content_hash(block)
    return out


def _check_counts(
    data: AnnData, s: _Survey, slot: str, layer: str | None, findings: list[Finding], facts: dict[str, Any]
) -> None:
    """Raw counts are finite, whole and not negative."""
    facts["raw_counts"] = not (s.n_not_finite or s.n_negative or s.n_fractional)
    facts["median_counts_per_cell"] = float(np.median(s.total))
    facts["median_genes_per_cell"] = float(np.median(s.detected))
    if s.n_not_finite:
        findings.append(
            Finding(
                "error", slot, f"{s.n_not_finite:,} NaN or infinite values", "remove them or go back to the counts."
            )
        )
    if s.n_negative:
        findings.append(
            Finding("error", slot, f"{s.n_negative:,} negative values (scaled data?)", counts_elsewhere(data, layer))
        )
    elif s.n_fractional:
        share = s.n_fractional / s.n_stored
        guess = " (log-normalised?)" if s.maximum < 30 and share > 0.5 else ""
        findings.append(
            Finding(
                "error",
                slot,
                f"{share:.0%} of the stored values are not whole numbers{guess}; models need raw counts",
                counts_elsewhere(data, layer),
            )
        )
    if facts["raw_counts"]:
        message = (
            f"raw counts, median {facts['median_counts_per_cell']:,.0f} counts and "
            f"{facts['median_genes_per_cell']:,.0f} genes per cell"
        )
        findings.append(Finding("info", slot, message))


def _check_cells(
    data: AnnData,
    s: _Survey,
    slot: str,
    sample_key: str,
    study_key: str,
    findings: list[Finding],
    facts: dict[str, Any],
) -> None:
    """Empty cells, duplicate names, cells that occur twice."""
    n_empty = facts["n_empty_cells"] = int((s.detected == 0).sum())
    if n_empty:
        findings.append(
            Finding(
                "warning", slot, f"{n_empty:,} cells without any count", "sc.pp.filter_cells(adata, min_genes=200)."
            )
        )
    if not data.obs_names.is_unique:
        n = int(data.obs_names.duplicated().sum())
        findings.append(Finding("warning", "obs_names", f"{n:,} names are repeated", "adata.obs_names_make_unique()."))
    frame = pd.DataFrame({"a": s.hashes[:, 0], "b": s.hashes[:, 1]})[s.detected >= MIN_GENES]
    copies = frame[frame.duplicated(keep=False)]
    facts["n_duplicated_cells"] = len(copies)
    if len(copies):
        where = ""
        for key, word in ((study_key, "studies"), (sample_key, "samples")):
            if key in data.obs:
                group = _anndata.as_text(data.obs[key])[copies.index]
                spread = pd.Series(group).groupby([copies["a"].to_numpy(), copies["b"].to_numpy()]).nunique()
                if (spread > 1).any():
                    where = f", {int((spread > 1).sum()):,} of them in several {word}"
                    break
        n_distinct = len(copies.drop_duplicates())
        findings.append(
            Finding(
                "warning",
                slot,
                f"{len(copies):,} cells are copies of one another ({n_distinct:,} distinct){where}",
                "remove them, or keep all copies on one side of every split, as benchmarks here do.",
            )
        )


def _check_features(data: AnnData, layer: str | None, findings: list[Finding], facts: dict[str, Any]) -> None:
    """Columns that are no genes, names that a spreadsheet changed, and a choice of genes that stands for all."""
    kinds, names = _anndata.features(data, layer), _anndata.var_of(data, layer).index
    facts["n_no_genes"] = int((kinds != "").sum())
    if facts["n_no_genes"]:
        listing = _anndata.tally(kinds, names)
        if facts["n_no_genes"] == len(names):
            message, fix = f"no gene among the columns: {listing}", "pass the modality or file with gene expression."
            findings.append(Finding("error", "var", message, fix))
        else:
            message = f"{facts['n_no_genes']:,} columns are no genes and are left out by all tools: {listing}"
            line = "adata = adata[:, adata.var['feature_types'] == 'Gene Expression'].copy()"
            fix = f"drop them: {line}." if "feature_types" in data.var else "drop them from adata."
            findings.append(Finding("warning", "var", message, fix))
    dates = np.asarray(names)[dated(names) != ""]
    if len(dates):
        message = f"{len(dates):,} gene names are dates, as a spreadsheet makes them ({', '.join(map(str, dates[:3]))})"
        findings.append(Finding("warning", "var_names", message, "sd.pp.harmonize_genes(adata), or the original file."))
    full = 0 if data.raw is None or _anndata.is_raw(data, layer) else data.raw.n_vars
    chosen = "highly_variable" in data.var and bool(data.var["highly_variable"].astype(bool).all())
    if chosen or full > data.n_vars:
        message = f"{data.n_vars:,} genes, a choice" + (f" of the {full:,} in adata.raw" if full > data.n_vars else "")
        fix = "models want all genes: " + (
            "pass layer='raw', or adata.raw.to_adata()." if full > data.n_vars else "go back to the full matrix."
        )
        findings.append(Finding("warning", "var", message, fix))


def _check_genes(data: AnnData, s: _Survey, layer: str | None, findings: list[Finding], facts: dict[str, Any]) -> None:
    """Identifiers, species, duplicates, genes that no cell has."""
    ids = _anndata.gene_ids(data, layer)
    names = pd.Index(ids.names)
    found = recognise(ids.names)
    n_symbols, n_ensembl = int((ids.symbols != "").sum()), int((ids.ensembl != "").sum())
    facts |= {"identifiers": found.kind, "species": found.species, "n_symbols": n_symbols, "n_ensembl_ids": n_ensembl}
    some = ", ".join(map(str, ids.names[:3]))
    fix = "sd.pp.harmonize_genes(adata)."
    if n_symbols == 0 and n_ensembl == 0:
        level: Level = "error"
        message = f"{'Entrez numbers' if found.kind == 'entrez' else 'no gene identifiers'} ({some})"
        if found.kind != "entrez":
            fix = 'put symbols or Ensembl ids into var_names, or into var["gene_symbol"] or var["ensembl_id"].'
        findings.append(Finding(level, "var_names", message, fix))
    else:
        kind = {"symbol": "symbols", "ensembl": "Ensembl ids"}.get(found.kind, found.kind)
        species = f" of {found.species}" if found.species != "unknown" else ""
        findings.append(
            Finding("info", "var_names", f"{kind}{species} ({some}); {n_symbols:,} symbols, {n_ensembl:,} Ensembl ids")
        )
        if n_symbols < 0.5 * len(names) or n_ensembl < 0.5 * len(names):
            lacking = "symbols" if n_symbols < n_ensembl else "Ensembl ids"
            findings.append(Finding("info", "var", f"most genes have no {lacking}, which some models need", fix))
    if found.species not in ("human", "unknown") and found.species_share > 0.5:
        findings.append(
            Finding(
                "error",
                "var_names",
                f"genes of {found.species}; the models know human genes",
                "map to orthologues first.",
            )
        )
    if not names.is_unique:
        n = int(names.duplicated().sum())
        findings.append(
            Finding(
                "error", "var_names", f"{n:,} names are repeated", "sd.pp.harmonize_genes(adata), which adds them up."
            )
        )
    elif (repeated := pd.Series(ids.symbols[ids.symbols != ""]).duplicated().sum()) > 0:
        findings.append(Finding("warning", "var", f"{repeated:,} genes share a symbol with another one", fix))
    n_empty = facts["n_empty_genes"] = int((s.gene_cells == 0).sum())
    if n_empty:
        findings.append(Finding("info", "X", f"{n_empty:,} genes without any count"))


def _check_models(data: AnnData, models: str | Sequence[str], layer: str | None, findings: list[Finding]) -> None:
    """Genes that the models know."""
    from scdrugmap.pp._gene_coverage import gene_coverage

    for row in gene_coverage(data, models, layer=layer).itertuples():
        slot = f"model {row.model}"
        if pd.isna(row.n_found):
            findings.append(Finding("info", slot, str(row.note)))
            continue
        message = (
            f"{row.n_found:,} genes known: {row.of_counts:.0%} of the counts, {row.of_vocabulary:.0%} of its vocabulary"
        )
        level: Level = "error" if row.n_found == 0 else "warning" if row.of_counts < 0.5 else "info"
        findings.append(Finding(level, slot, message, "" if level == "info" else "sd.pp.harmonize_genes(adata)."))
