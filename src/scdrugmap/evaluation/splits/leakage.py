"""Ways in which the answer can reach a model other than through biology, looked for in one data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from scdrugmap._cohort import Cohort
from scdrugmap._keys import CLASSES

LEVELS = ("ok", "note", "leak")


@dataclass(frozen=True, eq=False)
class LeakageReport:
    """Findings of :func:`scdrugmap.tl.leakage_report`.

    Parameters
    ----------
    findings
        One row per check: ``check``, ``level`` (``"ok"``, ``"note"``: limits what can be learnt, ``"leak"``: gives answers
        away under a random-cell split), ``finding``, ``advice``.
    studies
        One row per study: cells, samples and cells per class.

    Examples
    --------
    >>> import pandas as pd
    >>> LeakageReport(
    ...     pd.DataFrame({"check": ["copies"], "level": ["ok"], "finding": ["none"], "advice": [""]}), None
    ... ).leaks
    []
    """

    findings: pd.DataFrame
    studies: pd.DataFrame | None

    @property
    def leaks(self) -> list[str]:
        """Names of the checks that found a leak."""
        return self.findings.loc[self.findings["level"] == "leak", "check"].tolist()

    def __str__(self) -> str:
        mark = {"ok": "ok  ", "note": "note", "leak": "LEAK"}
        lines = []
        for row in self.findings.itertuples(index=False):
            lines.append(f"[{mark[row.level]}] {row.check}: {row.finding}")
            if row.advice:
                lines.append(f"       {row.advice}")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.findings.to_html(index=False)


def find_leaks(
    cells: Cohort, columns: Mapping[str, np.ndarray] | None = None, representations: Sequence[tuple[str, str]] = ()
) -> LeakageReport:
    """Run every check.

    Parameters
    ----------
    cells
        Labels, samples, studies and copies.
    columns
        Further categorical columns that could stand in for the label.
    representations
        Name of each given representation and what is wrong with it (empty: nothing known).
    """
    from scdrugmap.evaluation.splits.cells import study_card

    rows = [*_samples(cells), *_studies(cells), *_copies(cells), *_columns(cells, columns or {})]
    rows += [
        ("representation " + name, "leak" if problem else "ok", problem or "nothing known against it",
         "let the benchmark fit or embed it per fold, by the model's name" if problem else "")
        for name, problem in representations
    ]  # fmt: skip
    findings = pd.DataFrame(rows, columns=["check", "level", "finding", "advice"])
    return LeakageReport(findings, study_card(cells))


Row = tuple[str, str, str, str]


def _labelled(cells: Cohort) -> pd.DataFrame:
    frame = pd.DataFrame({"y": cells.y, "sample": cells.sample, "study": cells.study})
    return frame[frame["y"] >= 0]


def _samples(cells: Cohort) -> Iterator[Row]:
    frame = _labelled(cells)
    per = frame.groupby("sample", observed=True)["y"].agg(["min", "max", "size"])
    mixed = int((per["min"] != per["max"]).sum())
    pure = per[per["min"] == per["max"]]["min"].value_counts()
    counts = [int(pure.get(c, 0)) + mixed for c in (0, 1)]
    text = f"{counts[0]} samples hold {CLASSES[0]} and {counts[1]} hold {CLASSES[1]} cells"
    if mixed == len(per):
        yield ("labels of samples", "ok", f"every sample holds both labels; {text}", "")
    else:
        share = 1 - per.loc[per["min"] != per["max"], "size"].sum() / max(len(frame), 1)
        yield (
            "labels of samples",
            "leak",
            f"{len(per) - mixed} of {len(per)} samples carry one label ({share:.0%} of the cells): recognising the sample gives "
            "the label",
            "keep samples whole (the default); never compare with random-cell scores",
        )
    if min(counts) < 2:
        yield ("samples per class", "note", text, "a split by sample needs two samples of each class")
    else:
        yield ("samples per class", "ok", text, "")


def _studies(cells: Cohort) -> Iterator[Row]:
    frame = _labelled(cells)
    per = frame.groupby("study", observed=True)["y"].agg(["min", "max"])
    single = int((per["min"] == per["max"]).sum())
    if len(per) == 1:
        yield (
            "studies",
            "note",
            "one study: nothing can be said about other laboratories",
            "add studies for setting='cross'",
        )
    elif single:
        yield (
            "studies",
            "leak",
            f"{single} of {len(per)} studies hold one class: batch effects between studies look like response",
            "use setting='cross', or evaluate inside studies with by=<study>",
        )
    else:
        yield ("studies", "ok", f"all {len(per)} studies hold both classes", "")
    bare = pd.Series(frame["sample"].astype(str)).str.rpartition("/")[2]
    shared = pd.DataFrame({"sample": bare.to_numpy(), "study": frame["study"].to_numpy()}).drop_duplicates()
    several = int(shared["sample"].duplicated(keep=False).sum())
    if several and len(per) > 1:
        text = f"{shared.loc[shared['sample'].duplicated(), 'sample'].nunique()} sample names occur in several studies"
        yield ("sample names", "note", text, "they count as different samples; merge the studies if they are the same")


def _copies(cells: Cohort) -> Iterator[Row]:
    if cells.duplicates is None:
        yield ("copied cells", "note", "not looked for", "pass counts")
        return
    frame = pd.DataFrame({"copy": cells.duplicates, "sample": cells.sample, "study": cells.study, "y": cells.y})
    repeated = frame[frame["copy"].duplicated(keep=False)]
    if repeated.empty:
        yield ("copied cells", "ok", "none", "")
        return
    grouped = repeated.groupby("copy")
    samples = int((grouped["sample"].nunique() > 1).sum())
    studies = int((grouped["study"].nunique() > 1).sum())
    labels = int((repeated[repeated["y"] >= 0].groupby("copy")["y"].nunique() > 1).sum())
    extra = len(repeated) - grouped.ngroups
    yield (
        "copied cells",
        "leak",
        f"{grouped.ngroups} cells occur more than once ({extra} extra copies); {samples} of them in several samples, {studies} in "
        f"several studies, {labels} with contradicting labels",
        "duplicates='merge' (the default) keeps all copies on one side; remove the extra copies to analyse each cell once",
    )


def _columns(cells: Cohort, columns: Mapping[str, np.ndarray]) -> Iterator[Row]:
    known = cells.y >= 0
    y = cells.y[known]
    if len(np.unique(y)) < 2:
        return
    for name, values in columns.items():
        frame = pd.DataFrame({"value": values[known], "y": y}).dropna()
        groups = frame.groupby("value", observed=True)["y"].agg(["min", "max"])
        if 2 <= len(groups) <= max(len(frame) // 5, 2) and (groups["min"] == groups["max"]).all():
            yield (
                f"obs[{name!r}]",
                "note",
                f"its {len(groups)} values determine the label completely",
                "a model that recognises it needs no biology; check that it is not a batch",
            )
