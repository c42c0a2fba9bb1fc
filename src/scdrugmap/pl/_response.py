"""Cells on a map, coloured by what they are and how they respond."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdrugmap import _anndata
from scdrugmap._errors import InputError, MissingKeyError
from scdrugmap._keys import KEYS, RESISTANT, SENSITIVE
from scdrugmap._logging import warn
from scdrugmap.figures import axes as _axes

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from mudata import MuData

MARKERS = "o^sDvPX<>*"


def response(
    adata: AnnData | MuData,
    *,
    basis: str = "X_umap",
    color: str | list[str] | None = None,
    mod: str = "rna",
    size: float | None = None,
    n_columns: int = 3,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> list[Axes] | None:
    """Draw cells in two dimensions, one panel per column of ``obs``: where they come from, and how they respond.

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
    n_columns
        Panels in one row.
    ax
        Axes to draw into, for one column of ``obs``.
    show
        Show the figure.
    save
        File to save the figure to.

    Returns
    -------
    list of matplotlib.axes.Axes or None
        One axes per panel, or ``None`` with ``show=True``. Cells lie in random order, so that no class hides another;
        those without a value are grey. Beyond eight classes, the shape of a point tells those of one colour apart.

    Raises
    ------
    MissingKeyError
        If the map or a column is not there.
    InputError
        If the map is not two-dimensional, or the file cannot be written.

    Notes
    -----
    A map is an impression, not an evaluation: cells of one sample lie together whatever their response.
    :func:`scdrugmap.tl.benchmark` says how much a representation knows.

    Examples
    --------
    >>> import scanpy as sc, scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> sd.tl.embed(adata, "pca", n_components=2)
    >>> axes = sd.pl.response(adata, basis="X_scdrugmap_pca")
    """
    import matplotlib.pyplot as plt

    cells = _anndata.resolve(adata, mod=mod)
    key = basis if basis in cells.obsm else f"X_{basis}"
    if key not in cells.obsm:
        known = ", ".join(cells.obsm) or "none"
        raise MissingKeyError("basis", basis, f"a key of obsm ({known})", "run sc.pp.neighbors and sc.tl.umap first.")
    if cells.n_obs == 0 or cells.obsm[key].ndim != 2 or cells.obsm[key].shape[1] < 2:
        raise InputError("basis", f"{key} of shape {cells.obsm[key].shape}", "cells x 2", "pass basis='umap'.")
    if size is not None and not size > 0:
        raise InputError("size", size, "a number above 0", "leave it out.")
    names = _default_columns(cells) if color is None else [color] if isinstance(color, str) else list(color)
    columns = [_anndata.obs_column(cells, c, "color") for c in names]
    if not columns:
        raise MissingKeyError("color", None, "columns of obs", "pass color=['response'] or another column.")
    points = np.asarray(cells.obsm[key])[:, :2]
    if ax is not None and len(columns) != 1:
        raise InputError("ax", f"axes for {len(columns)} columns", "one column", "pass color='response'.")
    if n_columns < 1:
        raise InputError("n_columns", n_columns, "1 or more", "leave it out.")
    panels: list[Any] = [_axes.new_axes(ax, (0, 0))] if ax is not None else []
    if ax is None:
        wide = min(len(columns), n_columns)
        high = -(-len(columns) // wide)
        _, grid = plt.subplots(high, wide, figsize=(4.4 * wide, 3.4 * high), layout="constrained", squeeze=False)
        panels = list(grid.ravel())
        for spare in panels[len(columns) :]:
            spare.remove()
        panels = panels[: len(columns)]
    area = size or float(np.clip(40_000 / len(points), 1, 24))
    for panel, name, values in zip(panels, names, columns, strict=True):
        _draw(panel, points, values, area, is_score=name.endswith(KEYS.score))
        axis = key.removeprefix("X_")
        panel.set(title=name.replace("_", " "), xticks=[], yticks=[], xlabel=f"{axis} 1", ylabel=f"{axis} 2")
    return _axes.finish(panels, show=show, save=save)


def _default_columns(cells: AnnData) -> list[str]:
    """Where the cells come from, how they respond, and what was predicted."""
    origin = [c for c in (KEYS.cancer_type, KEYS.study) if c in cells.obs and cells.obs[c].nunique() > 1][:1]
    wanted = [*origin, KEYS.response, KEYS.response + KEYS.pred, KEYS.response + KEYS.score]
    return [c for c in wanted if c in cells.obs]


def _draw(ax: Any, points: np.ndarray, values: pd.Series, area: float, *, is_score: bool) -> None:
    off_map = np.isnan(points).any(axis=1)
    missing = values.isna().to_numpy()
    ax.scatter(*points[missing & ~off_map].T, s=area, color="#d9d9d9", linewidths=0)
    # Drawn in random but fixed order, so that no class lies on top of the others.
    order = np.random.default_rng(0).permutation(np.flatnonzero(~missing & ~off_map))
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        scale: dict[str, Any] = {"cmap": "coolwarm_r", "vmin": 0, "vmax": 1} if is_score else {"cmap": "viridis"}
        shown = ax.scatter(*points[order].T, s=area, c=values.iloc[order].astype(float), linewidths=0, **scale)
        ax.figure.colorbar(shown, ax=ax, label="P(sensitive)" if is_score else None)
        return
    text = values.astype(str).to_numpy()
    names = sorted(set(text[order]), key=_axes.natural)
    if len(names) > len(_axes.PALETTE) * len(MARKERS):
        warn(f"{len(names)} classes in {values.name!r}: some look alike")
    turns = [divmod(i, len(_axes.PALETTE)) for i in range(len(names))]
    look = {n: (_axes.PALETTE[i], MARKERS[t % len(MARKERS)]) for n, (t, i) in zip(names, turns, strict=True)}
    look |= {RESISTANT: (_axes.RESISTANT, "o"), SENSITIVE: (_axes.SENSITIVE, "o")}
    for marker in dict.fromkeys(m for _, m in look.values()):
        part = [i for i in order if look[text[i]][1] == marker]
        ax.scatter(*points[part].T, s=area, c=[look[text[i]][0] for i in part], marker=marker, linewidths=0)
    for name in names:
        ax.scatter([], [], color=look[name][0], marker=look[name][1], label=_axes.wrap(name, 24), s=22)
    if missing.any():
        ax.scatter([], [], color="#d9d9d9", label="unknown", s=22)
    ax.legend(
        fontsize="x-small",
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(1, 1),
        ncols=1 + len(names) // 18,
        handletextpad=0.2,
    )
