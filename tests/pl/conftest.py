"""Benchmark results whose scores are given, so that every number and every pixel is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import anndata as ad
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import scdrugmap as sd
from scdrugmap.evaluation.splits.leakage import LeakageReport

TYPES = ["breast", "lung", "melanoma", "myeloma"]


def make_cells(cells: int = 12) -> ad.AnnData:
    """Four cancer types of eight samples in two studies, and a fifth whose cells are all resistant."""
    rng = np.random.default_rng(0)
    rows = []
    for kind in TYPES:
        for i in range(8):
            label = "sensitive" if i % 2 and not (kind == "lung" and i == 1) else "resistant"
            rows += [(f"{kind}{i}", f"study {'AB'[i // 4]}", label, kind)] * cells
    for i in range(4):
        rows += [(f"liver{i}", f"study {'AB'[i // 2]}", "resistant", "liver")] * cells
    obs = pd.DataFrame(rows, columns=["sample", "study", "response", "cancer_type"])
    obs.index = [f"c{i}" for i in range(len(obs))]
    counts = rng.poisson(1, (len(obs), 6)).astype(np.float32)
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(6)]))


def scorer(strength: float, seed: int, y: np.ndarray) -> Callable[..., np.ndarray]:
    """P(sensitive) that was drawn beforehand: nothing is trained."""
    z = strength * (y - 0.5) + np.random.default_rng(seed).normal(size=len(y))
    score = 1 / (1 + np.exp(-z))
    return lambda train, test, seed: score[test]


def run(adata: ad.AnnData, *, baselines: list[str] | None = None, **options: object) -> sd.evaluation.BenchmarkResult:
    y = (adata.obs["response"] == "sensitive").to_numpy(dtype=float)
    models = {"scGPT": scorer(2.0, 1, y), "UCE": scorer(1.0, 2, y), "tGPT": scorer(0.0, 3, y)}
    names = ["all_sensitive", "majority"] if baselines is None else baselines
    return sd.tl.benchmark(adata, models=models, baselines=names, duplicates="ignore", rng=0, progress=False, **options)


@pytest.fixture(scope="session")
def cells() -> ad.AnnData:
    return make_cells()


@pytest.fixture(scope="session")
def twice(cells):
    """The same categories under two names, and all cells together."""
    adata = cells.copy()
    adata.obs["organ"] = "o" + adata.obs["cancer_type"].astype(str)
    return run(adata, by=["cancer_type", "organ", None], n_folds=3)


@pytest.fixture(scope="session")
def result(cells):
    """Five cancer types, one of which cannot be evaluated."""
    return run(cells, by="cancer_type", n_folds=3)


@pytest.fixture(scope="session")
def cross(cells):
    """Two left-out studies, no baseline at all."""
    return run(cells, setting="cross", baselines=[])


@pytest.fixture(scope="session")
def leaky(cells):
    """Samples and single cells, all cells together and by cancer type."""
    return run(cells, split=["sample", "cell"], by=[None, "cancer_type"], n_folds=2)


def calls() -> pd.DataFrame:
    values = {
        "n_cells": [90, 40, 300],
        "fraction_resistant": [0.8, 0.5, 0.1],
        "lower": [0.7, 0.35, 0.05],
        "upper": [0.87, 0.65, 0.16],
    }
    return pd.DataFrame(values, index=["s1", "s10", "s2"])


def with_sets() -> ad.AnnData:
    sets = ["resistant"] * 5 + ["sensitive"] * 3 + ["resistant|sensitive"] * 3 + [""]
    obs = pd.DataFrame(
        {"response_set": sets, "response": ["resistant"] * 6 + ["sensitive"] * 6}, index=[f"c{i}" for i in range(12)]
    )
    return ad.AnnData(np.ones((12, 1), dtype=np.float32), obs=obs, uns={"response": {"params": {"coverage": 0.9}}})


def shots() -> pd.DataFrame:
    n = np.repeat([0, 2, 8], 3)
    value = np.r_[0.6, 0.62, 0.64, 0.65, 0.7, 0.72, 0.8, 0.82, 0.86]
    return pd.DataFrame({"n_shots": n, "metric": "auroc", "value": value, "unit": "sample"})


def coverage() -> pd.DataFrame:
    values = {"of_vocabulary": [0.3, 0.5, np.nan], "of_genes": [0.9, 0.95, np.nan], "of_counts": [0.97, 0.99, np.nan]}
    return pd.DataFrame(
        {"model": ["scGPT", "Geneformer", "UCE"], **values, "note": ["", "", "the checkpoint is elsewhere"]}
    )


def leaks() -> LeakageReport:
    rows = [
        ("labels", "leak", "recognising the sample gives the label", ""),
        ("copies", "ok", "none", ""),
        ("studies", "note", "one class", ""),
    ]
    return LeakageReport(pd.DataFrame(rows, columns=["check", "level", "finding", "advice"]), None)


@pytest.fixture
def tables():
    """What the figures of tables take, by the name of the figure."""
    return {
        "sample_calls": calls(),
        "prediction_sets": with_sets(),
        "few_shot_curve": shots(),
        "gene_coverage": coverage(),
        "leakage": leaks(),
    }


@pytest.fixture(scope="session")
def fifteen():
    """Fifteen categories whose names sort wrongly as text."""
    rows = [
        (f"s{k}.{i}", f"study{'AB'[i // 2]}", "sensitive" if i % 2 else "resistant", f"type{k}")
        for k in range(1, 16)
        for i in range(4)
        for _ in range(5)
    ]
    obs = pd.DataFrame(rows, columns=["sample", "study", "response", "cancer_type"])
    obs.index = [f"c{i}" for i in range(len(obs))]
    counts = np.random.default_rng(0).poisson(1, (len(obs), 4)).astype(np.float32)
    cells = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(4)]))
    return run(cells, by="cancer_type", n_folds=2)


@pytest.fixture(autouse=True)
def close() -> Iterator[None]:
    """Leave no figure behind, and take none over."""
    plt.close("all")
    with plt.rc_context(matplotlib.rcParamsDefault | {"backend": "agg"}):
        yield
    plt.close("all")
