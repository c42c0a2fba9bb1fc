"""The form that every loader gives: CSR counts, the same ``obs`` columns, the same record in ``uns``."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from scdrugmap._errors import ScDrugMapWarning
from scdrugmap._keys import CLASSES, KEYS
from scdrugmap._labels import mapping_for, word_label
from scdrugmap.genes.identifiers import Genes

#: ``obs`` columns of every loaded study, and what sources call them.
COLUMNS: dict[str, tuple[str, ...]] = {
    KEYS.sample: ("sample_id", "orig.ident", "library", "library_id"),
    KEYS.patient: ("patient_id", "donor", "donor_id", "individual"),
    KEYS.study: ("dataset", "accession"),
    KEYS.drug: ("perturbation", "treatment", "compound"),
    KEYS.tissue: ("tissue_type", "organism_part"),
    KEYS.cancer_type: ("cancer", "disease"),
    KEYS.time_point: ("timepoint", "time"),
}
#: Where a source's own column "response" goes that does not say resistant or sensitive.
SOURCE = "source_response"
HOW_TO_LABEL = (
    "the response of a cell cannot be read off this source; obs['response'] is empty. Fix: put what the samples' "
    "descriptions say into an obs column and call scdrugmap.pp.harmonize_response(adata, column)."
)


def response_of(texts: pd.Series) -> pd.Categorical:
    """Read the word ``sensitive`` or ``resistant`` in a text; anything else, both, or a word that bends it stays empty."""
    known = {text: word_label(str(text)) for text in texts.dropna().unique()}
    labels = texts.astype(object).map(known).to_numpy(dtype=object)
    return pd.Categorical(labels, categories=list(CLASSES))


def tidy_obs(obs: pd.DataFrame, facts: Mapping[str, str], *, response: str | None, what: str) -> pd.DataFrame:
    """Give ``obs`` the columns that every loaded study has.

    Parameters
    ----------
    obs
        Table of the source; its own columns are kept.
    facts
        Values for columns that the source does not hold.
    response
        Column with the response as text, if there is one.
    what
        Name of the source, for warnings.

    Returns
    -------
    A new table; text columns are categorical.
    """
    obs = obs.copy()
    if response is not None:
        texts = obs[response].astype(object)
        obs[KEYS.response] = response_of(texts)
        unread = sorted(set(map(str, texts[obs[KEYS.response].isna() & texts.notna()])) - {""})
        if unread:
            column = response
            if response == KEYS.response:
                obs[SOURCE] = texts.astype("string").astype(object)
                column = SOURCE
            _warn(
                f"{what}: {response} holds {', '.join(map(repr, unread[:5]))}, which is neither; those cells have no "
                f"label. Fix: scdrugmap.pp.harmonize_response(adata, {column!r}, mapping={mapping_for(unread[:20])})."
            )
    else:
        if KEYS.response in obs:
            obs = obs.rename(columns={KEYS.response: SOURCE})
        obs[KEYS.response] = pd.Categorical([None] * len(obs), categories=list(CLASSES))
        _warn(f"{what}: {HOW_TO_LABEL}")
    for column, others in COLUMNS.items():
        if facts.get(column):
            obs[column] = facts[column]
        elif column not in obs:
            known = next((o for o in others if o in obs), None)
            obs[column] = obs[known] if known else pd.Series(pd.NA, obs.index, dtype="string")
    for column in COLUMNS:
        if not isinstance(obs[column].dtype, pd.CategoricalDtype):
            obs[column] = pd.Categorical(obs[column].astype("string").astype(object))
    obs.index = obs.index.astype(str).rename(None)
    return obs


def tidy_var(names: pd.Index, *, symbols: pd.Series | None = None, ensembl: pd.Series | None = None) -> pd.DataFrame:
    """``var`` with unique names; identifiers that are recognised go to their own column."""
    from anndata.utils import make_index_unique

    original = pd.Index(names.astype(str).astype(object)).rename(None)
    var = pd.DataFrame(index=make_index_unique(original) if not original.is_unique else original)
    found = Genes.from_names(original, symbols=symbols, ensembl=ensembl)
    has_ids = bool((found.ensembl != "").any())
    if symbols is not None:
        var[KEYS.gene_symbol] = np.asarray(symbols, object)
    elif not has_ids:
        var[KEYS.gene_symbol] = np.asarray(original, object)
    elif (found.symbols != "").any():
        var[KEYS.gene_symbol] = found.symbols.astype(object)
    if has_ids:
        var[KEYS.ensembl_id] = found.ensembl.astype(object)
    return var


def provenance(path: Path, reader: str, **more: Any) -> dict[str, Any]:
    """Record for ``uns``: file, digest, reader, version, and what the caller adds."""
    import pooch

    import scdrugmap

    digest = pooch.file_hash(str(path)) if path.is_file() else ""
    record = {"file": path.name, "sha256": digest, "reader": reader, "scdrugmap": scdrugmap.__version__, **more}
    return {k: v for k, v in record.items() if v is not None}


def finish(adata: ad.AnnData, what: str) -> ad.AnnData:
    """Make X CSR float32 and say so where it does not hold counts."""
    matrix = adata.X
    if not sparse.issparse(matrix):
        matrix = sparse.csr_matrix(np.asarray(matrix, np.float32))
    matrix = matrix.tocsr().astype(np.float32)
    matrix.sort_indices()
    adata.X = matrix
    counts = looks_like_counts(matrix.data)
    adata.uns.setdefault(KEYS.provenance, {})["values"] = "counts" if counts else "not counts"
    if not counts:
        _warn(
            f"{what}: the values are not counts (negative or not whole); models that need raw counts will refuse them."
        )
    return adata


def looks_like_counts(values: np.ndarray) -> bool:
    """Whether all values (looked at in pieces) are whole and not negative."""
    pieces = range(0, values.size, 1 << 22)
    return all(bool(np.all(v >= 0) and np.all(v == np.rint(v))) for v in (values[i : i + (1 << 22)] for i in pieces))


def study_of(path: Path) -> str | None:
    """Accession in a file name, if there is one."""
    match = re.search(r"GSE\d+", path.name)
    return match[0] if match else None


def _warn(message: str) -> None:
    warnings.warn(message, ScDrugMapWarning, stacklevel=4)
