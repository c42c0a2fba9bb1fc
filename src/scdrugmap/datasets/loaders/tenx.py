"""10x Genomics output: Matrix Market folders, also with the prefixes that GEO gives, and h5 files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import anndata as ad
import pandas as pd
from scipy import sparse
from scipy.io import mmread

from scdrugmap._errors import InputError
from scdrugmap._keys import KEYS
from scdrugmap.datasets.loaders import _tidy
from scdrugmap.datasets.loaders._parse import open_text


def read_10x_mtx(path: str | Path, *, prefix: str = "", facts: Mapping[str, str] | None = None) -> ad.AnnData:
    """Read a Matrix Market triplet (matrix, barcodes, features or genes), plain or compressed.

    Parameters
    ----------
    path
        Folder of the three files.
    prefix
        What stands before ``matrix.mtx``, ``barcodes.tsv`` and ``features.tsv`` in the file names.
    facts
        Values for ``obs`` columns that hold for every cell.

    Returns
    -------
    AnnData as of :func:`scdrugmap.datasets.loaders.read_text`, with ``var["ensembl_id"]`` and ``var["gene_symbol"]``.
    Only rows of the type Gene Expression are kept where the file tells types.

    Raises
    ------
    InputError
        If a file is missing or the three do not fit together.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> sd.datasets.loaders.read_10x_mtx("GSE1/", prefix="GSM1_tumor_")  # doctest: +SKIP
    """
    folder = Path(path)
    matrix_file = _one(folder, prefix, ("matrix.mtx", "counts.mtx"))
    cells = _table(_one(folder, prefix, ("barcodes.tsv", "cells.tsv")))
    genes = _table(_one(folder, prefix, ("features.tsv", "genes.tsv")))
    with open_text(matrix_file) as stream:
        matrix = sparse.csr_matrix(mmread(stream))
    if matrix.shape != (len(genes), len(cells)):
        raise InputError(
            "path",
            f"a {matrix.shape[0]} x {matrix.shape[1]} matrix, {len(genes)} genes and {len(cells)} barcodes in {folder}",
            "three files of one sample, genes in rows",
            "check the prefix.",
        )
    matrix = matrix.T.tocsr()
    if genes.shape[1] > 2 and (genes[2] == "Gene Expression").any():
        kept = (genes[2] == "Gene Expression").to_numpy()
        matrix, genes = matrix[:, kept], genes[kept]
    symbols = genes[1] if genes.shape[1] > 1 else genes[0]
    var = _tidy.tidy_var(pd.Index(symbols))
    if genes.shape[1] > 1:
        var[KEYS.gene_symbol] = symbols.to_numpy(object)
        identifiers = _tidy.tidy_var(pd.Index(genes[0]))
        if KEYS.ensembl_id in identifiers:
            var[KEYS.ensembl_id] = identifiers[KEYS.ensembl_id].to_numpy()
    index = pd.Index(cells[0].astype(str))
    facts = {KEYS.study: _tidy.study_of(matrix_file) or _tidy.study_of(folder) or "", **(facts or {})}
    obs = _tidy.tidy_obs(pd.DataFrame(index=index), facts, response=None, what=matrix_file.name)
    adata = ad.AnnData(matrix.astype("float32"), obs=obs, var=var)
    adata.obs_names_make_unique()
    adata.uns[KEYS.provenance] = _tidy.provenance(matrix_file, "10x mtx")
    return _tidy.finish(adata, matrix_file.name)


def read_10x_h5(path: str | Path, *, facts: Mapping[str, str] | None = None) -> ad.AnnData:
    """Read a 10x h5 file (version 2 or 3); only gene expression is kept.

    Parameters
    ----------
    path
        The file.
    facts
        Values for ``obs`` columns that hold for every cell.

    Returns
    -------
    AnnData as of :func:`scdrugmap.datasets.loaders.read_text`, with ``var["ensembl_id"]`` and ``var["gene_symbol"]``.

    Raises
    ------
    InputError
        If the file is not of that form.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> sd.datasets.loaders.read_10x_h5("filtered_feature_bc_matrix.h5")  # doctest: +SKIP
    """
    import scanpy as sc

    path = Path(path)
    try:
        adata = sc.read_10x_h5(path)
    except Exception as error:
        raise InputError(
            "path", str(path), "a 10x h5 file", f"check that the download is complete ({error})."
        ) from error
    ids, symbols = adata.var.get("gene_ids"), adata.var_names.to_series()
    var = _tidy.tidy_var(adata.var_names).assign(**{KEYS.gene_symbol: symbols.to_numpy(object)})
    if ids is not None:
        var[KEYS.ensembl_id] = ids.to_numpy(object)
    facts = {KEYS.study: _tidy.study_of(path) or "", **(facts or {})}
    obs = _tidy.tidy_obs(pd.DataFrame(index=adata.obs_names), facts, response=None, what=path.name)
    fresh = ad.AnnData(adata.X, obs=obs, var=var, uns={KEYS.provenance: _tidy.provenance(path, "10x h5")})
    fresh.obs_names_make_unique()
    return _tidy.finish(fresh, path.name)


def _one(folder: Path, prefix: str, stems: tuple[str, ...]) -> Path:
    """Return the file of a triplet, whatever its compression."""
    for stem in stems:
        for ending in ("", ".gz", ".bz2", ".xz"):
            path = folder / f"{prefix}{stem}{ending}"
            if path.is_file():
                return path
    found = ", ".join(sorted(p.name for p in folder.glob("*"))[:10]) if folder.is_dir() else "no such folder"
    raise InputError("path", f"{folder} ({found})", f"{prefix}{stems[0]} (plain or .gz)", "check folder and prefix.")


def _table(path: Path) -> pd.DataFrame:
    with open_text(path) as stream:
        return pd.read_csv(stream, sep="\t", header=None, dtype=str, keep_default_na=False)
