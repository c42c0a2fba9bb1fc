"""``scdrugmap demo``: the main job on simulated studies, from counts to a report."""

from __future__ import annotations

import time
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from scdrugmap.cli._console import console
from scdrugmap.cli._io import write_frame
from scdrugmap.cli._picture import draw_demo
from scdrugmap.cli._runs import print_summary

STEPS = (
    "simulate three studies",
    "check the counts, genes and labels",
    "embed: hvg, pca",
    "train on two studies, predict the third",
    "benchmark pooled (whole samples held out)",
    "benchmark cross (whole studies held out)",
    "write cells, tables and report",
)


def run_demo(folder: Path, seed: int) -> None:
    """Run every step and leave cells, tables and a report in a folder.

    Parameters
    ----------
    folder
        Created if need be; files of an earlier demo are replaced.
    seed
        Seed of the simulation and of everything after it.
    """
    from scdrugmap.cli._io import check_writable

    check_writable(folder)
    start = time.perf_counter()
    with Progress(
        TextColumn("{task.description:44}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    ) as bar:
        task = bar.add_task("", total=len(STEPS))
        steps = iter(STEPS)

        def step() -> None:
            name = next(steps)
            bar.update(task, description=name)
            if not console.is_terminal:
                console.print(f"[{time.perf_counter() - start:5.1f} s] {name}")

        step()
        import numpy as np
        import pandas as pd

        import scdrugmap as sd
        from scdrugmap.cli._io import write_cells

        adata = sd.datasets.simulate(n_cells=1200, n_genes=1000, rng=seed)
        bar.advance(task)

        step()
        report = sd.pp.check(adata)
        bar.advance(task)

        step()
        sd.tl.embed(adata, ["hvg", "pca"], rng=seed)
        bar.advance(task)

        step()
        held_out = str(adata.obs["study"].cat.categories[-1])
        is_query = (adata.obs["study"] == held_out).to_numpy()
        reference, query = adata[~is_query].copy(), adata[is_query].copy()
        predictor = sd.tl.train(reference, model="pca", groups="sample", rng=seed)
        predictor.save(folder / "predictor", overwrite=True)
        sd.tl.predict_response(query, predictor)
        for column in ("response_pred", "response_score"):
            values = query.obs[column]
            adata.obs[column] = pd.Series(values.astype(object), index=query.obs_names).reindex(adata.obs_names)
        adata.obs["response_pred"] = pd.Categorical(adata.obs["response_pred"], categories=["resistant", "sensitive"])
        adata.obs["response_score"] = adata.obs["response_score"].astype(np.float32)
        agreement = float((query.obs["response_pred"].astype(str) == query.obs["response"].astype(str)).mean())
        majority = float(query.obs["response"].value_counts(normalize=True).max())
        bar.advance(task)

        step()
        # Few epochs, for a demonstration of two minutes; the default trains longer.
        options = {"scvi": {"max_epochs": 15}}
        pooled = sd.tl.benchmark(
            adata, models=["pca"], setting="pooled", n_folds=4, embed_options=options, rng=seed, progress=False
        )
        bar.advance(task)

        step()
        cross = sd.tl.benchmark(adata, models=["pca"], setting="cross", embed_options=options, rng=seed, progress=False)
        bar.advance(task)

        step()
        write_cells(adata, folder / "cells.h5ad")
        table = pd.concat([pooled.table, cross.table], ignore_index=True)
        write_frame(table, folder / "results.csv", index=False)
        pooled.to_parquet(folder / "pooled")
        cross.to_parquet(folder / "cross")
        pooled.report(folder / "pooled.html")
        cross.report(folder / "report.html")
        components = next(v for k, v in query.obsm.items() if k.endswith("pca"))
        draw_demo(query, components, cross, folder / "picture.png", seed=seed)
        bar.advance(task)

    console.print(report)
    print_summary(cross, "across studies: mean over left-out studies [95 % interval over studies]")
    console.print(
        f"cells of the held-out {held_out}: {agreement:.1%} predicted as labelled "
        f"(calling every cell the majority label: {majority:.1%})"
    )
    console.print(f"\nfinished in {time.perf_counter() - start:.0f} s; everything is in {folder}/")
    for name, what in (
        ("picture.png", "cells of the held-out study by label and by call, and the benchmark"),
        ("report.html", "one page: data, splits, tables with intervals, figures"),
        ("pooled.html", "the same for the pooled setting"),
        ("results.csv", "every score of every fold"),
        ("cells.h5ad", "the cells with obsm X_hvg, X_pca and obs response_pred, response_score"),
        ("predictor/", "the trained predictor with its card"),
    ):
        console.print(f"  {name:12} {what}")
    console.print(
        "\nnext, on your own cells (raw counts; obs: response, sample, study):\n"
        "  scdrugmap check cells.h5ad\n"
        "  scdrugmap benchmark cells.h5ad --model pca --setting cross -o results\n"
        "  scdrugmap models list"
    )
