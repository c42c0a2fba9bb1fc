"""Volcano of the genes that differ between resistant and sensitive samples."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from scdrugmap import _anndata
from scdrugmap._errors import InputError, UnknownNameError
from scdrugmap._keys import KEYS
from scdrugmap.figures import axes as _axes
from scdrugmap.figures import interpretation as draw

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from mudata import MuData


def biomarkers(
    adata: AnnData | MuData,
    *,
    stratum: str | None = None,
    q: float = 0.05,
    n_labels: int = 16,
    mod: str = "rna",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Draw effect against evidence of every gene.

    Parameters
    ----------
    adata
        After :func:`scdrugmap.tl.biomarkers`.
    stratum
        Which stratum, where there are several; by default the first.
    q
        False-discovery rate below which genes are coloured.
    n_labels
        Genes to name.
    mod
        Modality of a MuData.
    ax, show, save
        As in :func:`scdrugmap.pl.benchmark`.

    Returns
    -------
    matplotlib.axes.Axes or None
        The axes, or ``None`` with ``show=True``. Right is higher in resistant samples. Without p values the height is the
        share of cells that express the gene. Circles mark genes whose effect a confounder explains.

    Raises
    ------
    MissingKeyError
        If there is no table.
    InputError
        If there is no effect, ``ax`` is not axes, or the file cannot be written.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=1, n_cells=300, n_genes=200, rng=0)
    >>> sd.tl.biomarkers(adata)
    >>> ax = sd.pl.biomarkers(adata)
    """
    table = draw.read_table(_anndata.resolve(adata, mod=mod), KEYS.biomarkers, "biomarkers")
    if not 0 < q <= 1:
        raise InputError("q", q, "a rate from 0 to 1", "pass q=0.05.")
    if "stratum" in table:
        names = table["stratum"].unique().tolist()
        if stratum is not None and stratum not in names:
            raise UnknownNameError("stratum", stratum, names)
        table = table[table["stratum"] == (stratum or names[0])]
    return _axes.finish(
        draw.volcano(ax, table, q=q, n_labels=draw.positive("n_labels", n_labels)), show=show, save=save
    )
