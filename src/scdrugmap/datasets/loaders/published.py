"""The tab-delimited matrices of the published collection: barcode, condition, counts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import anndata as ad

from scdrugmap._errors import InputError
from scdrugmap.datasets.loaders._parse import sniff
from scdrugmap.datasets.loaders.text import read_text


def read_published(
    path: str | Path,
    *,
    facts: Mapping[str, str] | None = None,
    out: str | Path | None = None,
    backed: bool = False,
) -> ad.AnnData:
    r"""Read one matrix of the published collection.

    Parameters
    ----------
    path
        Tab-delimited text (the files are called ``.csv``), plain or compressed: a header, then one row per cell with
        the barcode, a condition text that contains ``sensitive`` or ``resistant``, and integer counts per gene symbol.
    facts
        Values for ``obs`` columns that hold for every cell.
    out
        Keep the converted h5ad file here.
    backed
        Return the AnnData backed by ``out``.

    Returns
    -------
    AnnData as of :func:`scdrugmap.datasets.loaders.read_text`; ``obs`` also keeps the condition as it was.

    Raises
    ------
    InputError
        If the second column is not a text, or a row is damaged.

    Examples
    --------
    >>> from pathlib import Path
    >>> import tempfile, scdrugmap as sd
    >>> path = Path(tempfile.mkdtemp()) / "GSE1_mal_countsMatrix.csv"
    >>> _ = path.write_text('"Cell_barcode"\t"Condition"\t"ACTB"\t"TP53"\nAAAC-1\tsensitive\t3\t0\n')
    >>> sd.datasets.loaders.read_published(path).obs["response"].tolist()
    ['sensitive']
    """
    layout = sniff(Path(path))
    if len(layout.labels) != 2:
        raise InputError(
            "path",
            f"{len(layout.labels)} text columns in {Path(path).name}",
            "a barcode and a condition before the counts",
            "use read_text for other matrices.",
        )
    return read_text(
        path, orientation="cells x genes", response=layout.labels[1] or "label_1", facts=facts, out=out, backed=backed
    )
