"""10x Genomics output: Matrix Market folders, also with the prefixes that GEO gives, and h5 files."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse
from scipy.io import mmread

from scdrugmap._errors import InputError
from scdrugmap._keys import KEYS
from scdrugmap.datasets.loaders import _roles, _tidy
from scdrugmap.datasets.loaders._parse import damaged, decode, open_text

_TABLES = (".tsv", ".csv", ".txt")
GENE = "Gene Expression"


def read_10x_mtx(
    path: str | Path,
    *,
    prefix: str = "",
    features: str | Path | None = None,
    facts: Mapping[str, str] | None = None,
) -> ad.AnnData:
    """Read a Matrix Market triplet (matrix, barcodes, features or genes), plain or compressed.

    A header line of the tables is skipped, a matrix of cells x genes is turned, and symbols and Ensembl ids are told by
    their content.

    Parameters
    ----------
    path
        Folder of the three files.
    prefix
        What stands before ``matrix.mtx``, ``barcodes.tsv`` and ``features.tsv`` in the file names.
    features
        The list of the genes where it has another prefix; by default the only such file of the folder.
    facts
        Values for ``obs`` columns that hold for every cell.

    Returns
    -------
    AnnData as of :func:`scdrugmap.datasets.loaders.read_text`, with ``var["ensembl_id"]`` and ``var["gene_symbol"]``.
    Only rows of the type Gene Expression are kept where the file tells types.

    Raises
    ------
    InputError
        If a file is missing or cut off, or the three do not fit together.

    Warns
    -----
    ScDrugMapWarning
        Rows of other types are left out.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> sd.datasets.loaders.read_10x_mtx("GSE1/", prefix="GSM1_tumor_")  # doctest: +SKIP
    """
    folder = Path(path)
    matrix_file = _one(folder, prefix, ("matrix", "counts"), (".mtx",))
    cells = _table(_one(folder, prefix, ("barcodes", "cells"), _TABLES))
    genes = _table(_features(folder, prefix, features))
    with open_text(matrix_file) as stream:
        try:
            matrix = sparse.csr_matrix(mmread(stream))
        except (ValueError, TypeError, OverflowError) as error:
            raise damaged(matrix_file, error) from error
    matrix, genes, cells = _fit(matrix, genes, cells, folder)
    types = next((c for c in genes if (genes[c] == GENE).any()), None)
    if types is not None and not (genes[types] == GENE).all():
        kept = (genes[types] == GENE).to_numpy()
        _say_types(genes[types][~kept], matrix_file.name)
        matrix, genes = matrix[:, kept], genes[kept].reset_index(drop=True)
    roles = _roles.text_columns(genes.drop(columns=[] if types is None else types), prefer_symbols=True)
    var = _tidy.tidy_var(pd.Index(roles.names), symbols=roles.symbols, ensembl=roles.ensembl)
    index = pd.Index(_barcodes(cells).astype(str))
    facts = {KEYS.study: _tidy.study_of(matrix_file) or _tidy.study_of(folder) or "", **(facts or {})}
    obs = _tidy.tidy_obs(pd.DataFrame(index=index), facts, response=None, what=matrix_file.name)
    adata = ad.AnnData(matrix.astype("float32"), obs=obs, var=var)
    adata.obs_names_make_unique()
    adata.uns[KEYS.provenance] = _tidy.provenance(matrix_file, "10x mtx")
    return _tidy.finish(adata, matrix_file.name)


def _fit(
    matrix: sparse.csr_matrix, genes: pd.DataFrame, cells: pd.DataFrame, folder: Path
) -> tuple[sparse.csr_matrix, pd.DataFrame, pd.DataFrame]:
    """Bring the three together as cells x genes: a header line is left out, a turned matrix is turned back."""
    for (skip_genes, skip_cells), turned in product(((0, 0), (1, 0), (0, 1), (1, 1)), (False, True)):
        shape = (len(genes) - skip_genes, len(cells) - skip_cells)
        if matrix.shape != (shape[::-1] if turned else shape):
            continue
        if all(_roles.reads_as_header(t.iloc[0]) for t, skip in ((genes, skip_genes), (cells, skip_cells)) if skip):
            genes, cells = (
                t.iloc[skip:].reset_index(drop=True) for t, skip in ((genes, skip_genes), (cells, skip_cells))
            )
            return (matrix if turned else matrix.T.tocsr()), genes, cells
    near = any(abs(n - m) == 1 for n, m in zip(matrix.shape, (len(genes), len(cells)), strict=True))
    hint = " One line too many may be a header: remove it." if near else ""
    raise InputError(
        "path",
        f"a {matrix.shape[0]} x {matrix.shape[1]} matrix, {len(genes)} genes and {len(cells)} barcodes in {folder}",
        "three complete files of one sample",
        f"check the prefix, or name the list of genes with features=.{hint}",
    )


def _barcodes(cells: pd.DataFrame) -> pd.Series:
    """The column with the names of the cells: the first that is not a mere count of lines."""
    for column in cells:
        numbers = pd.to_numeric(cells[column], errors="coerce")
        if cells.shape[1] == 1 or not (numbers.diff().iloc[1:] == 1).all():
            return cells[column]
    return cells[cells.columns[0]]


def read_10x_h5(path: str | Path, *, genome: str | None = None, facts: Mapping[str, str] | None = None) -> ad.AnnData:
    """Read a 10x h5 file (version 2 or 3); only gene expression is kept.

    Parameters
    ----------
    path
        The file.
    genome
        Genome to read, where the file holds several.
    facts
        Values for ``obs`` columns that hold for every cell.

    Returns
    -------
    AnnData as of :func:`scdrugmap.datasets.loaders.read_text`, with ``var["ensembl_id"]`` and ``var["gene_symbol"]``.

    Raises
    ------
    InputError
        If the file is not of that form, or holds several genomes and none is named.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> sd.datasets.loaders.read_10x_h5("filtered_feature_bc_matrix.h5")  # doctest: +SKIP
    """
    import scanpy as sc

    path = Path(path)
    _check_genome(path, genome)
    try:
        adata = sc.read_10x_h5(path, genome=genome, gex_only=False)
    except Exception as error:
        raise InputError(
            "path", str(path), "a 10x h5 file", f"check that the download is complete ({error})."
        ) from error
    types = adata.var.get("feature_types")
    if types is not None and (types == GENE).any() and not (types == GENE).all():
        _say_types(types[types != GENE], path.name)
        adata = adata[:, (types == GENE).to_numpy()].copy()
    ids, symbols = adata.var.get("gene_ids"), adata.var_names.to_series()
    var = _tidy.tidy_var(adata.var_names).assign(**{KEYS.gene_symbol: symbols.to_numpy(object)})
    if ids is not None:
        var[KEYS.ensembl_id] = ids.to_numpy(object)
    facts = {KEYS.study: _tidy.study_of(path) or "", **(facts or {})}
    obs = _tidy.tidy_obs(pd.DataFrame(index=adata.obs_names), facts, response=None, what=path.name)
    fresh = ad.AnnData(adata.X, obs=obs, var=var, uns={KEYS.provenance: _tidy.provenance(path, "10x h5")})
    fresh.obs_names_make_unique()
    return _tidy.finish(fresh, path.name)


def _check_genome(path: Path, genome: str | None) -> None:
    """Refuse a file of several genomes where none, or another, is named."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if "matrix" in file:
                place: Any = file.get("matrix/features/genome")
                known = [] if place is None else sorted({g.decode() for g in np.unique(place[:])} - {""})
            else:
                known = sorted(
                    name for name, group in file.items() if isinstance(group, h5py.Group) and "barcodes" in group
                )
    except (OSError, KeyError, AttributeError):
        return  # no 10x file; the reader says so
    if known and (len(known) > 1 if genome is None else genome not in known):
        raise InputError(
            "genome", genome, f"one of the genomes of {path.name}: {', '.join(known)}", f"pass genome={known[0]!r}."
        )


def _say_types(types: pd.Series, name: str) -> None:
    listing = ", ".join(f"{n:,} {kind}" for kind, n in types.value_counts().items())
    _tidy._warn(f"{name}: features that are no genes are left out: {listing}.")


def _features(folder: Path, prefix: str, features: str | Path | None) -> Path:
    """The list of the genes: the one that is named, that of the sample, or the only one that serves all."""
    stems = ("features", "genes")
    if features is not None:
        given = Path(features)
        for path in (given, folder / given):
            if path.is_file():
                return path
        raise InputError("features", str(features), "a file that exists", "check the path.")
    try:
        return _one(folder, prefix, stems, _TABLES)
    except InputError:
        for place in (folder, folder.parent):
            shared = [
                p for p in sorted(place.glob("*")) if re.search(r"(features|genes)\.(tsv|csv|txt)(\.\w+)?$", p.name)
            ]
            if len(shared) == 1:
                return shared[0]
            if len(shared) > 1:
                break
        raise InputError(
            "path",
            f"no {prefix}features.tsv in {folder}"
            + (f", but {', '.join(p.name for p in shared[:5])}" if shared else ""),
            "a list of the genes for every matrix (plain or .gz)",
            "check folder and prefix, or name the file: read_10x_mtx(folder, prefix=..., features=...).",
        ) from None


def _one(folder: Path, prefix: str, stems: tuple[str, ...], kinds: tuple[str, ...]) -> Path:
    """Return the file of a triplet, whatever its compression."""
    for stem, kind, ending in product(stems, kinds, ("", ".gz", ".bz2", ".xz")):
        path = folder / f"{prefix}{stem}{kind}{ending}"
        if path.is_file():
            return path
    found = ", ".join(sorted(p.name for p in folder.glob("*"))[:10]) if folder.is_dir() else "no such folder"
    raise InputError(
        "path", f"{folder} ({found})", f"{prefix}{stems[0]}{kinds[0]} (plain or .gz)", "check folder and prefix."
    )


def _table(path: Path) -> pd.DataFrame:
    """Read a list of genes or cells, separated by tabs or, where there are none, commas."""
    with open_text(path) as stream:
        content = stream.read()
    separator = "\t" if b"\t" in content or b"," not in content else ","
    options: dict[str, Any] = {"sep": separator, "header": None, "dtype": str, "keep_default_na": False}
    try:
        return pd.read_csv(io.BytesIO(decode(content).encode()), **options)
    except ValueError as error:
        raise damaged(path, error) from error
