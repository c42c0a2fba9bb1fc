"""Pictures of known results; ``SCDRUGMAP_WRITE_PICTURES=1`` writes the baselines anew (look at them then)."""

from __future__ import annotations

import os
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.testing.compare import compare_images

import scdrugmap as sd
from scdrugmap.figures.axes import scores
from scdrugmap.figures.benchmark import rows

BASELINE = Path(__file__).parent / "baseline"
#: Root mean square over pixels of 0 to 255: letters may move by a pixel, a bar that is missing exceeds it.
TOLERANCE = 12.0


def profile_table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "architecture": ["principal components", "encoder of 6 layers", "decoder of 32 layers"],
            "n_parameters": [9e4, 9e6, 8e9],
            "cells_per_second": [900.0, 40.0, 0.3],
        },
        index=["pca", "scBERT", "Llama-3-8B"],
    )


def mapped(cells: ad.AnnData) -> ad.AnnData:
    adata = cells.copy()
    rng = np.random.default_rng(0)
    centre = pd.factorize(adata.obs["cancer_type"])[0]
    adata.obsm["X_umap"] = np.c_[np.cos(centre * 1.3), np.sin(centre * 1.3)] * 4 + rng.normal(size=(adata.n_obs, 2))
    return adata


DRAW = {
    "benchmark": lambda result, cells, tables: sd.pl.benchmark(result),
    "violin": lambda result, cells, tables: sd.pl.violin(result),
    "heatmap": lambda result, cells, tables: sd.pl.heatmap(result),
    "radar": lambda result, cells, tables: sd.pl.radar(result),
    "radar_bar": lambda result, cells, tables: sd.pl.radar(result, kind="bar"),
    "roc": lambda result, cells, tables: sd.pl.roc(result),
    "calibration": lambda result, cells, tables: sd.pl.calibration(result),
    "critical_difference": lambda result, cells, tables: sd.pl.critical_difference(result),
    "profile": lambda result, cells, tables: sd.pl.profile(profile_table()),
    "response": lambda result, cells, tables: sd.pl.response(mapped(cells[::3]), size=12),
    "circular": lambda result, cells, tables: sd.pl.circular(result),
    "rows": lambda result, cells, tables: rows(
        result, scores(result, "f1_macro", "cell", None), "f1_macro", "cell", None
    ),
    "sample_calls": lambda result, cells, tables: sd.pl.sample_calls(tables["sample_calls"]),
    "prediction_sets": lambda result, cells, tables: sd.pl.prediction_sets(tables["prediction_sets"]),
    "few_shot_curve": lambda result, cells, tables: sd.pl.few_shot_curve(tables["few_shot_curve"]),
    "gene_coverage": lambda result, cells, tables: sd.pl.gene_coverage(tables["gene_coverage"]),
    "leakage": lambda result, cells, tables: sd.pl.leakage(tables["leakage"]),
}


@pytest.mark.parametrize("name", DRAW)
def test_picture(name, result, cells, tables, tmp_path):
    DRAW[name](result, cells, tables)
    expected = BASELINE / f"{name}.png"
    if os.environ.get("SCDRUGMAP_WRITE_PICTURES"):
        plt.savefig(expected, dpi=50)
    actual = tmp_path / f"{name}.png"
    plt.savefig(actual, dpi=50)
    assert compare_images(str(expected), str(actual), tol=TOLERANCE) is None
    assert expected.stat().st_size < 30_000


def test_tolerance_notices_a_missing_model(result, tmp_path):
    sd.pl.benchmark(result, models=["UCE", "tGPT", "majority"])
    actual = tmp_path / "benchmark.png"
    # In the size of the baseline, so that only the picture differs.
    height, width = plt.imread(BASELINE / "benchmark.png").shape[:2]
    plt.gcf().set_size_inches(width / 50, height / 50)
    plt.savefig(actual, dpi=50)
    assert compare_images(str(BASELINE / "benchmark.png"), str(actual), tol=TOLERANCE) is not None
