"""A table of models that fills while a benchmark runs."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import numpy as np
from rich.live import Live
from rich.table import Table

from scdrugmap.cli._console import progress


class LiveScores:
    """Finished units, time left, and the mean AUROC of each model so far; the best one is marked.

    Pass :meth:`update` as ``on_unit`` to :func:`scdrugmap.tl.benchmark` inside the context. Nothing is shown
    unless standard error is a terminal.
    """

    def __init__(self) -> None:
        self.scores: dict[str, list[float]] = defaultdict(list)
        self.done = self.total = 0
        self.start = time.perf_counter()
        self.live = Live(console=progress, auto_refresh=False, transient=True)

    def __enter__(self) -> LiveScores:
        if progress.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if progress.is_terminal:
            self.live.stop()

    def update(self, outcome: Any, done: int, total: int) -> None:
        """Take one finished unit."""
        from sklearn.metrics import roc_auc_score

        self.done, self.total = done, total
        unit = outcome.unit
        if unit.setting != "probe":
            known = np.isfinite(outcome.score)
            both = len(np.unique(outcome.y[known])) == 2
            value = float(roc_auc_score(outcome.y[known], outcome.score[known])) if both else np.nan
            self.scores[f"{unit.model} ({unit.strategy}{', ' + unit.head if unit.head else ''})"].append(value)
        if progress.is_terminal:
            self.live.update(self.table(), refresh=True)

    def table(self) -> Table:
        """Return the table as it stands."""
        spent = time.perf_counter() - self.start
        left = spent / self.done * (self.total - self.done) if self.done else float("nan")
        table = Table(title=f"{self.done} of {self.total} units, about {left:.0f} s left", title_justify="left")
        for column in ("model", "folds", "mean AUROC so far", ""):
            table.add_column(column)
        means = {k: float(np.nanmean(v)) if np.isfinite(v).any() else float("nan") for k, v in self.scores.items()}
        best = max((m for m in means.values() if np.isfinite(m)), default=float("nan"))
        for name, mean in means.items():
            shown = "n/a" if np.isnan(mean) else f"{mean:.3f}"
            table.add_row(name, str(len(self.scores[name])), shown, "best" if mean == best else "")
        return table
