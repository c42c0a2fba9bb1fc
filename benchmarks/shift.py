"""Does the verdict on a query tell transfers that work from transfers that do not?

Usage: python benchmarks/shift.py [--seeds 4] [--data FOLDER]

Simulated pairs of every kind of shift come first; they leave a wide gap for the thresholds of ``scdrugmap.trust.shift``.
With ``--data``, the folder of the real studies, the same is printed for real pairs. These were looked at when the place
of the thresholds inside the gap was chosen, so that they are no blind confirmation. A pair is
harmful where the predictor's AUROC on the true states of the query is below 0.6, harmless from 0.7 on; queries of one
class, and cells that have no response, are what their kind says.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

import scdrugmap as sd

HARMLESS, HARMFUL = "harmless", "harmful"
FIGURES = ("support", "similarity", "coherence_kept", "minority_called", "auc", "coverage")


def rescaled(cells: ad.AnnData, sd_log: float, rng: np.random.Generator) -> ad.AnnData:
    """The cells with the mean of every gene changed at random, as in another tissue or species."""
    out = cells.copy()
    out.X = cells.X.multiply(np.exp(rng.normal(scale=sd_log, size=cells.n_vars))).tocsr()
    out.X.data = rng.poisson(out.X.data).astype(np.float32)
    out.X.eliminate_zeros()
    return out


def thinned(cells: ad.AnnData, share: float, rng: np.random.Generator) -> ad.AnnData:
    """The cells at a lower depth."""
    out = cells.copy()
    out.X.data = rng.binomial(cells.X.data.astype(int), share).astype(np.float32)
    out.X.eliminate_zeros()
    return out


def shuffled(cells: ad.AnnData, rng: np.random.Generator) -> ad.AnnData:
    """The cells with the names of the genes dealt anew."""
    out = cells.copy()
    out.var = out.var.iloc[rng.permutation(out.n_vars)].copy()
    return out


def simulated(seed: int) -> tuple[ad.AnnData, dict[str, tuple[ad.AnnData, str | None]]]:
    """Training cells, and queries with what they are; ``None`` where the AUROC is to say."""
    rng = np.random.default_rng(seed)
    same = {"n_patients": 8, "n_genes": 1500, "n_cells": 2000, "rng": seed, "shared_effect": 2.0, "depth": 2000}
    both = sd.datasets.simulate(n_studies=2, drugs=["erlotinib", "erlotinib"], study_effect=0.6, **same)
    other = sd.datasets.simulate(n_studies=2, study_effect=0.6, **(same | {"shared_effect": 0.0, "rng": seed + 100}))
    first = both.obs["study"] == both.obs["study"].iloc[0]
    batch = both.obs["batch"] == both.obs.loc[first, "batch"].iloc[0]
    train, held = both[first & batch].copy(), both[first & ~batch].copy()
    state = held.obs["true_state"].astype(str)
    sample = held.obs["sample"].value_counts().index[0]
    foreign = other[other.obs["study"] != other.obs["study"].iloc[0]].copy()
    immune = held[held.obs["cell_type"].astype(str) != held.obs["cell_type"].value_counts().index[0]].copy()
    mouse = rescaled(held, 0.3, rng)
    mouse.var = mouse.var[[]].set_axis([n.capitalize() for n in mouse.var_names])
    return train, {
        "held-out batch": (held, HARMLESS),
        "one class, sensitive": (held[state == "sensitive"].copy(), HARMLESS),
        "one class, resistant": (held[state == "resistant"].copy(), HARMLESS),
        "one sample": (held[held.obs["sample"] == sample].copy(), HARMLESS),
        "lower depth": (thinned(held, 0.3, rng), None),
        "other study, same drug": (both[~first].copy(), None),
        "composition: no malignant cell": (immune, None),
        "other drug programme, other cells": (foreign, None),
        "other tissue": (rescaled(foreign, 1.0, rng), None),
        "other species, orthologues": (rescaled(foreign, 1.4, rng), None),
        "other species, own names": (mouse, HARMFUL),
        "shuffled genes": (shuffled(held, rng), HARMFUL),
    }


def other_programme(seed: int) -> tuple[ad.AnnData, dict[str, tuple[ad.AnnData, str | None]]]:
    """Two studies of the same kind of cells with two drugs whose resistance programmes share nothing."""
    cells = sd.datasets.simulate(
        n_studies=2, drugs=["erlotinib", "paclitaxel"], n_patients=8, n_cells=2000, depth=2000, study_effect=0.6,
        shared_effect=0.0, private_effect=2.0, rng=seed,
    )  # fmt: skip
    first = cells.obs["study"] == cells.obs["study"].iloc[0]
    return cells[first].copy(), {"other drug programme, same kind of cells": (cells[~first].copy(), None)}


def real(folder: Path) -> Iterator[tuple[str, ad.AnnData, dict[str, tuple[ad.AnnData, str | None]]]]:
    """Pairs of real studies."""
    rng = np.random.default_rng(0)

    def read(name: str, most: int = 800) -> ad.AnnData:
        cells = ad.read_h5ad(folder / f"{name}.h5ad")
        return cells[np.sort(rng.permutation(cells.n_obs)[:most])].copy()

    mix = read("tian2019_lung_mixology", 2000)
    zheng, kang, pc9 = read("zheng2017_pbmc"), read("kang2018_pbmc_subset"), read("aissa2021_pc9_day11_unlabelled")
    lines = {"SCC47": read("kinker2020_scc47"), "JHU006": read("kinker2020_jhu006")}
    away: dict[str, tuple[ad.AnnData, str | None]] = {
        "PBMC (Zheng)": (zheng, HARMFUL),
        "PBMC (Kang)": (kang, HARMFUL),
        "PC9, shuffled genes": (shuffled(pc9, rng), HARMFUL),
        "PC9 (no response known)": (pc9, ""),
    }
    for batch in mix.obs["batch"].unique():
        held = mix[mix.obs["batch"] == batch].copy()
        queries: dict[str, tuple[ad.AnnData, str | None]] = {"held-out batch": (held, HARMLESS)}
        queries["held-out batch, shuffled genes"] = (shuffled(held, rng), HARMFUL)
        for line, n in held.obs["cell_line"].value_counts().items():
            if n >= 20:
                queries[f"held-out batch, {line} alone"] = (held[held.obs["cell_line"] == line].copy(), HARMLESS)
        if batch == mix.obs["batch"].iloc[0]:
            queries |= away | {name: (cells, None) for name, cells in lines.items()}
        yield f"mixology without {batch}", mix[mix.obs["batch"] != batch].copy(), queries
    for name, other in (("SCC47", "JHU006"), ("JHU006", "SCC47")):
        cells = lines[other]
        queries = {other: (cells, None), "mixology": (mix, None), **away}
        for label in ("sensitive", "resistant"):
            queries[f"{other}, {label} alone"] = (cells[cells.obs["response"] == label].copy(), HARMLESS)
        queries[f"{other}, shuffled genes"] = (shuffled(cells, rng), HARMFUL)
        yield name, lines[name], queries


def judged(name: str, train: ad.AnnData, queries: dict[str, tuple[ad.AnnData, str | None]]) -> pd.DataFrame:
    """Verdict and figures of every query, and what it is."""
    predictor = sd.tl.train(train, model="pca", head="logistic", groups=False, rng=0)
    rows = []
    for kind, (query, truth) in queries.items():
        own = kind != "other species, own names"
        verdict, auroc = predictor.judge(query) if own else _judged_mouse(predictor, query), np.nan
        if truth is None:
            column = "true_state" if "true_state" in query.obs else "response"
            y = query.obs[column].astype(str) == "sensitive"
            auroc = roc_auc_score(y, predictor.predict(query)["score"])
            truth = HARMLESS if auroc >= 0.7 else HARMFUL if auroc < 0.6 else ""
        rows.append(
            {"training": name, "query": kind, "verdict": verdict.verdict, "truth": truth, "AUROC": auroc}
            | verdict.figures
        )
    return pd.DataFrame(rows)


def _judged_mouse(predictor: Any, query: ad.AnnData) -> Any:
    """Genes of another species have no features under a baseline: only their names and counts are judged."""
    return predictor.judge(query, features=np.zeros((query.n_obs, predictor.head.n_features_in_)))


def show(table: pd.DataFrame) -> None:
    """Print verdicts per kind of query and the ROC of each figure."""
    table = table.assign(pairs=1)
    counts = table.pivot_table(
        index=["query"], columns="verdict", values="pairs", aggfunc="sum", fill_value=0, sort=False
    )
    means = table.groupby("query", sort=False)[["AUROC", *FIGURES]].mean().round(2)
    print(
        counts.join(means)
        .join(table.groupby("query", sort=False)["truth"].agg(lambda t: "/".join(sorted(set(t)))))
        .to_string()
    )
    known = table[table["truth"].isin([HARMLESS, HARMFUL])]
    harmful = known["truth"] == HARMFUL
    for figure in FIGURES:
        value = known[figure].fillna(-1) * (-1 if figure != "auc" else 1)
        print(f"ROC of {figure}: {roc_auc_score(harmful, value):.3f}")
    print(pd.crosstab(known["truth"], known["verdict"]).to_string(), "\n", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    made = [pair(seed) for pair in (simulated, other_programme) for seed in range(arguments.seeds)]
    show(pd.concat([judged("simulation", *pair) for pair in made]))
    if arguments.data:
        table = pd.concat([judged(*pair) for pair in real(arguments.data)])
        print(table[["training", "query", "verdict", "truth", "AUROC", *FIGURES]].round(2).to_string(index=False))
        show(table)


if __name__ == "__main__":
    main()
