"""What a figure, or the report, asks of a benchmark result."""

from __future__ import annotations

from typing import Any, Protocol, Self, runtime_checkable

import pandas as pd

from scdrugmap._metrics import Metric


@runtime_checkable
class Results(Protocol):
    """The frames of a result and the questions that it answers; :func:`scdrugmap.tl.benchmark` returns one."""

    table: pd.DataFrame
    predictions: pd.DataFrame
    units: pd.DataFrame
    data: pd.DataFrame
    info: dict[str, Any]
    metrics: dict[str, Metric]

    @property
    def contenders(self) -> pd.DataFrame:
        """Model, strategy, head and label of each contender."""

    def summary(self, *args: Any, **options: Any) -> pd.DataFrame:
        """One value per contender, category and metric."""

    def compare(self, *args: Any, **options: Any) -> pd.DataFrame:
        """Paired differences of two contenders."""

    def rank(self, *args: Any, **options: Any) -> Any:
        """Mean ranks and their tests."""

    def select(self, **where: str) -> Self:
        """The part in which columns hold the given values."""

    def partition_frame(self) -> pd.DataFrame:
        """One row per fold."""
