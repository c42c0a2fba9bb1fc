"""``GSE..._RAW.tar``: one or more files per sample, each sample in its own format."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from scdrugmap._errors import InputError, ScDrugMapWarning
from scdrugmap._keys import CLASSES, KEYS
from scdrugmap.datasets.loaders import _tidy
from scdrugmap.datasets.loaders.tenx import read_10x_h5, read_10x_mtx
from scdrugmap.datasets.loaders.text import Orientation, read_text

_GENOME = r"(?i)(GRCh3[78]|hg19|hg38|GRCm3[89]|mm10|mm39|rn\d)[\w.-]*"
#: Files of a sample that hold no matrix.
_SIDE = re.compile(r"(barcodes|cells|features|genes|metadata|meta|annotation)s?\.(tsv|csv|txt)", re.IGNORECASE)


def read_raw_tar(
    path: str | Path,
    *,
    orientation: Orientation = "auto",
    samples: str = ".*",
    facts: Mapping[str, str] | None = None,
) -> ad.AnnData:
    """Read a GEO bundle, or a folder of its files, sample by sample.

    Parameters
    ----------
    path
        The archive, or a folder.
    orientation
        For text matrices, as in :func:`scdrugmap.datasets.loaders.read_text`.
    samples
        Regular expression; only files whose name matches it are read.
    facts
        Values for ``obs`` columns that hold for every cell.

    Returns
    -------
    AnnData as of :func:`scdrugmap.datasets.loaders.read_text`, all samples one after the other over all genes.
    ``obs["sample"]`` is the GEO sample (``GSM...``), ``obs["sample_title"]`` what follows it in the file name, from
    which a person can read the response; cells are called ``<sample>:<barcode>``.

    Raises
    ------
    InputError
        If no file holds a matrix that can be read.
    DownloadError
        If a member of the archive would leave its folder.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> sd.datasets.loaders.read_raw_tar("GSE139386_RAW.tar")  # doctest: +SKIP
    """
    from scdrugmap.download.archives import unpack

    path = Path(path)
    study = _tidy.study_of(path)
    facts = ({KEYS.study: study} if study else {}) | dict(facts or {})
    with tempfile.TemporaryDirectory(prefix="scdrugmap-") as scratch:
        folder = path
        if path.is_file():
            folder = Path(scratch)
            unpack(path, folder)
        _refuse_genomes(folder)
        parts, failed = _read_samples(folder, samples, orientation, facts)
    if not parts:
        fix = f"mend the files: {'; '.join(failed[:3])}" if failed else "look at what the archive holds."
        raise InputError("path", str(path), "a matrix (mtx triplet, h5 or text) per sample that can be read", fix)
    adata = ad.concat(parts, join="outer", fill_value=0, index_unique=None, merge="first")
    adata = adata[:, pd.unique(np.concatenate([part.var_names for part in parts]))].copy()  # concat sorts the genes
    adata.obs[KEYS.response] = pd.Categorical(adata.obs[KEYS.response], categories=list(CLASSES))
    adata.uns[KEYS.provenance] = _tidy.provenance(path, "raw tar", samples=sorted(set(adata.obs[KEYS.sample].dropna())))
    _tidy._warn(f"{path.name}: {_tidy.HOW_TO_LABEL}")
    return _tidy.finish(adata, path.name)


def _refuse_genomes(folder: Path) -> None:
    """Refuse one sample whose genomes lie in folders of their own: their cells are the same."""
    genomes = [
        p
        for p in sorted(folder.glob("*"))
        if p.is_dir() and re.fullmatch(_GENOME, p.name) and any(p.glob("matrix.mtx*"))
    ]
    if len(genomes) > 1:
        names = ", ".join(p.name for p in genomes)
        raise InputError(
            "path", f"{folder} with the genomes {names}", "one genome", f"read it: load({str(genomes[0])!r})."
        )


def _read_samples(
    folder: Path, samples: str, orientation: Orientation, facts: Mapping[str, str]
) -> tuple[list[ad.AnnData], list[str]]:
    """Read every file that holds a matrix; what cannot be read is named in a warning, and returned."""
    parts, failed = [], []
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and re.search(samples, p.name)):
        if _SIDE.search(file.name):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ScDrugMapWarning)  # said once, for all samples
                part = _read_one(file, orientation, facts)
        except (InputError, OSError, ValueError, KeyError, IndexError) as error:
            failed.append(f"{file.name} ({error})")
            continue
        if part is not None:
            parts.append(_label(part, file))
    if failed and parts:
        _tidy._warn(f"{len(failed)} files hold no matrix that can be read: {'; '.join(failed[:5])}")
    return parts, failed


def _read_one(file: Path, orientation: Orientation, facts: Mapping[str, str]) -> ad.AnnData | None:
    mtx = re.match(r"(?P<prefix>.*?)(matrix|counts)\.mtx(\.\w+)?$", file.name)
    if mtx:
        return read_10x_mtx(file.parent, prefix=mtx["prefix"], facts=facts)
    if file.suffix == ".h5":
        return read_10x_h5(file, facts=facts)
    if re.search(r"\.(txt|tsv|csv|tab|dge)(\.(gz|bz2|xz))?$", file.name, re.IGNORECASE):
        return read_text(file, orientation=orientation, facts=facts)
    return None


def _label(part: ad.AnnData, file: Path) -> ad.AnnData:
    """Name the sample and its cells after the file."""
    found = re.match(r"(GSM\d+)_?(.*)", file.name)
    title = re.sub(
        r"[._-]?(matrix|counts)?(\.(mtx|txt|tsv|csv|tab|dge|h5|gz|bz2|xz))+$", "", found[2] if found else file.name
    )
    part.obs["sample_title"] = title.rstrip("_")
    if found or not title.startswith("GSE"):  # a file of the whole series says nothing about its samples
        sample = found[1] if found else title or file.parent.name
        part.obs[KEYS.sample] = sample
        part.obs_names = [f"{sample}:{name}" for name in part.obs_names]
    return part
