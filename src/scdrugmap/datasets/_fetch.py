"""One call from the key of a study to its AnnData."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import anndata as ad

from scdrugmap._errors import UnknownNameError
from scdrugmap._files import atomic_path
from scdrugmap._keys import CLASSES, KEYS
from scdrugmap.datasets import loaders
from scdrugmap.datasets._catalogue import find_study, sources_of

if TYPE_CHECKING:
    import pandas as pd

    from scdrugmap.download.transfer import Progress

Source: TypeAlias = Literal["auto", "published", "drmref", "geo"]


def fetch(
    key: str,
    *,
    source: Source = "auto",
    path: str | Path | None = None,
    backed: bool = False,
    accept_licence: bool = False,
    progress: Progress = None,
) -> ad.AnnData:
    """Get a study as AnnData: downloaded, verified and converted once, then read from the cache.

    Parameters
    ----------
    key
        Key, number (``P12``, ``E3``) or accession of the catalogue, or another data set of the download registry.
    source
        ``"published"`` (labelled count matrix), ``"drmref"`` (labelled Seurat object, needs rds2py), ``"geo"``
        (unlabelled files of the series); ``"auto"`` takes the first that exists.
    path
        Read this file or folder instead of downloading.
    backed
        Leave the matrix on disk.
    accept_licence
        Accept the licence of data for non-commercial use.
    progress
        As in :func:`scdrugmap.download.fetch`.

    Returns
    -------
    AnnData with counts as CSR float32 in ``X``. ``obs``: ``response`` (resistant, sensitive; empty where the source
    does not tell), ``sample``, ``patient``, ``study`` (accession), ``drug``, ``tissue``, ``cancer_type``,
    ``time_point``, and ``cell``, which is the same for copies of one cell in several data sets of a series.
    ``uns["provenance"]``: file, SHA-256, source, key, citation, and ``sample_basis``, how samples are told apart.

    Raises
    ------
    UnknownNameError
        If there is no such study.
    InputError
        If an accession stands for several data sets, or the file cannot be read.
    DownloadError
        If the files cannot be fetched; the message says what to do by hand.

    Notes
    -----
    The published matrices do not name samples. Labels were given per sample, so all cells with one label of a data set
    share a value of ``obs["sample"]``: a sample never lies in two groups, though a group may hold several samples.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.fetch("GSE140440")  # doctest: +SKIP
    """
    from scdrugmap.download import fetch as download
    from scdrugmap.download import find

    row = _study(key)
    chosen, entry_key = _choose(row, source) if row is not None else ("file", find("datasets", key).key)
    name = str(row.name) if row is not None else entry_key
    given = Path(path) if path is not None else None
    if given is None:
        folder = download("datasets", entry_key, accept_licence=accept_licence, progress=progress)
        given = _main_file(folder, entry_key)
    converted = _place(name, chosen, given, own=path is not None)
    if converted is None:
        return _label(_load(given, row, chosen), row, chosen, entry_key)
    if not converted.exists():
        with atomic_path(converted) as scratch:
            _convert(given, row, chosen, entry_key, scratch)
    return ad.read_h5ad(converted, backed="r" if backed else None)


def _study(key: str) -> pd.Series | None:
    """Row of the catalogue, or nothing for other data sets of the registry."""
    from scdrugmap.download import entries, find

    try:
        return find_study(key)
    except UnknownNameError:
        try:
            find("datasets", key)
        except UnknownNameError:
            raise UnknownNameError(
                "key", key, list(entries("datasets")), "See scdrugmap.datasets.catalogue()."
            ) from None
        return None


def _choose(row: pd.Series, source: str) -> tuple[str, str]:
    """Source and key of the download registry."""
    known = sources_of(row)
    if source == "auto":
        source = next(s for s in ("published", "geo") if s in known)
    if source not in known:
        raise UnknownNameError("source", source, ["auto", *known], f"for {row.name}")
    return source, known[source]


def _main_file(folder: Path, entry_key: str) -> Path:
    """The file of an entry that holds the matrix; the folder where several do together."""
    from scdrugmap.download import find

    files = [f.name for f in find("datasets", entry_key).files if f.required]
    return folder / files[0] if len(files) == 1 else folder


def _place(name: str, source: str, given: Path, *, own: bool) -> Path | None:
    """Path of the converted file, named after what it was made from; none for a user's own files."""
    from scdrugmap.download import ledger

    if own or given.suffix == ".h5ad":
        return None
    parts = [given] if given.is_file() else sorted(p for p in given.iterdir() if p.is_file())
    stamp = "-".join(f"{p.stat().st_size:x}{p.stat().st_mtime_ns:x}" for p in parts[:3])
    return ledger.root() / "datasets" / ".converted" / f"{name}.{source}.{stamp}.h5ad"


def _load(given: Path, row: pd.Series | None, source: str) -> ad.AnnData:
    """Read the files with the facts of the catalogue."""
    facts = _facts(row, source) if row is not None else {}
    return loaders.read_published(given, facts=facts) if source == "published" else loaders.load(given, facts=facts)


def _convert(given: Path, row: pd.Series | None, source: str, entry_key: str, out: Path) -> None:
    """Write the labelled study to ``out``; a published matrix never comes into memory."""
    import h5py
    from anndata.io import write_elem

    if source != "published" or row is None:
        _label(_load(given, row, source), row, source, entry_key).write_h5ad(out)
        return
    adata = _label(
        loaders.read_published(given, facts=_facts(row, source), out=out, backed=True), row, source, entry_key
    )
    adata.file.close()
    with h5py.File(out, "r+") as file:
        for name, table in (("obs", adata.obs), ("uns", dict(adata.uns))):
            del file[name]
            write_elem(file, name, table)


def _facts(row: pd.Series, source: str) -> dict[str, str]:
    """What the catalogue knows of every cell; a series in GEO may hold more than this one data set."""
    facts = {KEYS.study: row["accession"]}
    if source != "geo":
        facts |= {KEYS.drug: row["drug"], KEYS.tissue: row["tissue"], KEYS.cancer_type: row["cancer_type"]}
    if source == "published":
        facts[KEYS.time_point] = row["time_point"]
    return facts


def _label(adata: ad.AnnData, row: pd.Series | None, source: str, entry_key: str) -> ad.AnnData:
    """Add sample, cell identity and the origin of the data."""
    from scdrugmap.download import find

    entry = find("datasets", entry_key)
    record: dict[str, Any] = adata.uns[KEYS.provenance]
    record |= {
        "key": entry_key,
        "source": source,
        "licence": entry.licence,
        "citation": entry.citation,
        "page": entry.source,
    }
    if row is None:
        return adata
    record["problems"] = row["problems"]
    adata.obs["cell"] = [f"{row['accession']}:{name}" for name in adata.obs_names]
    if source != "published":
        record["sample_basis"] = "as in the source"
        return adata
    labels = adata.obs[KEYS.response].astype(object)
    owner = dict.fromkeys(CLASSES, row.name)
    if row["shared_control"]:
        owner[CLASSES[1]] = row["accession"]  # the untreated cells are the same in all data sets of the series
    adata.obs[KEYS.sample] = labels.map(lambda c: f"{owner[c]}:{c}", na_action="ignore").astype("category")
    exact = bool(row["one_sample_per_label"]) and not row["shared_control"]
    record["sample_basis"] = "one sample per label" if exact else "one group per label; its samples are not told apart"
    return adata
