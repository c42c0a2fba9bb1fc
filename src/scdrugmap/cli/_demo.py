"""``scdrugmap demo``: the main job on simulated studies, from counts to a report."""

from __future__ import annotations

import shlex
import threading
import time
import warnings
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from scdrugmap._errors import ScDrugMapWarning
from scdrugmap.cli._console import console, progress
from scdrugmap.cli._picture import draw_demo
from scdrugmap.cli._runs import print_summary
from scdrugmap.datasets.files import write_frame

STEPS = (
    "simulate three studies",
    "check the counts, genes and labels",
    "embed: hvg, pca",
    "train on two studies, predict the third",
    "benchmark pooled (whole samples held out)",
    "benchmark cross (whole studies held out)",
    "write cells, tables and report",
)


#: Seconds after which a step that goes on says so where no bar can.
SILENCE = 3.0


class Steps:
    """The steps of the demonstration, as a bar on a terminal and as lines elsewhere."""

    def __init__(self) -> None:
        self.start = self.said = time.perf_counter()
        self.bar = Progress(
            TextColumn("{task.description:58}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=progress,
        )
        self.task = self.bar.add_task("", total=len(STEPS))
        self.names = iter(STEPS)
        self.name = ""
        self.over = threading.Event()
        self.watch = threading.Thread(target=self._keep_talking, daemon=True)

    def __enter__(self) -> Steps:
        self.bar.start()
        self.watch.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.over.set()
        self.watch.join()
        self.bar.update(self.task, completed=len(STEPS))
        self.bar.stop()

    def next(self) -> None:
        """Begin the next step."""
        if self.name:
            self.bar.advance(self.task)
        self.name = next(self.names)
        self.tell(self.name)

    def unit(self, outcome: Any, done: int, total: int) -> None:
        """Take one finished unit of a benchmark."""
        if progress.is_terminal or time.perf_counter() - self.said >= SILENCE:
            self.tell(f"{self.name}: {done} of {total} ({outcome.unit.model})")

    def _keep_talking(self) -> None:
        """Say that a step goes on which tells nothing itself; a terminal has a clock that runs."""
        while not self.over.wait(0.5):
            if not progress.is_terminal and time.perf_counter() - self.said >= SILENCE:
                self.tell(f"{self.name}: goes on")

    def tell(self, text: str) -> None:
        """Show what goes on."""
        self.said = time.perf_counter()
        self.bar.update(self.task, description=text)
        if not progress.is_terminal:
            progress.print(f"[{self.said - self.start:5.1f} s] {text}")


def run_demo(folder: Path, seed: int) -> None:
    """Run every step and leave cells, tables and a report in a folder.

    Parameters
    ----------
    folder
        Created if need be; files of an earlier demo are replaced.
    seed
        Seed of the simulation and of everything after it.
    """
    from scdrugmap.datasets.files import check_writable

    check_writable(folder)
    with Steps() as steps:
        steps.next()
        import numpy as np
        import pandas as pd

        import scdrugmap as sd
        from scdrugmap.datasets.files import write_cells
        from scdrugmap.evaluation.grid.inputs import BASELINES

        adata = sd.datasets.simulate(n_cells=600, n_genes=500, rng=seed)
        steps.next()
        report = sd.pp.check(adata)
        steps.next()
        sd.tl.embed(adata, ["hvg", "pca"], rng=seed)
        steps.next()
        held_out = str(adata.obs["study"].cat.categories[-1])
        is_query = (adata.obs["study"] == held_out).to_numpy()
        reference, query = adata[~is_query].copy(), adata[is_query].copy()
        predictor = sd.tl.train(reference, model="pca", groups="sample", rng=seed)
        predictor.save(folder / "predictor", overwrite=True)
        with warnings.catch_warnings():
            # The held-out study is of another drug and tissue, as the last lines say.
            warnings.simplefilter("ignore", ScDrugMapWarning)
            sd.tl.predict_response(query, predictor)
        for column in ("response_pred", "response_score"):
            values = query.obs[column]
            adata.obs[column] = pd.Series(values.astype(object), index=query.obs_names).reindex(adata.obs_names)
        adata.obs["response_pred"] = pd.Categorical(adata.obs["response_pred"], categories=["resistant", "sensitive"])
        adata.obs["response_score"] = adata.obs["response_score"].astype(np.float32)
        agreement = float((query.obs["response_pred"].astype(str) == query.obs["response"].astype(str)).mean())
        majority = float(query.obs["response"].value_counts(normalize=True).max())
        steps.next()
        # All baselines but scvi, which takes longer than all the rest.
        options = {"baselines": [b for b in BASELINES if b != "scvi"], "rng": seed, "progress": False}
        pooled = sd.tl.benchmark(adata, models=["pca"], n_folds=4, on_unit=steps.unit, **options)
        steps.next()
        cross = sd.tl.benchmark(adata, models=["pca"], setting="cross", on_unit=steps.unit, **options)
        steps.next()
        write_cells(adata, folder / "cells.h5ad")
        table = pd.concat([pooled.table, cross.table], ignore_index=True)
        write_frame(table, folder / "results.csv", index=False)
        pooled.to_parquet(folder / "pooled")
        cross.to_parquet(folder / "cross")
        pooled.report(folder / "pooled.html")
        cross.report(folder / "report.html")
        components = next(v for k, v in query.obsm.items() if k.endswith("pca"))
        draw_demo(query, components, cross, folder / "picture.png", seed=seed)
    console.print(report)
    print_summary(cross, "across studies: mean over left-out studies [95 % interval over studies]")
    console.print(
        f"cells of the held-out {held_out}, which is of another drug and tissue: {agreement:.1%} predicted as labelled "
        f"(calling every cell the majority label: {majority:.1%})"
    )
    _say_what_is_there(folder, time.perf_counter() - steps.start)


def _say_what_is_there(folder: Path, seconds: float) -> None:
    console.print(f"\nfinished in {seconds:.0f} s; everything is in {folder}/")
    for name, what in (
        ("picture.png", "cells of the held-out study by label and by call, and the benchmark"),
        ("report.html", "one page: data, splits, tables with intervals, figures"),
        ("pooled.html", "the same for the pooled setting"),
        ("results.csv", "every score of every fold"),
        ("cells.h5ad", "the cells with obsm X_scdrugmap_hvg, X_scdrugmap_pca and obs response_pred, response_score"),
        ("predictor/", "the trained predictor with its card"),
    ):
        console.print(f"  {name:12} {what}")
    console.print("\nnext, as they stand or with your own cells (raw counts; obs: response, sample, study):")
    for line in next_commands(folder):
        # A line of its own that can be copied, however narrow the terminal is.
        console.print(f"  {line}", soft_wrap=True, highlight=False)


def next_commands(folder: Path) -> list[str]:
    """Commands that run on what the demonstration left.

    Parameters
    ----------
    folder
        Of the demonstration.
    """
    cells, predictor = shlex.quote(str(folder / "cells.h5ad")), shlex.quote(str(folder / "predictor"))
    return [
        f"scdrugmap check {cells}",
        f"scdrugmap predict {cells} --predictor {predictor} --sample-key sample -o calls.csv",
        f"scdrugmap benchmark {cells} --model pca --setting cross -o results",
    ]
