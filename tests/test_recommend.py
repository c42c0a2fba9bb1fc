"""``sd.tl.recommend``: facts, the probe, and a winner only where there is one."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import scdrugmap as sd
from scdrugmap.cli._app import app
from scdrugmap.tl._recommend import drawn, verdict


def cells(knows: bool):
    rng = np.random.default_rng(0)
    adata = sd.datasets.simulate(n_studies=1, n_cells=480, n_genes=60, rng=0)
    adata.obs["sample"] = np.repeat([f"s{i}" for i in range(48)], 10)
    adata.obs["response"] = np.repeat(["resistant", "sensitive"] * 24, 10)
    adata.X = rng.poisson(2, adata.shape).astype("float32")
    truth = (adata.obs["response"] == "sensitive").to_numpy()[:, None]
    adata.obsm["X_scgpt"] = rng.normal(size=(480, 3)) + 9 * knows * truth
    return adata


@pytest.mark.parametrize("knows", [True, False])
def test_a_winner_only_where_intervals_do_not_overlap(knows):
    advice = sd.tl.recommend(cells(knows), ["scGPT", "UCE"], seconds=0, rng=0)
    table = advice.table.set_index("model")
    assert list(table.index) == ["scGPT", "UCE", "pca", "hvg"]
    assert np.isnan(table.loc["UCE", "auroc"]) and "sd.models.fetch" in table.loc["UCE", "note"]
    assert advice.winner == ("scGPT" if knows else None)
    assert "Tumor tissue 0.858" in table.loc["scGPT", "published_cross"]


def test_commercial_use_and_missing_labels():
    adata = cells(True)
    del adata.obs["response"]
    advice = sd.tl.recommend(adata, ["scFoundation"], seconds=0, commercial=True)
    assert "commercial" in advice.table.set_index("model").loc["scFoundation", "left_out"]
    assert advice.winner is None and "response" in advice.sentence


def test_the_probe_takes_from_all_samples():
    sample = np.repeat([0, 1, 2], [1000, 50, 5])
    rows = drawn(np.where(np.arange(1055) < 2, -1, 1), sample, 60, seed=0)
    counts = np.bincount(sample[rows])
    assert len(rows) == 60 and counts[2] == 5 and abs(counts[0] - counts[1]) <= 1 and rows.min() > 1


def test_one_model_alone_is_no_winner_over_an_unknown_interval():
    table = pd.DataFrame(
        {"model": ["a", "b"], "left_out": "", "auroc": [0.9, 0.5], "ci_low": [0.8, np.nan], "ci_high": [0.95, np.nan]}
    )
    assert verdict(table, "auroc", "")[1] is None


def test_on_the_command_line(tmp_path):
    cells(True).write_h5ad(tmp_path / "cells.h5ad")
    flags = [str(tmp_path / "cells.h5ad"), "-m", "scGPT", "--seconds", "0", "--json", "-o", str(tmp_path / "t.csv")]
    out = CliRunner().invoke(app, ["recommend", *flags])
    assert out.exit_code == 0, out.output
    said = json.loads(out.stdout)
    assert said["winner"] == "scGPT" and len(said["table"]) == 3
    assert pd.read_csv(tmp_path / "t.csv")["model"].tolist() == ["scGPT", "pca", "hvg"]


def test_a_language_model_is_left_to_choose_and_its_size_is_that_of_the_card(monkeypatch):
    from scdrugmap.models import registry
    from scdrugmap.tl import _recommend

    monkeypatch.setattr(_recommend, "timed", lambda *arguments: 2.0)
    scbert = registry.get("scBERT")
    random = scbert.random
    monkeypatch.setattr(scbert, "random", lambda genes, size: random(genes))
    advice = sd.tl.recommend(cells(False), ["Llama-3-8B", "scBERT"], probe=False, rng=0)
    table = advice.table.set_index("model")
    assert table.loc["Llama-3-8B", "species_fits"] and table.loc["Llama-3-8B", "left_out"] == ""
    assert table.loc["scBERT", "n_parameters"] == sd.models.info("scBERT").n_parameters
    assert table.loc["scBERT", "hours"] == pytest.approx(480 / 2 / 3600)
