"""Studies under one another: counts and embeddings stay on the disk, only the annotation of the cells is in memory."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from scdrugmap import pp
from scdrugmap._errors import ScDrugMapWarning
from scdrugmap._files import atomic_path
from scdrugmap._keys import KEYS
from scdrugmap.study.cells import KEPT, embedding_file
from scdrugmap.study.chosen import Chosen
from scdrugmap.study.spec import ReproduceSpec


def join(spec: ReproduceSpec, chosen: Chosen, studies: Mapping[str, Path], collection: str) -> ad.AnnData | None:
    """Put the studies of a collection under one another, with the genes that all have, and the embeddings.

    The counts are written to ``joined/<collection>``, block by block, and stay there; embeddings are memory-mapped.

    Parameters
    ----------
    spec, chosen, studies
        The run and its files.
    collection
        Of the catalogue.

    Returns
    -------
    The cells, backed; ``None`` if there is no study. A model that failed on a study has no embedding of its cells (NaN).
    """
    keys = [k for k in studies if chosen.table.loc[k, "collection"] == collection]
    if not keys:
        return None
    folder = spec.store / "joined" / collection
    folder.mkdir(parents=True, exist_ok=True)
    target = _latest(folder, "counts", ".h5ad", [studies[k] for k in keys])
    if not target.exists():
        with warnings.catch_warnings():
            # Series that share their controls are known, and each benchmark says what it does about copies.
            warnings.simplefilter("ignore", ScDrugMapWarning)
            pp.concat_studies({k: studies[k] for k in keys}, path=target).file.close()
    obs = [_annotation(studies[k]) for k in keys]
    joined = opened(target, pd.concat(obs).astype("category"))
    sizes = [len(o) for o in obs]
    for card in chosen.networks:
        files = [embedding_file(spec, key, card.key) for key in keys]
        if not any(f.exists() for f in files):
            continue
        whole = _latest(folder, card.key, ".npy", files)
        if not whole.exists():
            _stack(files, sizes, whole)
        joined.obsm[KEYS.embedding(card.key)] = np.load(whole, mmap_mode="r")
        joined.uns[card.key] = {
            "params": {"context": KEYS.sample}, KEYS.provenance: {"model": card.name, "context": KEYS.sample},
        }  # fmt: skip
    return joined


def opened(file: str | Path, obs: pd.DataFrame) -> ad.AnnData:
    """Open joined counts with an annotation of one's own and without embeddings.

    Parameters
    ----------
    file
        That :func:`join` wrote; the attribute ``filename`` of what it returned.
    obs
        One row per cell.
    """
    cells = ad.read_h5ad(file, backed="r")
    cells.obs = obs.copy()
    # What the file says about the studies is keyed by data set, and here a study is a series.
    cells.uns = {}
    return cells


def chosen_rows(cells: ad.AnnData, rows: np.ndarray) -> ad.AnnData:
    """Counts and annotation of some rows, in memory.

    Parameters
    ----------
    cells
        From :func:`join`.
    rows
        In ascending order.
    """
    return ad.AnnData(X=cells.X[rows], obs=cells.obs.iloc[rows].copy(), var=cells.var.copy())


def _annotation(file: Path) -> pd.DataFrame:
    """The columns of ``obs`` that the run needs, as text."""
    study = ad.read_h5ad(file, backed="r")
    try:
        return study.obs[[c for c in KEPT if c in study.obs]].astype(str).replace("nan", None)
    finally:
        study.file.close()


def _latest(folder: Path, stem: str, end: str, files: Sequence[Path]) -> Path:
    """Name for what is made of these files as they are now; what was made of other ones is removed."""
    facts = [(f.parent.name, f.name, s.st_size, s.st_mtime_ns) for f in files if f.exists() for s in [f.stat()]]
    target = folder / f"{stem}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}{end}"
    for old in folder.glob(f"{stem}-{'?' * 16}{end}"):
        if old != target:
            old.unlink()
    return target


def _stack(files: Sequence[Path], sizes: Sequence[int], target: Path) -> None:
    """Write embeddings of several studies as one array; rows of NaN where a study has none."""
    there = {f: np.load(f, mmap_mode="r") for f in files if f.exists()}
    shape = (sum(sizes), next(iter(there.values())).shape[1])
    with atomic_path(target) as scratch:
        out: Any = np.lib.format.open_memmap(scratch, mode="w+", dtype=np.float32, shape=shape)
        first = 0
        for file, size in zip(files, sizes, strict=True):
            out[first : first + size] = there.get(file, np.nan)
            first += size
        out.flush()
