"""``sd.tl.profile``: sizes are exact, speeds and memory have the right unit and sign."""

from __future__ import annotations

import numpy as np
import pytest

import scdrugmap as sd
from scdrugmap import _anndata
from scdrugmap._errors import InputError, UnknownNameError
from scdrugmap.models import registry


@pytest.fixture(scope="module")
def adata():
    return sd.datasets.simulate(n_cells=120, n_genes=150, rng=0)


def tiny(adata, name="tgpt"):
    return registry.get(name).random(_anndata.gene_ids(adata), size="tiny")


def test_sizes_of_fitted_models(adata):
    table = sd.tl.profile(adata, ["hvg", "pca"], n_cells=60)
    assert table.index.tolist() == ["hvg", "pca"]
    embedded = sd.tl.embed(adata[:60].copy(), "pca", copy=True)
    assert table.loc["pca", "dim"] == embedded.obsm["X_scdrugmap_pca"].shape[1]
    assert table.loc["pca", "year"] == registry.get("pca").card.year
    assert (table[["cells_per_second", "training_cells_per_second"]] > 0).all(axis=None)


def test_network(adata):
    model = tiny(adata)
    before = {k: v.clone() for k, v in model.network.state_dict().items()}
    table = sd.tl.profile(adata, model, n_cells=16, device="cpu")
    row = table.iloc[0]
    assert row["n_parameters"] == sum(v.numel() for v in model.network.parameters())
    assert row["dim"] == model.dim == sd.tl.embed(adata, model, copy=True).obsm["X_tgpt"].shape[1]
    assert 0 < row["network_share"] <= 1 and 0 <= row["padding"] < 1
    assert row["tokens_per_cell"] > 1 and row["device"] == "cpu"
    assert row["cells_per_second"] > 0 and row["training_cells_per_second"] > 0
    assert 0.01 < row["peak_memory_gb"] < 1000
    # The measurement leaves no adapter, no gradient and no other weight behind.
    after = model.network.state_dict()
    assert before.keys() == after.keys() and all((before[k] == after[k]).all() for k in before)
    assert all(p.grad is None for p in model.network.parameters()) and not model.network.training


def test_without_training(adata):
    table = sd.tl.profile(adata, [tiny(adata), "pca"], n_cells=8, training=False)
    assert table["training_cells_per_second"].isna().all()


def test_data_unchanged_and_table_drawable(adata):
    X, obs = adata.X.copy(), adata.obs.copy()
    table = sd.tl.profile(adata, [tiny(adata), "pca"], n_cells=8)
    assert (adata.X != X).nnz == 0 and adata.obs.equals(obs) and not adata.obsm
    axes = sd.pl.profile(table)
    assert [ax.get_title(loc="left") for ax in axes][:2] == ["architecture", "year"]
    assert len(axes) == 8


def test_peak_memory_sees_an_allocation():
    from scdrugmap.tl._profile import PeakMemory

    with PeakMemory(interval=0.001) as memory:
        start = memory.peak
        block = np.ones(30_000_000)
        for _ in range(20):
            block += 1
    assert memory.peak - start > 100e6


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"models": []}, "models"),
        ({"models": "gpt4omini"}, "embedding"),
        ({"models": "pca", "n_cells": 0}, "n_cells"),
        ({"models": ["tgpt", "scgpt"], "checkpoint": "x"}, "checkpoint"),
    ],
)
def test_errors(adata, options, match):
    with pytest.raises(InputError, match=match):
        sd.tl.profile(adata, **options)


def test_unknown_model_and_no_cells(adata):
    with pytest.raises(UnknownNameError, match="tGPT"):
        sd.tl.profile(adata, "tgtp")
    with pytest.raises(InputError, match="0 cells"):
        sd.tl.profile(adata[:0], "pca")
