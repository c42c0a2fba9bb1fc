"""Predictors, run stores and cached embeddings that version 0.1 wrote are still read, and still give its numbers."""

from __future__ import annotations

import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scdrugmap as sd

OLD = Path(__file__).parent / "older" / "v0_1"
GENES = [
    "TP53",
    "EGFR",
    "MYC",
    "KRAS",
    "BRAF",
    "PTEN",
    "RB1",
    "CDK4",
    "CDK6",
    "ERBB2",
    "ALK",
    "MET",
    "AXL",
    "VIM",
    "CDH1",
    "EPCAM",
    "KRT8",
    "KRT18",
    "MKI67",
    "TOP2A",
    "CCND1",
    "BCL2",
    "MCL1",
    "NRAS",
    "PIK3CA",
    "AKT1",
    "MTOR",
    "JUN",
    "FOS",
    "STAT3",
]


@pytest.fixture
def cells() -> ad.AnnData:
    """The cells on which the files were made."""
    rng = np.random.default_rng(7)
    y = np.repeat([0, 1] * 4, 8)
    mean = np.full((64, 30), 2.0)
    mean[:, :10] += 2.0 * y[:, None]
    obs = pd.DataFrame(
        {
            "response": np.where(y == 1, "sensitive", "resistant"),
            "sample": np.repeat([f"s{i}" for i in range(8)], 8),
            "study": np.repeat(["a", "b"], 32),
        },
        index=[f"c{i}" for i in range(64)],
    )
    return ad.AnnData(rng.poisson(mean).astype("float32"), obs=obs, var=pd.DataFrame(index=GENES))


@pytest.mark.parametrize("name", ["predictor", "predictor_mlp"])
def test_predictor(cells, name):
    got = sd.load_predictor(OLD / name).predict(cells)
    old = pd.read_csv(OLD / f"{name}.csv", index_col=0, keep_default_na=False)
    np.testing.assert_allclose(got["score"], old["score"], atol=2e-6)
    assert got["pred"].astype(str).tolist() == old["pred"].tolist()
    if "set" in old:
        assert got["set"].astype(str).tolist() == old["set"].tolist()


def test_run_store_resumes_every_unit(cells, tmp_path):
    shutil.copytree(OLD / "store", tmp_path / "store")
    cells.obsm["X_mine"] = np.random.default_rng(1).normal(size=(64, 3)).astype("float32")
    computed = []
    result = sd.tl.benchmark(
        cells, models=["X_mine"], head="logistic", n_folds=3, baselines=["all_sensitive", "majority", "pca"], rng=0,
        n_jobs=1, store=tmp_path / "store", embed_options={"pca": {"n_components": 4}},
        on_unit=lambda outcome, done, total: computed.append(done),
    )  # fmt: skip
    assert computed[0] == computed[-1], "no unit was computed again"
    old = pd.read_csv(OLD / "table.csv", keep_default_na=False)
    keys = ["model", "fold", "level", "metric"]
    both = result.table.astype({"fold": str}).merge(old.astype({"fold": str}), on=keys, suffixes=("", "_old"))
    assert len(both) == len(old)
    value, before = both["value"].astype(float), pd.to_numeric(both["value_old"])
    np.testing.assert_allclose(value[both["model"] != "majority"], before[both["model"] != "majority"], atol=1e-9)


def test_result_of_a_run_store(tmp_path):
    assert len(sd.load_result(OLD / "store").table)


def test_cached_embedding_is_used(cells, tmp_path, monkeypatch):
    from scdrugmap import _anndata
    from scdrugmap.models import registry

    shutil.copytree(OLD / "cache" / "embeddings", tmp_path / "embeddings")
    monkeypatch.setattr(sd.settings, "cache_dir", tmp_path)
    model = registry.get("tGPT").random(_anndata.gene_ids(cells), rng=0)
    monkeypatch.setattr(model.network, "forward", lambda *_: pytest.fail("embedded again"))
    sd.tl.embed(cells, model)
    np.testing.assert_array_equal(cells.obsm["X_tgpt"], np.load(OLD / "tgpt.npy"))
