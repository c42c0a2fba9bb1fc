"""Mean ranks over categories, joined where the difference is not significant."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from scdrugmap._errors import InputError
from scdrugmap.figures import axes as _axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scdrugmap.figures.results import Results


def critical_difference(
    result: Results,
    *,
    metric: str = "f1_macro",
    level: str = "cell",
    test: str = "conover",
    alpha: float = 0.05,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Draw a critical-difference diagram of the models' mean ranks over the categories.

    Parameters
    ----------
    result
        With one setting, split and column of categories (``result.select``), two or more categories and three or more models.
    metric, level, ax, show, save
        As in :func:`scdrugmap.pl.benchmark`.
    test
        Post hoc test after Friedman's: ``"conover"`` (Holm-corrected) or ``"nemenyi"``.
    alpha
        Level at which two models count as different.

    Returns
    -------
    matplotlib.axes.Axes or None
        The axes, or ``None`` with ``show=True``. Rank 1 is best. Black bars join models whose difference is not
        significant; the dashed line is the rank of calling every cell sensitive, where that baseline took part.

    Raises
    ------
    InputError
        If there are too few categories or models to rank, or several settings or columns of categories.
    UnknownNameError
        For a metric or test that is not known.

    References
    ----------
    Demsar J (2006). Statistical comparisons of classifiers over multiple data sets. JMLR 7, 1-30.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=4, n_cells=500, n_genes=200, rng=0)
    >>> result = sd.tl.benchmark(
    ...     adata, models=["pca"], by="study", n_folds=2, head="logistic", baselines=["all_sensitive", "depth"], rng=0
    ... )
    >>> ax = sd.pl.critical_difference(result)
    """
    import scikit_posthocs

    _axes.each_cell_once(result)
    ranking = result.rank(metric, level=level, test=test)
    k = len(ranking.ranks)
    if ranking.n < 2 or k < 3:
        raise InputError(
            "result", f"{ranking.n} categories that hold every model, and {k} models", "two or more, and three or more",
            "benchmark by= a column with more categories, or add models or baselines.",
        )  # fmt: skip
    labels = result.contenders
    look, models = _axes.styles(result), set(labels["label"][labels["strategy"] != "baseline"])
    ax = _axes.new_axes(ax, (7.0, 1.2 + 0.16 * k))
    # Models that tie everywhere have no p-value: they do not differ.
    pairs = ranking.posthoc.fillna(1.0).to_numpy(copy=True)
    np.fill_diagonal(pairs, 1.0)
    posthoc = ranking.posthoc.copy()
    posthoc[:] = pairs
    scikit_posthocs.critical_difference_diagram(
        ranking.ranks, posthoc, ax=ax, alpha=alpha, label_fmt_left="{label} ({rank:.1f})  ",
        label_fmt_right="  {label} ({rank:.1f})", label_props={"fontsize": "small"},
        color_palette={n: look[n].colour if n in models else _axes.GREYS[0] for n in ranking.ranks.index},
        crossbar_props={"linewidth": 2.5, "color": "black", "marker": ""},
    )  # fmt: skip
    floor = labels["label"][labels["model"] == "all_sensitive"]
    if len(floor):
        ax.axvline(float(ranking.ranks[floor.iloc[0]]), color=_axes.FLOOR, ls="--", lw=1.2, zorder=0)
    scores = result.table[result.table["setting"] != "probe"]
    _axes.title(
        ax, f"mean rank by {_axes.metric_label(result, metric, level)} over {ranking.n} categories, 1 is best; "
        f"Friedman p = {ranking.pvalue:.2g}; {ranking.test}, level {alpha:g}; {_axes.split_note(scores)}" + f"; dashed: {_axes.FLOOR_NAME}" * bool(len(floor)),
    )  # fmt: skip
    return _axes.finish(ax, show=show, save=save)
