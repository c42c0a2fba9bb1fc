"""What a predictor looks at: ranked genes, genes by samples, deletion curves, one gene on a map."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scdrugmap import _anndata
from scdrugmap._errors import InputError, InputTypeError, MissingKeyError, UnknownNameError
from scdrugmap._keys import KEYS
from scdrugmap.figures import axes as _axes
from scdrugmap.figures import interpretation as draw

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from mudata import MuData

    from scdrugmap.interpret.report import AttributionReport

KINDS = ("ranked", "heatmap", "deletion", "map")


def attribution(
    data: AnnData | MuData | AttributionReport,
    *,
    kind: Literal["ranked", "heatmap", "deletion", "map"] = "ranked",
    n_genes: int = 15,
    gene: str | None = None,
    basis: str = "X_umap",
    key: str = "response",
    mod: str = "rna",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | list[Axes] | None:
    """Draw what a predictor looks at.

    Parameters
    ----------
    data
        After :func:`scdrugmap.tl.attribute`; for ``kind="deletion"`` a report of
        :func:`scdrugmap.tl.attribution_report`.
    kind
        ``"ranked"``: the genes with the largest attributions, a dot per sample (beeswarm) and the interval over samples;
        ``"heatmap"``: genes by samples; ``"deletion"``: what deleting the named genes does, against random ones; ``"map"``:
        the attribution of one gene on a map of the cells, beside the prediction (needs ``store="cells"``).
    n_genes
        Genes to show.
    gene
        Gene of ``kind="map"``; by default the first of the table.
    basis
        Key of ``obsm`` with the map.
    key
        First part of the names of the predictions in ``obs``.
    mod
        Modality of a MuData.
    ax, show, save
        As in :func:`scdrugmap.pl.benchmark`; ``kind="map"`` makes its own axes.

    Returns
    -------
    matplotlib.axes.Axes, list of them or None
        The axes (two for ``kind="map"``), or ``None`` with ``show=True``.

    Raises
    ------
    MissingKeyError
        If the table, the attributions of cells or the map are not there.
    UnknownNameError
        For an unknown kind or gene.
    InputTypeError
        If curves are asked of something else than a report.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=1, n_cells=200, n_genes=100, rng=0)
    >>> predictor = sd.tl.train(adata, model="pca", head="logistic", rng=0)
    >>> sd.tl.attribute(adata, predictor, rng=0)
    >>> ax = sd.pl.attribution(adata)
    """
    if kind not in KINDS:
        raise UnknownNameError("kind", kind, KINDS)
    if kind == "deletion":
        curves = getattr(data, "curves", None)
        if not isinstance(curves, pd.DataFrame) or not len(curves):
            raise InputTypeError(
                "data", type(data).__name__, "a report", "pass what sd.tl.attribution_report returned."
            )
        return _axes.finish(draw.deletion(ax, curves), show=show, save=save)
    cells = _anndata.resolve(data, mod=mod, argument="data")
    table = draw.read_table(cells, KEYS.attribution, "attribute")
    record = cells.uns[KEYS.attribution + KEYS.record]
    if kind == "map":
        return _axes.finish(_map(cells, gene or str(table["gene"].iloc[0]), basis, key), show=show, save=save)
    top = table.head(draw.positive("n_genes", n_genes))
    rows = pd.Index(cells.var_names.astype(str)).get_indexer(pd.Index(top["gene"]))
    means = np.asarray(cells.varm[KEYS.attribution])[rows]
    if kind == "heatmap":
        drawn = draw.heat(ax, top["gene"].tolist(), [str(s) for s in record["samples"]], means)
    else:
        title = f"what {record['representation']} looks at ({record['params']['method']})"
        drawn = draw.ranked(ax, top, means, title=title)
    return _axes.finish(drawn, show=show, save=save)


def _map(cells: Any, gene: str, basis: str, key: str) -> list[Axes]:
    """Draw the attribution of one gene, and the prediction, on the same map."""
    import matplotlib.pyplot as plt

    where = basis if basis in cells.obsm else f"X_{basis}"
    if where not in cells.obsm:
        known = ", ".join(cells.obsm) or "none"
        raise MissingKeyError("basis", basis, f"a key of obsm ({known})", "run sc.pp.neighbors and sc.tl.umap first.")
    if KEYS.attribution not in cells.layers:
        raise MissingKeyError(
            "data", "no attributions of cells", "layers['attribution']", "call sd.tl.attribute(..., store='cells')."
        )
    if gene not in cells.var_names:
        raise UnknownNameError("gene", gene, cells.var_names.astype(str))
    points = np.asarray(cells.obsm[where])
    if points.ndim != 2 or points.shape[1] < 2:
        raise InputError("basis", f"{where} of shape {points.shape}", "cells x 2", "pass basis='umap'.")
    drawn = cells.obs[KEYS.attributed].to_numpy(dtype=bool)
    values = np.asarray(cells.layers[KEYS.attribution][:, cells.var_names.get_loc(gene)].todense()).ravel()
    _, axes = plt.subplots(1, 2, figsize=(8.6, 3.5), layout="constrained")
    most = float(np.abs(values[drawn]).max(initial=0)) or 1.0
    axes[0].scatter(*points[~drawn, :2].T, s=6, color="#d9d9d9", linewidths=0)
    image = axes[0].scatter(
        *points[drawn, :2].T, c=values[drawn], s=10, cmap="RdBu_r", vmin=-most, vmax=most, linewidths=0
    )
    axes[0].figure.colorbar(image, ax=axes[0], label="attribution (positive = towards resistant)")
    axes[0].set_title(gene, fontsize=9)
    score = key + KEYS.score
    if score in cells.obs:
        image = axes[1].scatter(*points[:, :2].T, c=cells.obs[score], s=10, cmap="RdBu", vmin=0, vmax=1, linewidths=0)
        axes[1].figure.colorbar(image, ax=axes[1], label="P(sensitive)")
        axes[1].set_title("prediction", fontsize=9)
    else:
        label = cells.obs[key].astype(str) if key in cells.obs else pd.Series("unknown", cells.obs_names)
        look = {"resistant": (_axes.RESISTANT, "o"), "sensitive": (_axes.SENSITIVE, "o")}
        for name in sorted(label.unique()):
            colour, marker = look.get(name, ("#d9d9d9", "o"))
            part = (label == name).to_numpy()
            axes[1].scatter(*points[part, :2].T, s=10, color=colour, marker=marker, linewidths=0, label=name)
        axes[1].legend(fontsize=7, frameon=False)
        axes[1].set_title(key, fontsize=9)
    for ax in axes:
        ax.set(xticks=[], yticks=[])
    return list(axes)
