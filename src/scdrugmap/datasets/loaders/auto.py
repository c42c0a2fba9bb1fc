"""One call that picks the reader by the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata as ad

from scdrugmap._disk import is_collection, open_cells, shards_of
from scdrugmap._errors import InputError

#: Endings of what is read as a whole.
_WHOLE = (".h5", ".hdf5", ".rds", ".tar", ".tar.gz", ".tgz", ".zip")


def load(
    path: str | Path | Any, *, facts: Mapping[str, str] | None = None, backed: bool = False, **options: Any
) -> ad.AnnData:
    """Read a study from what its source holds, whatever the format.

    Parameters
    ----------
    path
        ``.h5ad``, 10x ``.h5``, ``.RDS``, ``.tar``, a folder with one or several samples, or a text matrix. With
        ``backed`` also a zarr store, a folder of ``.h5ad`` files (or stores) with the same genes, or an AnnCollection.
    facts
        Values for ``obs`` columns (``drug``, ``tissue`` ...) that hold for every cell.
    backed
        Leave the counts of ``.h5ad`` files and zarr stores where they are, as they are: every tool reads them block by
        block. Several files are one object, in the order of their names. Pairwise matrices stay in the file.
    **options
        Passed to the reader.

    Returns
    -------
    AnnData as of :func:`scdrugmap.datasets.loaders.read_text`; with ``backed``, what is in the file.

    Raises
    ------
    InputError
        If there is no such file or it is in no known format, or files of a folder have different genes.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.load("GSE139386_RAW.tar")  # doctest: +SKIP
    """
    from scdrugmap.datasets import loaders
    from scdrugmap.datasets.loaders._parse import sniff

    if is_collection(path):
        return open_cells(path)
    path = Path(path)
    if backed and path.exists() and shards_of(path):
        return open_cells(path)
    if not path.exists():
        raise InputError("path", str(path), "an existing file or folder", "check the spelling.")
    name = path.name.lower()
    if backed and (path.is_dir() or ".mtx" in name or name.endswith(_WHOLE)):
        raise InputError(
            "path",
            f"{path}, with backed=True",
            "a .h5ad file, a zarr store, or a folder that holds some",
            "leave backed out, write the result with adata.write_h5ad, and open that file.",
        )
    if path.is_dir():
        triplet = any((path / f"matrix.mtx{end}").is_file() for end in ("", ".gz", ".bz2", ".xz"))
        return (
            loaders.read_10x_mtx(path, facts=facts, **options)
            if triplet
            else loaders.read_raw_tar(path, facts=facts, **options)
        )
    if name.endswith(".h5ad"):
        return loaders.read_h5ad(path, facts=facts, **options)
    if name.endswith((".h5", ".hdf5")):
        return loaders.read_10x_h5(path, facts=facts, **options)
    if name.endswith(".rds"):
        return loaders.read_seurat_rds(path, facts=facts, **options)
    if name.endswith((".tar", ".tar.gz", ".tgz", ".zip")):
        return loaders.read_raw_tar(path, facts=facts, **options)
    if ".mtx" in name:
        prefix = path.name.split("matrix.mtx")[0] if "matrix.mtx" in path.name else path.name.split("counts.mtx")[0]
        return loaders.read_10x_mtx(path.parent, prefix=prefix, facts=facts, **options)
    if backed:
        options["backed"] = True  # text is converted on disk, to ``out``
    labels = [label.lower() for label in sniff(path).labels]
    if len(labels) == 2 and labels[1] in ("condition", "response", "label") and "orientation" not in options:
        return loaders.read_published(path, facts=facts, **options)
    return loaders.read_text(path, facts=facts, **options)
