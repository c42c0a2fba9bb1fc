"""What a benchmark returns: the table, intervals, comparisons, and everything needed to check them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from scdrugmap._cohort import Cohort
from scdrugmap._errors import InputError, OutputError, UnknownNameError
from scdrugmap._metrics import Metric, find_metric
from scdrugmap.evaluation.result.files import FRAMES, load, printable, save, tex
from scdrugmap.evaluation.result.levels import ANSWERED, LEVELS, PLACE
from scdrugmap.evaluation.result.predictions import Frames
from scdrugmap.evaluation.result.report import write_report
from scdrugmap.evaluation.result.significance import Ranking, rank_models
from scdrugmap.evaluation.result.summary import compare_predictions, permutation_table, summarise
from scdrugmap.evaluation.splits.folds import Partition

MAIN_METRICS = ("f1", "f1_macro", "mcc", "auroc", "auprc")


@dataclass(eq=False)
class BenchmarkResult:
    """Result of :func:`scdrugmap.tl.benchmark`.

    Parameters
    ----------
    table
        Tidy: one row per model, strategy, head, setting, split, ``by``, category, group (the left-out study), fold, level
        (cell, sample, patient) and metric, with the value, counts, the reason of a NaN, and notes. Positive class: sensitive.
    predictions
        Every test cell of every unit: unit number, row of the data set, label, P(sensitive), call.
    units
        One row per unit: where it stands in the table and its manifest (versions, digests, seed, device, seconds, memory).
    partitions
        The folds, the same for all models.
    cells
        One row per cell: name, label, sample, study, patient.
    data
        One row per category: cells, samples and studies, class balance and the F1 of calling every cell sensitive.
    info
        Arguments, versions, warnings, times.
    metrics
        Custom metrics by name; they are functions and do not survive saving.

    Examples
    --------
    >>> import numpy as np, anndata as ad, scdrugmap as sd
    >>> rng = np.random.default_rng(0)
    >>> adata = ad.AnnData(rng.poisson(1, (80, 30)).astype("float32"))
    >>> adata.obs["sample"] = np.repeat([f"s{i}" for i in range(8)], 10)
    >>> adata.obs["response"] = np.repeat(["resistant", "sensitive"] * 4, 10)
    >>> result = sd.tl.benchmark(adata, models={"noise": rng.normal(size=(80, 4))}, n_folds=4, baselines=["majority"])
    >>> result.summary(metrics="accuracy")["model"].tolist()
    ['noise', 'majority']
    """

    table: pd.DataFrame
    predictions: pd.DataFrame = field(repr=False)
    units: pd.DataFrame = field(repr=False)
    partitions: list[Partition] = field(repr=False)
    cells: pd.DataFrame = field(repr=False)
    data: pd.DataFrame = field(repr=False)
    info: dict[str, Any] = field(repr=False)
    metrics: dict[str, Metric] = field(default_factory=dict, repr=False)
    _held: tuple[Any, ...] = field(default=(), init=False, repr=False)
    _frames: Frames | None = field(default=None, init=False, repr=False)
    _summaries: dict[tuple[Any, ...], pd.DataFrame] = field(default_factory=dict, init=False, repr=False)

    def __repr__(self) -> str:
        scores = self.table[self.table["setting"] != "probe"]
        models = ", ".join(pd.unique(scores["model"]))
        return (
            f"BenchmarkResult: {len(self.table)} rows; models {models}; settings "
            f"{', '.join(pd.unique(scores['setting'] + ' by ' + scores['split']))}; {len(self.units)} units"
        )

    @property
    def contenders(self) -> pd.DataFrame:
        """Model, strategy and head of each contender, with the label that :meth:`compare` and the figures use."""
        scores = self.table[self.table["setting"] != "probe"]
        out = scores[["model", "strategy", "head"]].drop_duplicates().reset_index(drop=True)
        several = out["model"].duplicated(keep=False)
        detail = out["strategy"] + out["head"].map(lambda h: f", {h}" if h else "")
        out["label"] = out["model"].where(~several, out["model"] + " (" + detail + ")")
        return out

    def partition_frame(self) -> pd.DataFrame:
        """Return one row per fold of every partition: sizes, group, reason, hash."""
        records = []
        for p in self.partitions:
            where = {"setting": p.setting, "split": p.split, "by": p.by, "category": p.category, "hash": p.hash}
            notes = "; ".join(p.notes)
            if not p.folds:
                records.append(where | {"fold": "", "n_train": 0, "n_test": 0, "reason": p.reason, "notes": notes})
            for f in p.folds:
                sizes = {"fold": f.name, "n_train": len(f.train), "n_test": len(f.test)}
                records.append(where | sizes | {"reason": p.reason or f.reason, "notes": notes})
        return pd.DataFrame(records)

    def select(self, **where: str) -> Self:
        """Return the part of the result in which the given columns hold the given values.

        Parameters
        ----------
        **where
            Columns of the table that say where a row stands: ``setting``, ``split``, ``by``, ``category``, ``model``,
            ``strategy``, ``head``.

        Raises
        ------
        UnknownNameError
            For another column, or a value that the result does not hold.

        Examples
        --------
        >>> result.select(setting="cross", split="study")  # doctest: +SKIP
        """
        for column, value in where.items():
            if column not in PLACE:
                raise UnknownNameError("where", column, PLACE)
            if value not in set(self.table[column]):
                raise UnknownNameError(column, value, [str(v) for v in pd.unique(self.table[column])])
        rows, units = self.table, self.units
        for column, value in where.items():
            rows, units = rows[rows[column] == value], units[units[column] == value]
        predictions = self.predictions[self.predictions["unit"].isin(units["unit"])]
        here = {c: v for c, v in where.items() if c in ("setting", "split", "by", "category")}
        partitions = [p for p in self.partitions if all(getattr(p, c) == v for c, v in here.items())]
        return replace(
            self, table=rows.reset_index(drop=True), units=units.reset_index(drop=True),
            predictions=predictions.reset_index(drop=True), partitions=partitions,
        )  # fmt: skip

    def summary(
        self,
        by: str | Sequence[str] | None = None,
        *,
        metrics: str | Iterable[str] | None = MAIN_METRICS,
        level: str = "cell",
        n_resamples: int = 1000,
        confidence: float = 0.95,
        rng: int | np.random.Generator | None = 0,
    ) -> pd.DataFrame:
        """Return one value per model, category and metric, with an interval over samples (patients, or left-out studies).

        Parameters
        ----------
        by
            Columns to average over further, for example ``"model"`` or ``["model", "setting"]``: the mean and the
            standard deviation over the categories take the place of the interval. ``None`` keeps every category.
        metrics
            Names; ``None`` for all in the table.
        level
            ``"cell"``, ``"sample"`` or ``"patient"``; ``"answered"`` for the cells that a chat model answered.
        n_resamples
            0 leaves the intervals out, which saves time. Intervals rest on leaving out each group and not on resamples.
        confidence
            Of the interval.
        rng
            Not used any more.

        Returns
        -------
        pandas.DataFrame
            ``value``, ``ci_low``, ``ci_high``, ``mean_folds``, ``sd_folds``, ``n_folds``, ``n_undefined`` (folds without a
            value), ``n_groups`` (samples, patients or studies behind the interval), ``n_abstained`` (cells without an
            answer), ``floor`` (the value of calling every cell sensitive), ``reason`` (why there is no value, or no
            interval) and ``note``.

        Notes
        -----
        Cells of a sample share its label and its batch, and folds share training cells: neither is a sample from the
        population that matters, so the interval is that over samples (over patients or studies where the split keeps
        those whole), or over left-out studies. Models are not refitted. With fewer than five groups, or one group of a
        class, there is no interval, and ``reason`` says so; see
        :func:`scdrugmap.evaluation.result.statistics.interval`.

        Pooled, the value is that of the test cells of all folds taken together, so it does not depend on how small the
        folds are. AUROC and AUPRC of cells rank within a fold and weigh the folds by their pairs or sensitive cells; those
        of samples and patients rank over all folds, by log-odds less those of the training cells of the fold. Across
        studies it is the mean over the left-out studies in which the metric is defined. A cell without an answer counts as
        a wrong call, and as P = 0.5 where probabilities are ranked or scored.
        """
        records = [find_metric(name, self.metrics) for name in self._metric_names(metrics)]
        full = self._summary(records, self._level(level), n_resamples > 0, confidence)
        if by is None:
            return full
        keys = ["metric", *([by] if isinstance(by, str) else by)]
        unknown = [k for k in keys if k not in full]
        if unknown:
            raise UnknownNameError("by", unknown[0], [*PLACE, "metric"])
        keys = list(dict.fromkeys([*keys[1:], "metric"]))
        grouped = full.groupby(keys, sort=False, observed=True)
        return grouped.agg(
            value=("value", "mean"),
            sd_categories=("value", "std"),
            n_categories=("value", "count"),
            floor=("floor", "mean"),
        ).reset_index()

    def _summary(self, metrics: Sequence[Metric], level: str, intervals: bool, confidence: float) -> pd.DataFrame:
        """Put the summaries of single metrics together; each is computed once."""
        frames, settings = self._sources(), (level, intervals, confidence)
        for m in () if intervals else metrics:
            known = self._summaries.get((m, level, True, confidence))
            if known is not None:  # the values stand beside their intervals already
                reason = known["reason"].where(known["value"].isna(), "")
                bare = known.assign(ci_low=np.nan, ci_high=np.nan, reason=reason)
                self._summaries.setdefault((m, *settings), bare)
        new = [m for m in metrics if (m, *settings) not in self._summaries]
        if new:
            rows = summarise(frames, new, level, confidence, intervals=intervals)
            for m in new:
                self._summaries[(m, *settings)] = rows[rows["metric"] == m.name]
        parts = [self._summaries[(m, *settings)] for m in metrics]
        return pd.concat(parts).sort_index(kind="stable").reset_index(drop=True)

    def _sources(self) -> Frames:
        """Return the frames that the statistics read; replacing one of them forgets what was computed."""
        now = (self.table, self.predictions, self.units, self.partitions, self.cells)
        if self._frames is None or any(a is not b for a, b in zip(now, self._held, strict=True)):
            self._held = now
            self._frames = Frames(self.table, self.predictions, self.units, self.partitions, self.as_cells())
            self._summaries.clear()
        return self._frames

    def compare(
        self,
        a: str,
        b: str,
        *,
        metrics: str | Iterable[str] = ("f1_macro", "auroc"),
        level: str = "cell",
        n_resamples: int = 1000,
        confidence: float = 0.95,
        rng: int | np.random.Generator | None = 0,
    ) -> pd.DataFrame:
        """Compare two models on the same folds.

        Parameters
        ----------
        a, b
            Labels of :attr:`contenders`: a model's name, or ``"pca (frozen, mlp)"`` where it takes part more than once.
        metrics, level, n_resamples, confidence, rng
            As in :meth:`summary`.

        Returns
        -------
        pandas.DataFrame
            Per category and metric the two values, their difference with a paired interval over samples (or
            studies), Nadeau and Bengio's corrected t over folds, its p-value, and ``p_holm`` over all rows.
        """
        pair = [self._contender("a", a), self._contender("b", b)]
        records = [find_metric(name, self.metrics) for name in self._metric_names(metrics)]
        return compare_predictions(self._sources(), pair, records, self._level(level), confidence)

    def permutation_test(
        self, metric: str = "auroc", *, n_permutations: int = 1000, rng: int | np.random.Generator | None = 0
    ) -> pd.DataFrame:
        """Ask how often labels dealt to the samples at random agree with the predictions as well as the true ones.

        Parameters
        ----------
        metric
            A built-in metric, computed as in :meth:`summary`: a ranking compares cells of one fold only, and left-out
            studies count alike.
        n_permutations
            Number of random permutations.
        rng
            Seed or generator.

        Returns
        -------
        pandas.DataFrame
            Per contender and category ``p``, ``p_holm`` over all rows, the number of samples, and the reason of a NaN.
            Across studies, labels are exchanged within studies.

        Notes
        -----
        The predictions stay as they are. Under a split of cells, a model that recognises samples gets a small p too.
        """
        record = find_metric(self._metric_names(metric)[0], self.metrics)
        return permutation_table(self._sources(), record, n_permutations, np.random.default_rng(rng))

    def rank(
        self,
        metric: str = "f1_macro",
        *,
        setting: str | None = None,
        split: str | None = None,
        by: str | None = None,
        level: str = "cell",
        test: str = "conover",
    ) -> Ranking:
        """Rank the models over the categories: Friedman test, post hoc pairs, critical difference.

        Parameters
        ----------
        metric, setting, split, by, level
            What to rank by; ``setting``, ``split`` and ``by`` (the column of the categories, ``""`` for all cells) only
            where the result holds several: categories of two columns are made of the same cells.
        test
            ``"conover"`` (Holm-corrected) or ``"nemenyi"``.

        Raises
        ------
        InputError
            If the result holds several of what has to be one.
        """
        record = find_metric(self._metric_names(metric)[0], self.metrics)
        part = self
        for name, value in (("setting", setting), ("split", split), ("by", by)):
            if value is not None:
                part = part.select(**{name: value})
            _refuse_several(part.table, name)
        return rank_models(
            part.pivot(metric, level=level),
            higher_is_better=record.higher_is_better,
            test=test,
        )

    def pivot(
        self, metric: str = "f1_macro", *, setting: str | None = None, split: str | None = None, level: str = "cell"
    ) -> pd.DataFrame:
        """Return categories x contenders, the values of :meth:`summary`."""
        t = self.summary(metrics=metric, level=level, n_resamples=0)
        for name, value in (("setting", setting), ("split", split)):
            if value is not None:
                t = t[t[name] == value]
            _refuse_several(t, name)
        labels = self.contenders.set_index(["model", "strategy", "head"])["label"]
        label = [labels[key] for key in zip(t["model"], t["strategy"], t["head"], strict=True)]
        rows = t["category"].where(t["by"] == "", t["by"] + ": " + t["category"])
        wide = t.assign(label=label, row=rows).pivot(index="row", columns="label", values="value")
        return wide.loc[list(dict.fromkeys(rows)), list(self.contenders["label"])].rename_axis(
            index="category", columns="model"
        )

    def _metric_names(self, metrics: str | Iterable[str] | None) -> list[str]:
        """Names that the table holds; the default list is cut to those, a name that was asked for is not."""
        held = [m for m in pd.unique(self.table["metric"]) if not m.startswith("sample_")]
        if metrics is None:
            return held
        names = [metrics] if isinstance(metrics, str) else list(metrics)
        if names == list(MAIN_METRICS):
            return [m for m in names if m in held] or held
        for name in names:
            if name not in held:
                raise UnknownNameError(
                    "metrics", name, held, "the result holds the metrics that the benchmark was asked for."
                )
        return names

    def _level(self, level: str) -> str:
        if level not in (*LEVELS, ANSWERED):
            raise UnknownNameError("level", level, [*LEVELS, ANSWERED])
        return level

    def _contender(self, argument: str, label: str) -> tuple[str, str, str]:
        known = self.contenders
        hit = known[known["label"] == label]
        hit = hit if len(hit) else known[known["model"] == label]
        if len(hit) != 1:
            raise UnknownNameError(argument, label, known["label"])
        model, strategy, head = (str(hit.iloc[0][c]) for c in ("model", "strategy", "head"))
        return model, strategy, head

    def as_cells(self) -> Cohort:
        """Return the labels and groups as arrays."""
        c = self.cells
        patient = c["patient"].to_numpy() if "patient" in c else None
        return Cohort(
            c["y"].to_numpy(), c["sample"].to_numpy(), c["study"].to_numpy(), patient, names=c["name"].to_numpy()
        )

    # Files ------------------------------------------------------------------------------------------------

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Save everything into a folder of Parquet files and one JSON file.

        Examples
        --------
        >>> result.to_parquet("results")  # doctest: +SKIP
        """
        frames = {name: getattr(self, name) for name in FRAMES}
        save(Path(path), frames, self.units, self.partitions, self.info)

    @classmethod
    def from_parquet(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :meth:`to_parquet` saved, or the last result in a run store.

        Raises
        ------
        InputError
            If the folder holds no result.
        """
        return cls(**load(Path(path)))

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the tidy table as CSV."""
        try:
            self.table.to_csv(path, index=False)
        except OSError as error:
            raise OutputError("path", path, error) from None

    def to_markdown(self, **summary: Any) -> str:
        """Return the summary as a Markdown table; arguments as in :meth:`summary`."""
        frame = printable(self.summary(**summary))
        lines = ["| " + " | ".join(row) + " |" for row in [list(frame.columns), *frame.astype(str).to_numpy().tolist()]]
        return "\n".join([lines[0], "|" + " --- |" * frame.shape[1], *lines[1:]])

    def to_latex(self, **summary: Any) -> str:
        """Return the summary as a LaTeX table (booktabs); arguments as in :meth:`summary`."""
        frame = printable(self.summary(**summary))
        rows = [[tex(v) for v in row] for row in [list(frame.columns), *frame.astype(str).to_numpy().tolist()]]
        body = [" & ".join(row) + r" \\" for row in rows]
        head = [rf"\begin{{tabular}}{{{'l' * frame.shape[1]}}}", r"\toprule", body[0], r"\midrule"]
        return "\n".join([*head, *body[1:], r"\bottomrule", r"\end{tabular}"])

    def report(self, path: str | os.PathLike[str], **options: Any) -> Path:
        """Write one self-contained HTML file; see :func:`scdrugmap.evaluation.result.report.write_report`."""
        return write_report(self, Path(path), **options)


def _refuse_several(table: pd.DataFrame, name: str) -> None:
    held = [str(v) for v in pd.unique(table.loc[table["setting"] != "probe", name])]
    if len(held) > 1:
        raise InputError(name, f"several in the result: {', '.join(map(repr, held))}", "one of them",
                         f"pass {name}={max(held, key=bool)!r}.")  # fmt: skip


def load_result(path: str | os.PathLike[str]) -> BenchmarkResult:
    """Read a benchmark result: the folder that ``to_parquet`` or the command line wrote, or a run store.

    Parameters
    ----------
    path
        The folder.

    Raises
    ------
    InputError
        If the folder holds no result.

    Examples
    --------
    >>> sd.load_result("results")  # doctest: +SKIP
    """
    return BenchmarkResult.from_parquet(path)
