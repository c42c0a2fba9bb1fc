"""The tables: every score beside "call all sensitive" and beside what the paper reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from scdrugmap.datasets import published_scores
from scdrugmap.evaluation.result.result import BenchmarkResult
from scdrugmap.study.answers import PUBLISHED_PROMPT
from scdrugmap.study.grids import Job

#: Metrics of the tables.
METRICS = ("f1", "auroc", "accuracy", "precision", "recall", "f1_macro", "mcc", "auprc", "balanced_accuracy")
#: Heading of the numbers of the paper: nobody here has computed them.
REPORTED = "published_as_reported_not_reproduced"
PLACE = [
    "collection",
    "preset",
    "job_strategy",
    "setting",
    "split",
    "strategy",
    "by",
    "category",
    "model",
    "head",
    "metric",
]
COLUMNS = [
    *PLACE, "value", "ci_low", "ci_high", "mean_folds", "sd_folds", "sem_folds", "n_folds", "n_groups",
    "all_sensitive", REPORTED, "published_source", "published_note", "reason", "note",
]  # fmt: skip


def scores(results: Mapping[Job, BenchmarkResult]) -> pd.DataFrame:
    """One row per benchmark, category, model and metric.

    Parameters
    ----------
    results
        By job.
    """
    parts = []
    for job, result in results.items():
        known = [m for m in METRICS if m in set(result.table["metric"])]
        rows = result.summary(metrics=known)
        prompted = rows["strategy"].eq("custom") & (job.strategy == "prompt")
        rows["strategy"] = rows["strategy"].mask(prompted, "prompt")
        parts.append(rows.assign(collection=job.collection, preset=job.preset, job_strategy=job.strategy))
    if not parts:
        return pd.DataFrame(columns=COLUMNS)
    table = pd.concat(parts, ignore_index=True)
    table["sem_folds"] = table["sd_folds"] / (table["n_folds"] - table["n_undefined"]).clip(lower=1) ** 0.5
    return beside_published(table.rename(columns={"floor": "all_sensitive"}))[COLUMNS]


def beside_published(table: pd.DataFrame) -> pd.DataFrame:
    """Add the numbers of the paper, in columns of their own.

    Parameters
    ----------
    table
        With the columns of a place; a prompted model is known by its name before the number of shots.
    """
    facts = published_scores()
    keys = ["collection", "setting", "strategy", "by", "category", "model", "metric"]
    facts = facts[facts["figure"] != "7"].drop_duplicates(keys)
    facts = facts.rename(columns={"value": REPORTED, "source": "published_source", "note": "published_note"})
    table = table.assign(
        asked=table["model"], model=table["model"].str.replace(f" ({PUBLISHED_PROMPT})", "", regex=False)
    )
    out = table.merge(facts.drop(columns="figure"), on=keys, how="left")
    out["model"] = out.pop("asked")
    return out.fillna({"published_source": "", "published_note": ""})


def published_beside(table: pd.DataFrame) -> pd.DataFrame:
    """Every number that the paper reports, as reported and not reproduced, beside those of this run.

    Parameters
    ----------
    table
        From :func:`scores`.

    Returns
    -------
    One row per reported number; the columns ``published`` and ``strict`` are the values of this run under these presets,
    missing where the run did not make them.
    """
    facts = published_scores()
    facts = facts[facts["figure"] != "7"].rename(columns={"value": REPORTED})
    keys = ["collection", "setting", "strategy", "by", "category", "model", "metric"]
    ours = table.assign(model=table["model"].str.replace(f" ({PUBLISHED_PROMPT})", "", regex=False))
    for preset in ("published", "strict"):
        # Of several heads the published one is first.
        rows = ours[ours["preset"] == preset].sort_values("head", key=lambda h: h != "published", kind="stable")
        values = rows.drop_duplicates(keys).set_index(keys)["value"]
        facts[preset] = values.reindex(pd.MultiIndex.from_frame(facts[keys])).to_numpy()
    floor = ours.drop_duplicates(keys[:2] + keys[3:5] + ["metric"]).set_index(keys[:2] + keys[3:5] + ["metric"])
    places = pd.MultiIndex.from_frame(facts[[*keys[:2], *keys[3:5], "metric"]])
    return facts.assign(all_sensitive=floor["all_sensitive"].reindex(places).to_numpy()).reset_index(drop=True)


def leak(table: pd.DataFrame) -> pd.DataFrame:
    """How much better a model looks on random cells than on whole samples, per category.

    Parameters
    ----------
    table
        From :func:`scores`.
    """
    keys = ["collection", "strategy", "by", "category", "model", "head", "metric"]
    pooled = table[table["setting"] == "pooled"]
    sides: dict[str, Any] = {}
    for name, preset in (("random_cells", "published"), ("whole_samples", "strict")):
        sides[name] = pooled[pooled["preset"] == preset].groupby(keys, sort=False)["value"].first()
    both = pd.concat(sides, axis=1, join="inner").reset_index()
    return both.assign(leak=both["random_cells"] - both["whole_samples"])


def figure_table(table: pd.DataFrame, figure: str) -> pd.DataFrame:
    """Rows of the table that a figure shows.

    Parameters
    ----------
    table
        From :func:`scores`.
    figure
        ``"2"``, ``"3"``, ``"5"`` or ``"6"``.
    """
    prompted = table["job_strategy"].eq("prompt")
    primary = table["collection"].eq("primary")
    rows = {
        "2": primary & table["setting"].eq("pooled") & ~prompted,
        "3": primary & table["setting"].eq("cross") & ~prompted,
        "5": primary & prompted,
        "6": table["collection"].eq("external"),
    }
    return table[rows[figure]].reset_index(drop=True)


def speeds(measured: pd.DataFrame) -> pd.DataFrame:
    """Table of figure 7: what was measured here beside what the paper prints.

    Parameters
    ----------
    measured
        From :func:`scdrugmap.tl.profile`, by model.
    """
    facts = published_scores("7").pivot(index="model", columns="metric", values="value")
    facts.columns = [f"{c}_{REPORTED}" for c in facts.columns]
    return measured.join(facts, how="left").rename_axis("model").reset_index()
