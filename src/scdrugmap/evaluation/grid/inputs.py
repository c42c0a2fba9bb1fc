"""From AnnData to the arrays of an evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdrugmap import _anndata
from scdrugmap._cohort import Cohort, read_cohort
from scdrugmap._errors import InputError, UnknownNameError
from scdrugmap._keys import KEYS
from scdrugmap._logging import warn
from scdrugmap.evaluation.grid.contenders import Contender, Head, array_contender, rule_contenders
from scdrugmap.evaluation.grid.runner import Counted
from scdrugmap.evaluation.splits.duplicates import content_hash, detected_genes, duplicate_groups
from scdrugmap.evaluation.splits.folds import Partition, straddling
from scdrugmap.predictor.origin import HERE

if TYPE_CHECKING:
    from anndata import AnnData

BASELINES = ("all_sensitive", "majority", "random", "depth", "hvg", "pca", "scvi", "sample_probe")
NEED_COUNTS = ("depth", "hvg", "pca", "scvi")
FITTED_ON_ALL = "representation fitted on all cells, test cells included"
GROUP_CONTEXT = "embedding of a cell depends on cells on the other side of the split"
#: A baseline has to be beaten, not to be waited for.
SCVI_EPOCHS = 50


def read_cells(
    adata: AnnData,
    *,
    label_key: str,
    study_key: str,
    sample_key: str,
    patient_key: str | None = None,
    columns: Sequence[str] = (),
    need: Sequence[str] = (),
    duplicates: str = "merge",
    layer: str | None = None,
) -> Cohort:
    """Read labels and groups.

    Parameters
    ----------
    adata
        Cells; not changed.
    label_key, study_key, sample_key, patient_key
        Columns of ``obs``. Without a study column all cells are one study, without a sample column each study is one
        sample, unless ``need`` names the column.
    columns
        Further columns to read.
    need
        Which of ``"sample"``, ``"study"``, ``"patient"`` must be there.
    duplicates
        ``"merge"``: find copied cells, so that they stay together. ``"ignore"``: do not look.
    layer
        Layer of the counts that are compared.

    Raises
    ------
    MissingKeyError, InputError
        If a column is missing, a labelled cell has no sample or study, or a label is not known.
    """
    if duplicates not in ("merge", "ignore"):
        raise UnknownNameError("duplicates", duplicates, ["merge", "ignore"])
    cohort = read_cohort(
        adata, label_key=label_key, study_key=study_key, sample_key=sample_key, patient_key=patient_key,
        columns=columns, need=need, groups=False,
    )  # fmt: skip
    if duplicates == "ignore":
        return cohort
    return replace(cohort, duplicates=find_duplicates(adata, cohort.study, layer))


def find_duplicates(adata: AnnData, study: np.ndarray, layer: str | None = None) -> np.ndarray:
    """Codes of copied cells by counts, and by ``obs["series"]`` (else study) and ``obs["barcode"]`` where they are.

    On the result of :func:`scdrugmap.pp.concat_studies`, cells of several studies are compared on the genes that all have.
    """
    X = None
    if adata.n_vars and (layer is not None or adata.X is not None):
        X = _anndata.counts(adata, layer)
    barcode = adata.obs["barcode"].to_numpy(dtype=object) if "barcode" in adata.obs else None
    series = adata.obs["series"].to_numpy(dtype=object) if "series" in adata.obs else study
    common = None
    if KEYS.concat in adata.uns and not _anndata.is_raw(adata, layer) and "n_studies" in adata.var:
        n_studies = adata.var["n_studies"].to_numpy()
        common = n_studies == len(adata.uns[KEYS.concat]["studies"])
    return duplicate_groups(X, series=series, barcode=barcode, common=common, origin=study, n=adata.n_obs)


def read_counts(adata: AnnData, layer: str | None) -> tuple[Counted | None, str]:
    """Return raw counts for fitted representations, or why there are none."""
    from scdrugmap.embedding.cells import counts_elsewhere
    from scdrugmap.embedding.source import CountSource
    from scdrugmap.models.kit.values import check_values

    if adata.n_vars == 0 or (layer is None and adata.X is None):
        return None, "adata holds no expression values"
    X = _anndata.counts(adata, layer)
    source = CountSource(X)
    try:
        for first, block in source.blocks(4096):
            check_values(block, counts=True, model="a baseline")
            del first
    except InputError as error:
        return None, f"{error.found}; {counts_elsewhere(adata, layer)}"
    return Counted(X, _anndata.gene_ids(adata, layer), expression_digest(adata, layer)), ""


def expression_digest(adata: AnnData, layer: str | None) -> str:
    """SHA-256 over the values of every cell and the names of the genes."""
    names = adata.raw.var_names if _anndata.is_raw(adata, layer) else adata.var_names
    digest = hashlib.sha256("\x1f".join(map(str, names)).encode())
    digest.update(content_hash(_anndata.counts(adata, layer)).tobytes())
    return digest.hexdigest()


def depth_features(X: Any) -> np.ndarray:
    """Logged number of counts and of detected genes per cell, ``(n, 2)``: what sequencing depth alone tells.

    Examples
    --------
    >>> import numpy as np
    >>> depth_features(np.array([[0, 3], [1, 1]])).shape
    (2, 2)
    """
    from scdrugmap.embedding.source import CountSource

    totals = [np.asarray(block.sum(axis=1)).ravel() for _, block in CountSource(X).blocks(4096)]
    return np.log1p(np.stack([np.concatenate(totals), detected_genes(X)], axis=1)).astype(np.float32)


def baseline_contenders(
    names: Iterable[str] | None,
    adata: AnnData,
    layer: str | None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[list[Contender], Counted | None, bool]:
    """Make the baselines.

    Parameters
    ----------
    names
        Of ``BASELINES``; ``None`` for all that the data allow, with a warning about the others.
    adata, layer
        Where the counts are.
    options
        Of the fitted baselines, by name.

    Returns
    -------
    tuple
        Contenders, the counts that the fitted ones need, and whether to probe for the sample.
    """
    wanted = list(BASELINES) if names is None else list(names)
    for name in wanted:
        if name not in BASELINES:
            raise UnknownNameError("baselines", name, BASELINES)
    counts, out = None, []
    lacking = [n for n in wanted if n in NEED_COUNTS]
    if lacking:
        counts, why = read_counts(adata, layer)
        if counts is None and names is not None:
            raise InputError(
                "baselines", lacking, "raw counts in X or a layer", f"leave them out or pass layer=. {why}"
            )
        if counts is None:
            warn(f"baselines {lacking} are left out: {why}")
    out = [c for c in rule_contenders() if c.name in wanted]
    logistic = (Head("logistic"),)
    for name in lacking:
        if counts is None:
            out.append(absent_contender(name, f"left out: {why}", logistic))
        elif name == "depth":
            out.append(array_contender(name, depth_features(counts.X), logistic, strategy="baseline"))
        else:
            chosen = ({"max_epochs": SCVI_EPOCHS} if name == "scvi" else {}) | dict((options or {}).get(name, {}))
            out.append(fitted_contender(name, counts, logistic, strategy="baseline", options=chosen))
    return out, counts, "sample_probe" in wanted


def fitted_contender(
    name: str,
    counts: Counted,
    heads: Sequence[Head],
    *,
    strategy: str = "frozen",
    options: Mapping[str, Any] | None = None,
) -> Contender:
    """Wrap a model that is fitted on the training cells of each fold.

    Raises
    ------
    InputError, UnknownNameError
        For options that it does not take: before anything is fitted.
    """
    options = dict(options or {})
    _tried(name, options)
    digest = f"{name}:{sorted(options.items())!r}:{counts.digest}"
    return Contender(name, strategy, "fitted", digest, tuple(heads), model=name, options=options)


def absent_contender(name: str, reason: str, heads: Sequence[Head]) -> Contender:
    """Stand for a baseline that cannot take part."""
    return Contender(name, "baseline", "absent", "", tuple(heads), model=name, reason=reason)


def _tried(name: str, options: Mapping[str, Any]) -> None:
    """Make a model that is fitted per fold, so that what it refuses is refused before the first fold."""
    from scdrugmap.models import registry

    kind: Any = registry.get(name)
    kind(**options)


def obsm_contender(adata: AnnData, key: str, name: str, heads: Sequence[Head]) -> Contender:
    """Wrap a representation in ``obsm``, with what ``uns`` tells about how it was made."""
    record = adata.uns.get(key.removeprefix("X_"), {})
    record = record if isinstance(record, Mapping) else {}
    provenance = dict(record.get(KEYS.provenance, {}))
    note = ""
    if provenance.get("fitted_on") == HERE or (
        not provenance and key.lower().startswith(("x_pca", "x_umap", "x_tsne", "x_scvi", "x_harmony"))
    ):
        note = FITTED_ON_ALL
    manifest = {"obsm": key, **{k: provenance[k] for k in ("model", "checkpoint_sha256") if k in provenance}}
    # Version 0.1 called the context "groups".
    context = provenance.get("context", provenance.get("groups"))
    manifest |= {} if context is None else {"groups": context}
    if "params" in record:
        params = dict(record["params"])
        manifest["embed_groups"] = params.get("context", params.get("groups", ""))
    return array_contender(name, adata.obsm[key], heads, n=adata.n_obs, note=note, manifest=manifest)


def group_column(contender: Contender, adata: AnnData) -> np.ndarray | None:
    """Return the groups inside which cells saw each other, or ``None`` where each cell stood alone."""
    from scdrugmap.models import registry

    model = contender.manifest.get("model")
    if not model:
        return None
    try:
        card = registry.info(model)
    except (UnknownNameError, ImportError):
        return None
    if card.context != "group":
        return None
    key = contender.manifest.get("embed_groups") or KEYS.sample
    if contender.manifest.get("groups") == "one group" or key not in adata.obs:
        return np.zeros(adata.n_obs, dtype=int)
    return pd.factorize(adata.obs[key].astype(str))[0]


def guard_context(
    contender: Contender, groups: np.ndarray | None, partitions: Sequence[Partition], group_context: str
) -> Contender:
    """Refuse (or mark) an embedding in which training cells saw test cells.

    Raises
    ------
    InputError
        If a group has cells on both sides and ``group_context`` is ``"refuse"``.
    """
    if group_context not in ("refuse", "mark"):
        raise UnknownNameError("group_context", group_context, ["refuse", "mark"])
    if groups is None:
        return contender
    for partition in partitions:
        for fold in partition.folds:
            if len(straddling(groups, fold.train, fold.test)):
                if group_context == "mark":
                    return replace(contender, note="; ".join(n for n in (contender.note, GROUP_CONTEXT) if n))
                raise InputError(
                    "models",
                    f"{contender.name!r}, whose embedding of a cell depends on the other cells of its group, and the "
                    f"split {partition.split!r}, which puts cells of one group on both sides",
                    "groups that stay on one side",
                    "embed with context=<the sample column> and split by sample or study, or pass group_context='mark'.",
                )
    return contender
