"""The picture at the end of the demo, which is the README's too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from scdrugmap._files import atomic_path
from scdrugmap.figures import axes as _axes
from scdrugmap.figures.benchmark import benchmark


def draw_demo(cells: Any, representation: Any, result: Any, path: Path, *, seed: int = 0) -> None:
    """Draw cells by truth and by call, with the benchmark beside them.

    Parameters
    ----------
    cells
        With ``obs["response"]`` and ``obs["response_pred"]``.
    representation
        Rows of numbers, one per cell, that are laid out in two dimensions.
    result
        A benchmark.
    path
        PNG file to write.
    seed
        Of the layout.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE

    from scdrugmap.pl import response

    shown = cells.copy()
    shown.obsm["X_map"] = TSNE(init="pca", random_state=seed, max_iter=400).fit_transform(np.asarray(representation))
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.25))
    response(shown, basis="X_map", color="response", ax=left)
    response(shown, basis="X_map", color="response_pred", ax=middle)
    left.set_title("unseen study, as labelled", fontsize="medium")
    middle.set_title("as called", fontsize="medium")
    left.get_legend().remove()
    benchmark(result, metric="f1_macro", ax=right)
    right.set_title(_axes.wrap("whole studies held out", 30), fontsize="medium")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
