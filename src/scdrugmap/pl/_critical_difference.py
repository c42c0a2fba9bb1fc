"""Mean ranks over categories, joined where the difference is not significant."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from scdrugmap.pl import _axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scdrugmap.evaluation import BenchmarkResult


def critical_difference(
    result: BenchmarkResult,
    *,
    metric: str = "f1_macro",
    level: str = "cell",
    test: str = "conover",
    alpha: float = 0.05,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Draw a critical-difference diagram (Demšar 2006) of the models' mean ranks over the categories.

    Parameters
    ----------
    result, metric, level, ax, show, save
        As in :func:`scdrugmap.pl.benchmark`.
    test
        Post hoc test after Friedman's: ``"conover"`` (Holm-corrected) or ``"nemenyi"``.
    alpha
        Level at which two models count as different.

    Returns
    -------
    The axes, or ``None`` with ``show=True``. Bars join models whose difference is not significant.

    Raises
    ------
    InputError
        If there are too few categories or models to rank.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=4, n_cells=500, n_genes=200, rng=0)
    >>> result = sd.tl.benchmark(
    ...     adata, models=["pca"], by="study", n_folds=2, head="logistic", baselines=["majority", "hvg"], rng=0
    ... )
    >>> ax = sd.pl.critical_difference(result)
    """
    import scikit_posthocs

    ranking = result.rank(metric, level=level, test=test)
    ax = _axes.new_axes(ax, (6.0, 0.9 + 0.28 * len(ranking.mean_ranks)))
    scikit_posthocs.critical_difference_diagram(
        ranking.mean_ranks, ranking.p_values, ax=ax, alpha=alpha, label_fmt_left="{label} ({rank:.1f})  ",
        label_fmt_right="  {label} ({rank:.1f})",
    )  # fmt: skip
    ax.set_title(f"mean rank by {metric}; Friedman p = {ranking.p_value:.2g}", fontsize=9)
    return _axes.finish(ax, show=show, save=save)
