"""Dot plot of gene sets."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from scdrugmap import _anndata
from scdrugmap._errors import InputError
from scdrugmap._keys import KEYS
from scdrugmap.figures import axes as _axes
from scdrugmap.figures import interpretation as draw

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from mudata import MuData


def pathways(
    adata: AnnData | MuData,
    *,
    n_sets: int = 20,
    q: float = 0.05,
    mod: str = "rna",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Draw the score of the most significant sets.

    Parameters
    ----------
    adata
        After :func:`scdrugmap.tl.pathways`.
    n_sets
        Sets to show.
    q
        False-discovery rate below which dots are filled.
    mod
        Modality of a MuData.
    ax, show, save
        As in :func:`scdrugmap.pl.benchmark`.

    Returns
    -------
    matplotlib.axes.Axes or None
        The axes, or ``None`` with ``show=True``. The size of a dot is the number of genes; lines are 95 % intervals over
        samples.

    Raises
    ------
    MissingKeyError
        If there is no table.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=1, n_cells=300, n_genes=300, rng=0)
    >>> sd.tl.biomarkers(adata)
    >>> sd.tl.pathways(adata, source="resistance", min_genes=1)
    >>> ax = sd.pl.pathways(adata)
    """
    table = draw.read_table(_anndata.resolve(adata, mod=mod), KEYS.pathways, "pathways")
    if not 0 < q <= 1:
        raise InputError("q", q, "a rate from 0 to 1", "pass q=0.05.")
    table = table.head(draw.positive("n_sets", n_sets)).sort_values("score", ascending=False)
    return _axes.finish(draw.dots(ax, table, q=q), show=show, save=save)
