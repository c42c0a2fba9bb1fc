"""Figures 1b-d to 7, drawn from what the run has."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd

from scdrugmap import pl, tl
from scdrugmap._anndata import gene_ids
from scdrugmap._errors import InputError
from scdrugmap._files import atomic_path
from scdrugmap._keys import KEYS
from scdrugmap.datasets import catalogue
from scdrugmap.evaluation.result.result import BenchmarkResult
from scdrugmap.figures import axes
from scdrugmap.models import registry
from scdrugmap.study.chosen import options_of
from scdrugmap.study.grids import PUBLISHED as HEAD
from scdrugmap.study.grids import Job
from scdrugmap.study.joined import chosen_rows
from scdrugmap.study.missing import Missing
from scdrugmap.study.plan import MEASURED_GENES
from scdrugmap.study.spec import ReproduceSpec

if TYPE_CHECKING:
    from scdrugmap.study.chosen import Chosen

#: Cells of a map, and of the measurement of speed.
MAP_CELLS, SPEED_CELLS = 5000, 16
#: Cells in a prompt of the paper.
PROMPT_CELLS = 10
#: Metric of the paper's figures.
METRIC = "f1"


class Pages:
    """The folder of the figures; one that cannot be drawn is listed and leaves the others.

    Parameters
    ----------
    spec, missing
        The run, and its list of what is left out.
    """

    def __init__(self, spec: ReproduceSpec, missing: Missing) -> None:
        self.spec, self.missing = spec, missing
        self.folder, self.names = spec.store / "figures", list[str]()

    def draw(self, name: str, figure: Callable[..., Any], *args: Any, **options: Any) -> None:
        """Draw one figure into a file."""
        import matplotlib.pyplot as plt

        with self.missing.leaves_the_rest(f"figure {name}"):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                figure(*args, show=False, save=self.folder / f"{name}.png", **options)
                self.names.append(f"{name}.png")
            finally:
                plt.close("all")

    def account_for(self, number: str, why: str) -> None:
        """List a figure of which nothing could be drawn and nothing is listed yet."""
        listed = any(name.startswith(f"figure {number}") for name in self.missing.reasons)
        if not listed and not any(name.startswith(f"figure{number}") for name in self.names):
            self.missing.note(f"figure {number}", why)


def figure_1(pages: Pages, chosen: Chosen) -> None:
    """1b-d: the categories, and the data sets and cells of both collections, of the whole catalogue."""
    del chosen
    pages.draw("figure1b", pl.catalogue)
    pages.draw("figure1c", pl.catalogue, catalogue(collection="primary"))
    pages.draw("figure1d", pl.catalogue, catalogue(collection="external"))


def one_head(result: BenchmarkResult) -> BenchmarkResult:
    """The result with one head per model: that which is trained to convergence, where there are two."""
    if not {HEAD, "mlp"} <= set(result.units["head"]):
        return result
    units = result.units[result.units["head"] != HEAD]
    return replace(
        result, units=units.reset_index(drop=True), table=result.table[result.table["head"] != HEAD].reset_index(drop=True),
        predictions=result.predictions[result.predictions["unit"].isin(units["unit"])].reset_index(drop=True),
    )  # fmt: skip


def bars(pages: Pages, number: str, results: Mapping[Job, BenchmarkResult]) -> None:
    """2 and 6: bars with folds and intervals, one file per benchmark and categorisation."""
    for job, result in results.items():
        for by in pd.unique(result.table.loc[result.table["setting"] == job.setting, "by"]):
            part = one_head(result.select(by=by, setting=job.setting))
            pages.draw(f"figure{number}-{job.name}-{by}", pl.benchmark, part, metric=METRIC)


def circles(pages: Pages, number: str, results: Mapping[Job, BenchmarkResult], metrics: tuple[str, ...]) -> None:
    """3, 5 and 6: radar, circular bars, and for cancer types violin and box."""
    for job, result in results.items():
        for by in pd.unique(result.table.loc[result.table["setting"] == job.setting, "by"]):
            part = one_head(result.select(by=by, setting=job.setting))
            places = part.summary(metrics=METRIC, n_resamples=0).dropna(subset=["value"])["category"].nunique()
            if places == 0:
                continue
            stem = f"figure{number}-{job.name}-{by}"
            for metric in metrics:
                end = "" if metric == METRIC else f"-{metric}"
                pages.draw(f"{stem}-circular{end}", pl.circular, part, metric=metric)
                if places > 2:
                    pages.draw(f"{stem}-radar{end}", pl.radar, part, metric=metric)
            if by == "cancer_type" and number == "3":
                pages.draw(f"{stem}-violin", pl.violin, part, metric=METRIC)


def figure_4(pages: Pages, chosen: Chosen, cells: ad.AnnData) -> None:
    """UMAP of the embeddings of every model, by cancer type and by response; the paper shows three of them."""
    import scanpy as sc

    shown = [c for c in chosen.networks if KEYS.embedding(c.key) in cells.obsm]
    rows = np.random.default_rng(pages.spec.seed).permutation(cells.n_obs)[:MAP_CELLS]
    for card in shown:
        X = np.asarray(cells.obsm[KEYS.embedding(card.key)][np.sort(rows)])
        known = np.isfinite(X).all(axis=1)

        def drawn(X: np.ndarray = X, known: np.ndarray = known, **options: Any) -> None:
            part = ad.AnnData(obs=cells.obs.iloc[np.sort(rows)[known]].copy(), obsm={"X_model": X[known]})
            sc.pp.neighbors(part, use_rep="X_model", n_neighbors=min(15, part.n_obs - 1), random_state=pages.spec.seed)
            sc.tl.umap(part, random_state=pages.spec.seed)
            pl.response(part, color=[KEYS.cancer_type, KEYS.response], **options)

        pages.draw(f"figure4-{card.key}", drawn)


def figure_5a(pages: Pages, cells: ad.AnnData) -> None:
    """The prompt of the paper with cells of the first series: what a chat model is asked."""
    from scdrugmap.prompting import preview

    series = cells.obs[KEYS.study].iloc[0]
    rows = np.flatnonzero((cells.obs[KEYS.study] == series).to_numpy())[:PROMPT_CELLS]
    genes = gene_ids(cells)
    names = np.where(genes.symbols == "", genes.names, genes.symbols).tolist()

    def drawn(**options: Any) -> None:
        text = preview(
            cells.X[rows],
            names,
            template="scdrugmap",
            source=[str(series)] * len(rows),
            show_accession=True,
            cache=False,
        ).text
        lines = [part for line in text.splitlines() for part in textwrap.wrap(line, 110) or [""]]
        ax = axes.new_axes(None, (6.6, 0.4 + 0.125 * len(lines)))
        ax.set_axis_off()
        ax.text(
            0, 1, "\n".join(lines), va="top", family="monospace", fontsize=7, transform=ax.transAxes, parse_math=False
        )
        axes.title(ax, "Prompt of the paper (answer 1: sensitive, 0: resistant)")
        axes.finish(ax, **options)

    pages.draw("figure5a", drawn)


def measured(
    spec: ReproduceSpec, cells: ad.AnnData | None, checkpoints: Mapping[str, Path], missing: Missing
) -> pd.DataFrame:
    """Size and speed of every model on this machine, for figure 7; measured once.

    Parameters
    ----------
    spec, cells, checkpoints, missing
        The run and what it has; without cells, simulated ones serve.
    """
    from scdrugmap import datasets

    tables = []
    if cells is None:
        cells = datasets.simulate(n_studies=1, n_cells=60, n_genes=MEASURED_GENES, rng=0)
    rows = np.sort(np.random.default_rng(spec.seed).permutation(cells.n_obs)[:SPEED_CELLS])
    part = chosen_rows(cells, rows)
    for name in [*checkpoints, "pca"]:
        file = spec.store / "profile" / f"{name}.parquet"
        with missing.leaves_the_rest(f"speed of {name}"):
            if not file.exists():
                folder = checkpoints.get(name)
                model: Any = name if folder is None else registry.load(name, folder, **options_of(spec, name))
                found = tl.profile(part, model, n_cells=SPEED_CELLS, device=spec.device, rng=spec.seed)
                file.parent.mkdir(parents=True, exist_ok=True)
                with atomic_path(file) as scratch:
                    found.reset_index().to_parquet(scratch, index=False)
            tables.append(pd.read_parquet(file).set_index("model"))
    if not tables:
        raise InputError("models", "none could be measured", "one model", "see what is missing.")
    return pd.concat(tables)
