"""Waterfall of in-silico perturbations."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from scdrugmap import _anndata
from scdrugmap._keys import KEYS
from scdrugmap.figures import axes as _axes
from scdrugmap.figures import interpretation as draw

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from mudata import MuData


def perturb(
    adata: AnnData | MuData,
    *,
    n_genes: int = 24,
    mod: str = "rna",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Draw how far each perturbed gene moves the prediction, from re-sensitising to the opposite.

    Parameters
    ----------
    adata
        After :func:`scdrugmap.tl.perturb`.
    n_genes
        Genes to show, from both ends.
    mod
        Modality of a MuData.
    ax, show, save
        As in :func:`scdrugmap.pl.benchmark`.

    Returns
    -------
    matplotlib.axes.Axes or None
        The axes, or ``None`` with ``show=True``. Lines are 95 % intervals over samples.

    Raises
    ------
    MissingKeyError
        If there is no table.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=1, n_cells=120, n_genes=80, rng=0)
    >>> predictor = sd.tl.train(adata, model="pca", head="logistic", rng=0)
    >>> sd.tl.perturb(adata, predictor, genes=list(adata.var_names[:4]), n_null=5, rng=0)
    >>> ax = sd.pl.perturb(adata)
    """
    cells = _anndata.resolve(adata, mod=mod)
    table = draw.read_table(cells, KEYS.perturbation + KEYS.ranking, "perturb")
    n = draw.positive("n_genes", n_genes)
    if len(table) > n:
        table = table.iloc[np.r_[: (n + 1) // 2, len(table) - n // 2 : len(table)]]
    kind = str(cells.uns[KEYS.perturbation + KEYS.record]["params"]["kind"])
    return _axes.finish(draw.waterfall(ax, table, kind=kind), show=show, save=save)
