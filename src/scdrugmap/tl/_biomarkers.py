"""``sd.tl.biomarkers``: genes that differ between resistant and sensitive samples."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scdrugmap import __version__, _anndata
from scdrugmap._errors import InputError, ScDrugMapWarning, UnknownNameError
from scdrugmap._keys import KEYS

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from scdrugmap._cohort import Cohort
    from scdrugmap.interpret.biomarkers import Comparison
    from scdrugmap.interpret.pseudobulk import Pseudobulk, Units

METHODS = ("pseudobulk",)
ENGINES = ("moderated", "deseq2")
#: Columns that may stand behind a label; those of them that are in ``obs`` are looked at.
_SUSPECTS = (KEYS.time_point, KEYS.batch, KEYS.drug, KEYS.tissue, KEYS.cancer_type, "chemistry")


def biomarkers(
    adata: AnnData | MuData,
    *,
    key: str = "response",
    groups: str = "sample",
    method: Literal["pseudobulk"] = "pseudobulk",
    engine: Literal["moderated", "deseq2"] = "moderated",
    by: str | None = None,
    adjust: Sequence[str] = (),
    min_cells: int = 10,
    layer: str | None = None,
    mod: str = "rna",
    rng: int | np.random.Generator | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    """Find genes that differ between resistant and sensitive samples.

    Cells of one sample are not replicates of each other: they share donor, handling and label. So counts are summed per
    sample, and the samples are what is tested. No p value over cells is given anywhere.

    Parameters
    ----------
    adata
        Cells with raw counts.
    key
        Column of ``obs`` with labels: ``"response"``, or a prediction such as ``"response_pred"``. A sample whose cells
        carry both labels is compared with itself. Genes that go with a *prediction* need not go with the response.
    groups
        Column of ``obs`` with the samples.
    method
        ``"pseudobulk"``: sums of counts per sample and label.
    engine
        ``"moderated"``: moderated t on log2 counts per million; ``"deseq2"``: negative binomial model of PyDESeq2
        (extra ``interpret``).
    by
        Column of ``obs``, such as the cell type: a table for each of its values.
    adjust
        Columns of ``obs``, constant within samples (batch ...), that the linear model holds besides the label.
    min_cells
        Sums of fewer cells are left out.
    layer
        Layer of the raw counts; ``X`` if ``None``.
    mod
        Modality of a MuData.
    rng
        Seed of the shuffled labels; ``sd.settings.seed`` if ``None``.
    copy
        Return a modified copy.

    Returns
    -------
    ``None``, or the copy. Writes:

    ``uns["biomarkers"]``
        Data frame, one row per gene (and stratum), most significant first: ``gene``; ``log2_fc``, **positive = higher in
        resistant**, with ``se`` and the 95 % interval ``low``, ``high``; ``t``, ``p``, ``q`` (Benjamini-Hochberg);
        ``n_resistant``, ``n_sensitive`` samples; ``sign_consistency``, the share of samples on the side of the middle
        that the effect says; ``detection_resistant``, ``detection_sensitive``, the share of cells that express the
        gene; ``confounded``. With several studies also ``n_studies`` and ``i2``, with ``by`` also ``stratum``.
    ``uns["biomarkers_record"]``
        Parameters, what was left out, the reasons of every warning, and the mean number of genes with q < 0.05 under
        shuffled labels.

    Raises
    ------
    MissingKeyError
        If a column is missing.
    InputError
        If labels are unknown, of one class only, or a sample is missing.

    Warns
    -----
    ScDrugMapWarning
        With fewer than three samples in a class the effects are given without p values; likewise where the label
        divides the samples just as time point, batch or another column does (``confounded``). A depth or level of the
        cell cycle that differs between the classes flags the genes whose effect it explains.

    Notes
    -----
    Several studies: an effect per study with a common residual variance, joined by a random-effects meta-analysis
    (DerSimonian and Laird) whose heterogeneity the genes lend each other.

    References
    ----------
    Smyth 2004, Statistical Applications in Genetics and Molecular Biology 3:3; Squair et al. 2021, Nature
    Communications 12:5692.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=1, n_cells=400, n_genes=200, rng=0)
    >>> sd.tl.biomarkers(adata)
    >>> adata.uns["biomarkers"].columns[:2].tolist()
    ['gene', 'log2_fc']
    """
    from scdrugmap._random import seed_of

    edit = _anndata.edit(adata, copy=copy, mod=mod)
    _anndata.refuse_empty(edit.adata, genes=True)
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS, "Tests over cells are not offered: cells are no replicates.")
    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES)
    if not isinstance(min_cells, int | np.integer) or min_cells < 1:
        raise InputError("min_cells", min_cells, "a number of cells of at least 1", "leave it out.")
    seed = seed_of(rng)
    cohort = labelled_cohort(edit.adata, key, groups)
    strata = _strata(edit.adata, by, cohort.y)
    tables: list[pd.DataFrame] = []
    record: dict[str, Any] = {"params": _params(locals(), ("key", "groups", "method", "engine", "min_cells", "seed"))}
    record |= {"scdrugmap": __version__, "reasons": []}
    for name, cells in strata:
        comparison = _compare(edit.adata, cohort, cells, engine, list(adjust), min_cells, layer, seed)
        prefix = f"{name}: " if by is not None else ""
        record["reasons"] += [prefix + reason for reason in comparison.reasons]
        record |= {f"{prefix}{k}".replace("/", "_"): v for k, v in comparison.record.items()}
        tables.append(comparison.table if by is None else comparison.table.assign(stratum=name))
    table = pd.concat(tables, ignore_index=True)
    table.index = table.index.astype(str)
    for reason in record["reasons"]:
        warnings.warn(reason + ".", ScDrugMapWarning, stacklevel=2)
    record["reasons"] = np.array(record["reasons"], dtype=object)
    edit.adata.uns[KEYS.biomarkers], edit.adata.uns[KEYS.biomarkers + KEYS.record] = table, record
    return edit.finish()


def labelled_cohort(adata: AnnData, key: str, groups: str) -> Cohort:
    """Read labels and samples; both classes have to be there.

    Raises
    ------
    MissingKeyError, InputError
        If a column is missing, a label is unknown, or a class has no cell.
    """
    from scdrugmap._cohort import both_classes, encode, read_cohort

    both_classes(encode(_anndata.obs_column(adata, key, "key"), "key"), "key")
    _anndata.obs_column(adata, groups, "groups")
    return read_cohort(adata, label_key=key, sample_key=groups, need=("sample",))


def bulk_of(
    adata: AnnData, cohort: Cohort, cells: np.ndarray, min_cells: int, layer: str | None
) -> tuple[Pseudobulk, Units, np.ndarray, list[str]]:
    """Sum counts per sample and label; also returns the first cell of each unit, and the names of units left out."""
    from scdrugmap.embedding.source import CountSource
    from scdrugmap.interpret.pseudobulk import Units, check_counts, pseudobulk

    chosen = cells & (cohort.y >= 0)
    names = pd.Series(cohort.sample.astype(str)) + "\x1f" + pd.Series(cohort.y.astype(str))
    codes, found = pd.factorize(names.where(chosen))
    source = CountSource(_anndata.counts(adata, layer))
    check_counts(source, "sd.tl.biomarkers")
    bulk = pseudobulk(source, codes, len(found))
    large = bulk.n_cells >= min_cells
    first = pd.Series(np.arange(len(codes))).groupby(codes).first()
    first = first[first.index >= 0].to_numpy()[large]
    block = (
        cohort.sample if cohort.patient is None else np.where(pd.isna(cohort.patient), cohort.sample, cohort.patient)
    )
    units = Units(cohort.y[first], cohort.study[first].astype(str), block[first].astype(str), cohort.sample[first])
    return bulk.take(large), units, first, [str(n).split("\x1f")[0] for n in np.asarray(found)[~large]]


def _compare(
    adata: AnnData,
    cohort: Cohort,
    cells: np.ndarray,
    engine: str,
    adjust: list[str],
    min_cells: int,
    layer: str | None,
    seed: int,
) -> Comparison:
    """Compare the classes over the cells of one stratum."""
    from scdrugmap.interpret.biomarkers import MIN_COUNT, MIN_SAMPLES, compare, shuffled_calls
    from scdrugmap.interpret.confounding import CELL_CYCLE, Confounding
    from scdrugmap.interpret.deseq import deseq_effects

    bulk, units, first, small = bulk_of(adata, cohort, cells, min_cells, layer)
    smaller = min((units.y == 0).sum(), (units.y == 1).sum())
    if not smaller:
        raise InputError(
            "min_cells", min_cells, f"at least {min_cells} cells in one sample of each class", "pass fewer."
        )
    covariates, columns = None, {}
    for name in dict.fromkeys([*adjust, *(c for c in _SUSPECTS if c in adata.obs)]):
        columns[name] = _anndata.obs_column(adata, name, "adjust").to_numpy()[first]
    if adjust:
        levels = [pd.get_dummies(pd.Series(columns[a]), drop_first=True).to_numpy(dtype=float) for a in adjust]
        covariates = np.hstack(levels)
    cycle = np.isin(_anndata.gene_ids(adata).symbols.astype(str), CELL_CYCLE)
    numbers = {"depth": np.log2(bulk.counts.sum(axis=1) / bulk.n_cells)}
    if cycle.sum() >= 5:
        numbers["cell cycle"] = bulk.log_cpm[:, cycle].mean(axis=1)
    confounding = Confounding(columns, numbers)
    compared = compare(
        bulk, units, adata.var_names.to_numpy(), confounding=confounding, covariates=covariates,
        effects=deseq_effects if engine == "deseq2" and smaller >= MIN_SAMPLES else None,
    )  # fmt: skip
    if small:
        compared.reasons.append(f"sums of fewer than {min_cells} cells are left out: {', '.join(sorted(set(small)))}")
    if smaller >= MIN_SAMPLES and engine == "moderated":
        tested = (bulk.counts >= MIN_COUNT).sum(axis=0) >= smaller
        compared.record["called_with_shuffled_labels"] = shuffled_calls(
            bulk, units, tested, np.random.default_rng(seed)
        )
    return compared


def _strata(adata: AnnData, by: str | None, y: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Name and cells of each stratum that holds both labels."""
    if by is None:
        return [("all", np.ones(adata.n_obs, dtype=bool))]
    values = _anndata.obs_text(adata, by, "by")
    out = [(str(v), values == v) for v in np.unique(values)]
    out = [(v, cells) for v, cells in out if {0, 1} <= set(y[cells].tolist())]
    if not out:
        raise InputError("by", by, "a value with cells of both labels", "leave it out.")
    return out


def _params(values: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: values[name] for name in names}
