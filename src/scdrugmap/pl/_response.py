"""Cells on a map, coloured by what they are and how they respond."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdrugmap import _anndata
from scdrugmap._errors import MissingKeyError
from scdrugmap._keys import KEYS, RESISTANT
from scdrugmap.pl import _axes

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from mudata import MuData


def response(
    adata: AnnData | MuData,
    *,
    basis: str = "X_umap",
    color: list[str] | None = None,
    mod: str = "rna",
    size: float | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> list[Axes] | None:
    """Draw cells in two dimensions, one panel per column of ``obs``.

    Parameters
    ----------
    adata
        With a two-dimensional map in ``obsm``.
    basis
        Key of the map.
    color
        Columns of ``obs``; by default cancer type (or study), response, and predictions where there are any.
    mod
        Modality of a MuData.
    size
        Of a point; by default by the number of cells.
    show, save
        Show the figure; save it to a file.

    Returns
    -------
    One axes per panel, or ``None`` with ``show=True``.

    Raises
    ------
    MissingKeyError
        If the map or a column is not there.

    Examples
    --------
    >>> import scanpy as sc, scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> sd.tl.embed(adata, "pca", n_components=2)
    >>> axes = sd.pl.response(adata, basis="X_pca")
    """
    import matplotlib.pyplot as plt

    cells = _anndata.resolve(adata, mod=mod)
    key = basis if basis in cells.obsm else f"X_{basis}"
    if key not in cells.obsm:
        known = ", ".join(cells.obsm) or "none"
        raise MissingKeyError("basis", basis, f"a key of obsm ({known})", "run sc.pp.neighbors and sc.tl.umap first.")
    if color is None:
        wanted = [
            next((c for c in (KEYS.cancer_type, KEYS.study) if c in cells.obs and cells.obs[c].nunique() > 1), None)
        ]
        wanted += [KEYS.response, KEYS.response + KEYS.pred, KEYS.response + KEYS.score]
        color = [c for c in wanted if c is not None and c in cells.obs]
    columns = [_anndata.obs_column(cells, c, "color") for c in color]
    if not columns:
        raise MissingKeyError("color", None, "columns of obs", "pass color=['response'] or another column.")
    points = np.asarray(cells.obsm[key])[:, :2]
    _, axes = plt.subplots(1, len(columns), figsize=(4.2 * len(columns), 3.4), layout="constrained", squeeze=False)
    panels: list[Any] = list(axes[0])
    area = size or float(np.clip(60_000 / len(points), 1, 30))
    for ax, name, values in zip(panels, color, columns, strict=True):
        _draw(ax, points, values, area)
        ax.set(title=name.replace("_", " "), xticks=[], yticks=[], xlabel=f"{key} 1", ylabel=f"{key} 2")
    return _axes.finish(panels, show=show, save=save)


def _draw(ax: Any, points: np.ndarray, values: pd.Series, area: float) -> None:
    missing = values.isna().to_numpy()
    ax.scatter(*points[missing].T, s=area, color="#dddddd", linewidths=0)
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        shown = ax.scatter(
            *points[~missing].T, s=area, c=values[~missing].astype(float), cmap="RdBu", vmin=0, vmax=1, linewidths=0
        )
        ax.figure.colorbar(shown, ax=ax, label="P(sensitive)")
        return
    text = values.astype(str)
    names = list(dict.fromkeys(text[~missing]))
    colour = _axes.colours(sorted(names)) | {RESISTANT: _axes.RESISTANT, "sensitive": _axes.SENSITIVE}
    # Drawn in random but fixed order, so that no class lies on top of the others.
    order = np.random.default_rng(0).permutation(np.flatnonzero(~missing))
    ax.scatter(*points[order].T, s=area, c=[colour[n] for n in text.iloc[order]], linewidths=0)
    for name in sorted(names):
        ax.scatter([], [], color=colour[name], label=name, s=20)
    ax.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
