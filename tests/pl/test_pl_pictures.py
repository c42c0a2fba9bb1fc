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
    "benchmark": lambda result, cells: sd.pl.benchmark(result),
    "violin": lambda result, cells: sd.pl.violin(result),
    "heatmap": lambda result, cells: sd.pl.heatmap(result),
    "radar": lambda result, cells: sd.pl.radar(result),
    "radar_bar": lambda result, cells: sd.pl.radar(result, kind="bar"),
    "roc": lambda result, cells: sd.pl.roc(result),
    "calibration": lambda result, cells: sd.pl.calibration(result),
    "critical_difference": lambda result, cells: sd.pl.critical_difference(result),
    "profile": lambda result, cells: sd.pl.profile(profile_table()),
    "response": lambda result, cells: sd.pl.response(mapped(cells[::3]), size=12),
}


@pytest.mark.parametrize("name", DRAW)
def test_picture(name, result, cells, tmp_path):
    DRAW[name](result, cells)
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
