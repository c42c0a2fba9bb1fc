"""Text matrices as GEO holds them: genes x cells or cells x genes, any separator, plain or compressed."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from itertools import chain, compress
from pathlib import Path
from typing import Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from scdrugmap._errors import InputError
from scdrugmap._keys import KEYS
from scdrugmap.datasets.loaders import _roles, _tidy
from scdrugmap.datasets.loaders._parse import Layout, blocks, sniff
from scdrugmap.datasets.loaders._store import CsrStore, transposed
from scdrugmap.genes.features import feature_kinds

Orientation = Literal["auto", "genes x cells", "cells x genes"]

#: Symbols that are in nearly every matrix, human or mouse, to tell a list of genes from a list of cells.
COMMON = frozenset(
    [
        "ACTB",
        "ACTG1",
        "B2M",
        "CD63",
        "EEF1A1",
        "ENO1",
        "FTH1",
        "FTL",
        "GAPDH",
        "HSP90AB1",
        "HSPA8",
        "LDHA",
        "MALAT1",
        "MT-CO1",
        "MT-CO2",
        "MT-ND1",
        "MYL6",
        "NPM1",
        "PABPC1",
        "PFN1",
        "PPIA",
        "PTMA",
        "RACK1",
        "RPL10",
        "RPL13",
        "RPL3",
        "RPLP0",
        "RPLP1",
        "RPS12",
        "RPS18",
        "RPS2",
        "RPS27",
        "RPS3",
        "TMSB10",
        "TMSB4X",
        "TPT1",
        "TUBA1B",
        "UBA52",
        "VIM",
        "YBX1",
    ]
)


def read_text(
    path: str | Path,
    *,
    orientation: Orientation = "auto",
    n_labels: int | None = None,
    response: str | None = None,
    facts: Mapping[str, str] | None = None,
    out: str | Path | None = None,
    backed: bool = False,
) -> ad.AnnData:
    r"""Read a text matrix of counts.

    The file is parsed some rows at a time straight to CSR and written to an h5ad file, so that memory holds one
    block, and with ``backed=True`` never the matrix.

    Parameters
    ----------
    path
        Text file, plain or compressed (gzip, bzip2, xz); separator and header form are recognised.
    orientation
        Whether a row is a gene or a cell; recognised by the names if ``"auto"``.
    n_labels
        Leading text columns; recognised if left out. With cells in rows the further ones go to ``obs``; with genes in
        rows symbols and Ensembl ids are told by their content, and other columns go to ``var``.
    response
        Label column that holds the response as text.
    facts
        Values for ``obs`` columns (``drug``, ``tissue`` ...) that hold for every cell.
    out
        Keep the converted h5ad file here.
    backed
        Return the AnnData backed by ``out``.

    Returns
    -------
    AnnData with counts as CSR float32 in ``X``; ``obs`` has ``response`` (categorical, empty where unknown),
    ``sample``, ``patient``, ``study``, ``drug``, ``tissue``, ``cancer_type`` and ``time_point``; ``uns["provenance"]``
    holds file name, SHA-256, reader, version and whether the values are counts.

    Raises
    ------
    InputError
        If the file is no matrix of numbers (the message names the line), is cut off, or the orientation cannot be told.

    Warns
    -----
    ScDrugMapWarning
        Columns or rows are no genes or cells (a response of 0 and 1, clusters, lengths, totals): they go to ``obs`` or
        ``var``, and rows that add up others are left out.

    Examples
    --------
    >>> from pathlib import Path
    >>> import tempfile, scdrugmap as sd
    >>> path = Path(tempfile.mkdtemp()) / "counts.tsv"
    >>> _ = path.write_text("gene\tc1\tc2\nACTB\t3\t0\nTP53\t0\t1\n")
    >>> sd.datasets.loaders.read_text(path, orientation="genes x cells").shape
    (2, 2)
    """
    path = Path(path)
    if backed and out is None:
        raise InputError("out", out, "a path where backed=True", "say where the h5ad file may be written.")
    if response is not None and orientation == "auto":
        orientation = "cells x genes"
    layout = sniff(path, n_labels)
    genes_in_rows = _genes_in_rows(path, layout, orientation)
    facts = {KEYS.study: _tidy.study_of(path) or "", **(facts or {})}
    with tempfile.TemporaryDirectory(prefix="scdrugmap-") as scratch:
        target = Path(out) if out is not None else Path(scratch) / "converted.h5ad"
        target.parent.mkdir(parents=True, exist_ok=True)
        if genes_in_rows:
            _convert_genes(path, layout, target, facts)
        else:
            _convert_cells(path, layout, target, facts, response)
        return ad.read_h5ad(target, backed="r" if backed else None)


def _genes_in_rows(path: Path, layout: Layout, orientation: Orientation) -> bool:
    """Tell the orientation by the names of columns and of the first rows."""
    if orientation != "auto":
        if orientation not in ("genes x cells", "cells x genes"):
            raise InputError(
                "orientation", orientation, "'auto', 'genes x cells' or 'cells x genes'", "use one of these."
            )
        return orientation == "genes x cells"
    if _like_genes(layout.names):
        return False
    rows = [label for row in next(blocks(path, layout)).labels for label in row]
    if _like_genes(rows) or _like_barcodes(layout.names):
        return True
    raise InputError(
        "orientation",
        f"columns {', '.join(layout.names[:3])} ..., rows {', '.join(rows[:3])} ...",
        "names of genes on one side",
        "pass orientation='genes x cells' or 'cells x genes'.",
    )


def _like_genes(names: tuple[str, ...] | list[str]) -> bool:
    hits = sum(n.upper() in COMMON or bool(re.match(r"ENS[A-Z]*G\d{6,}", n)) for n in names)
    return hits >= min(3, len(names))


def _like_barcodes(names: tuple[str, ...]) -> bool:
    hits = sum(bool(re.search(r"(?<![A-Za-z])[ACGT]{8,}(?![A-Za-z])", n)) for n in names[:200])
    return hits > len(names[:200]) / 2


class _Watch:
    """Notice on the way whether all values are counts."""

    counts = True

    def __call__(self, matrix: sparse.csr_matrix) -> sparse.csr_matrix:
        self.counts &= _tidy.looks_like_counts(matrix.data)
        return matrix


def _uns(path: Path, watch: _Watch) -> dict[str, Any]:
    values = "counts" if watch.counts else "not counts"
    if not watch.counts:
        _tidy._warn(f"{path.name}: the values are not counts; models that need raw counts will refuse them.")
    return {KEYS.provenance: _tidy.provenance(path, "text", values=values)}


def _convert_cells(path: Path, layout: Layout, target: Path, facts: Mapping[str, str], response: str | None) -> None:
    labels: list[tuple[str, ...]] = []
    annotation: list[np.ndarray] = []
    watch = _Watch()
    foreign = _roles.not_genes(layout.names, next(blocks(path, layout)).values)
    _say_left_out(path, "columns are no genes and go to obs", np.asarray(layout.names)[foreign])
    with CsrStore(target, int((~foreign).sum())) as store:
        for block in blocks(path, layout):
            cells = ~_roles.tallies([row[0] if row else "" for row in block.labels])
            _say_left_out(path, "rows add up others and are left out", [r[0] for r in compress(block.labels, ~cells)])
            labels += compress(block.labels, cells)
            values = block.values if cells.all() else block.values[cells]
            annotation.append(values[:, foreign].toarray())
            store.append(watch(values[:, ~foreign] if foreign.any() else values))
        names = [n or f"label_{i}" for i, n in enumerate(layout.labels)]
        obs = pd.DataFrame(labels, columns=names)
        obs = obs.join(_numbers(np.concatenate(annotation), np.asarray(layout.names)[foreign]), rsuffix="_2")
        obs.index = pd.Index(_unique(obs.iloc[:, 0]))
        obs = obs.iloc[:, 1:]
        if response is not None and response not in obs:
            raise InputError(
                "response",
                response,
                f"one of {', '.join(map(str, obs.columns)) or 'no columns'}",
                "name a label column.",
            )
        table = _tidy.tidy_obs(obs, facts, response=response, what=path.name)
        store.finish(table, _tidy.tidy_var(pd.Index(np.asarray(layout.names)[~foreign])), _uns(path, watch))


def _convert_genes(path: Path, layout: Layout, target: Path, facts: Mapping[str, str]) -> None:
    labels: list[tuple[str, ...]] = []
    annotation: list[np.ndarray] = []
    watch = _Watch()
    foreign = _roles.not_cells(layout.names, next(blocks(path, layout)).values)
    _say_left_out(path, "columns are no cells and go to var", np.asarray(layout.names)[foreign])

    def rows() -> Iterator[sparse.csr_matrix]:
        for block in blocks(path, layout):
            labels.extend(block.labels)
            annotation.append(block.values[:, foreign].toarray())
            yield block.values[:, ~foreign] if foreign.any() else block.values

    turned = transposed(rows(), int((~foreign).sum()), target.parent)
    first = next(turned)  # all genes have been read by now
    table = pd.DataFrame(labels, columns=[n or f"label_{i}" for i, n in enumerate(layout.labels)])
    roles = _roles.text_columns(table)
    strange = _roles.not_genes(roles.names.tolist())
    adds_up = _roles.tallies(roles.names.tolist()) & (feature_kinds(roles.names) == "")
    genes = ~strange & ~adds_up
    _say_left_out(path, "rows are no genes and go to obs", roles.names[strange & ~adds_up])
    _say_left_out(path, "rows add up others and are left out", roles.names[adds_up])
    more: list[np.ndarray] = []
    with CsrStore(target, int(genes.sum())) as store:
        for part in chain([first], turned):
            more.append(part[:, strange & ~adds_up].toarray())
            store.append(watch(part if genes.all() else part[:, genes]))
        obs = _numbers(np.concatenate(more), roles.names[strange & ~adds_up].to_numpy(str))
        obs.index = pd.Index(_unique(pd.Series(np.asarray(layout.names)[~foreign])))
        obs = _tidy.tidy_obs(obs, facts, response=None, what=path.name)
        var = _tidy.tidy_var(
            pd.Index(roles.names[genes]),
            symbols=None if roles.symbols is None else roles.symbols[genes],
            ensembl=None if roles.ensembl is None else roles.ensembl[genes],
        )
        numbers = _numbers(np.concatenate(annotation), np.asarray(layout.names)[foreign])
        for column, values in {**roles.others, **numbers}.items():
            var[column] = np.asarray(values)[genes]
        store.finish(obs, var, _uns(path, watch))


def _numbers(values: np.ndarray, names: np.ndarray) -> pd.DataFrame:
    """Columns of annotation: whole numbers as such."""
    columns = {}
    for name, column in zip(names, values.T, strict=True):
        whole = bool((column == np.rint(column)).all())
        columns[str(name) or "unnamed"] = column.astype(np.int64) if whole else column.astype(np.float64)
    return pd.DataFrame(columns, index=pd.RangeIndex(len(values)))


def _say_left_out(path: Path, what: str, names: Any) -> None:
    names = list(map(str, names))
    if names:
        more = " ..." if len(names) > 10 else ""
        _tidy._warn(f"{path.name}: {len(names)} {what}: {', '.join(map(repr, names[:10]))}{more}.")


def _unique(names: pd.Series) -> pd.Index:
    from anndata.utils import make_index_unique

    index = pd.Index(names.astype(str))
    return index if index.is_unique else make_index_unique(index)
