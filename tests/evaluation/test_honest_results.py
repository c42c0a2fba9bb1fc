"""What a reader of a benchmark is told: abstentions, failed folds, random splits, scale, transfer."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit
from sklearn.metrics import roc_auc_score

import scdrugmap as sd
from scdrugmap._errors import InputError, ScDrugMapWarning
from scdrugmap._keys import SAME_SAMPLE
from scdrugmap.evaluation.grid.contenders import Head
from scdrugmap.evaluation.grid.store import Unit


@pytest.fixture
def run(cohort):
    def go(adata=None, **kwargs):
        args = {"models": "X_log", "head": "logistic", "n_folds": 4, "baselines": [], "rng": 0, "n_jobs": 1} | kwargs
        return sd.tl.benchmark(cohort() if adata is None else adata, **args)

    return go


@pytest.mark.parametrize("name", ["mlp", "logistic"])
def test_no_model_wins_by_the_norm_of_its_embedding(run, cohort, name):
    """The contract of a head: the embedding times any number gives the same figures."""
    adata = cohort(signal=0.4)
    X = adata.obsm["X_log"] - adata.obsm["X_log"].mean(axis=0)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    result = run(adata, models={f"x{k}": k * unit for k in (1, 3, 10, 30)}, head=name, baselines=[])
    wide = result.summary(metrics=["f1", "auroc"], n_resamples=0).pivot(index="metric", columns="model", values="value")
    assert wide.loc["auroc", "x1"] > 0.8
    np.testing.assert_allclose(wide.to_numpy(), wide[["x1"]].to_numpy().repeat(4, axis=1), atol=0.01)


def test_units_of_version_0_1_are_those_of_the_published_head():
    old = hashlib.sha256(repr(("mlp", [])).encode()).hexdigest()
    assert Head("published").digest == old
    assert Head("mlp").digest != old
    place = {"setting": "pooled", "split": "sample", "by": "", "category": "all", "fold": "0", "content": (old,)}
    before = Unit("pca", "frozen", "mlp", **place).key
    assert Unit("pca", "frozen", "published", **place).key == before
    assert Unit("pca", "frozen", "mlp", **place | {"content": (Head("mlp").digest,)}).key != before


def test_a_random_split_warns(run):
    with pytest.warns(ScDrugMapWarning, match=SAME_SAMPLE):
        run(split="cell", baselines=[])


def test_random_cells_without_samples_have_no_interval(run, cohort):
    adata = cohort(n_studies=2)
    del adata.obs["sample"]
    row = run(adata, split="cell", baselines=[]).summary(metrics="auroc").iloc[0]
    assert np.isfinite(row["value"])
    assert np.isnan(row["ci_low"])
    assert "only 2 samples" in row["reason"]


@pytest.mark.parametrize(("arguments", "error"), [
    ({"baselines": ["pca"], "embed_options": {"pca": {"n_component": 3}}}, "n_component"),
    ({"models": ["pca"], "embed_options": {"pca": {"n_component": 3}}}, "n_component"),
    ({"embed_options": {"pac": {"n_components": 3}}}, "pac"),
    ({"models": ["gpt4omini"], "embed_options": {"gpt4omini": {"n_shot": 3}}}, "n_shot"),
    ({"models": ["tGPT"], "strategy": "lora", "lora_options": {"rnk": 3}}, "rnk"),
    ({"models": ["tGPT"], "strategy": "lora", "embed_options": {"tGPT": {"max_lenght": 3}}}, "max_lenght"),
])  # fmt: skip
def test_typos_in_options_are_named_before_anything_is_trained(run, monkeypatch, arguments, error):
    monkeypatch.setattr("scdrugmap.tl._benchmark.run_grid", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(InputError, match=error):
        run(**arguments)


def chat(run, monkeypatch, silent, calls=False):
    """A chat model that is right about every cell but for those that it refuses."""

    def prompted(self, model, options):
        y = (self.adata.obs["response"] == "sensitive").to_numpy()

        def predict(train, test, seed):
            score = np.where(y[test], 1.0, 0.0) if calls else np.where(y[test], 0.9, 0.1)
            return np.where(np.isin(test, silent), np.nan, score)

        return predict

    monkeypatch.setattr("scdrugmap.tl._benchmark_models.Asked._prompted", prompted)
    return run(models=["gpt4omini", "X_log"], baselines=[])


def test_an_abstention_is_not_a_hit_and_does_not_lose_the_fold(run, monkeypatch):
    result = chat(run, monkeypatch, silent=np.arange(0, 192, 8))
    assert result.info["n_failed"] == 0
    everything = result.summary(metrics=["accuracy", "auroc"]).set_index(["model", "metric"])
    assert everything.loc[("gpt4omini", "accuracy"), "value"] == pytest.approx(1 - 24 / 192)
    assert everything.loc[("gpt4omini", "accuracy"), "n_abstained"] == 24
    assert "24 cells without an answer" in everything.loc[("gpt4omini", "accuracy"), "note"]
    answered = result.summary(metrics="accuracy", level="answered").set_index("model")
    assert answered.loc["gpt4omini", "value"] == 1
    both = result.compare("gpt4omini", "X_log", metrics="accuracy", level="answered").iloc[0]
    kept = ~np.isin(result.predictions["row"], np.arange(0, 192, 8))
    mine = result.predictions[kept & (result.predictions["unit"].isin(result.units.query("model == 'X_log'")["unit"]))]
    assert both["value_b"] == pytest.approx((mine["y"] == mine["pred"]).mean()), "on the same cells"
    assert set(result.table.query("model == 'gpt4omini'")["level"]) == {"cell", "sample", "answered"}


def test_an_auroc_from_calls_says_so(run, monkeypatch):
    result = chat(run, monkeypatch, silent=np.array([3]), calls=True)
    rows = result.summary(metrics=["auroc", "f1"]).set_index(["model", "metric"])["note"]
    assert "from calls" in rows["gpt4omini", "auroc"]
    assert "from calls" not in rows["gpt4omini", "f1"]
    assert "from calls" not in rows["X_log", "auroc"]


def test_folds_that_failed_are_counted(run, cohort):
    def fails_once(train, test, seed):
        if 0 in test:
            raise RuntimeError("no")
        return np.full(len(test), 0.3)

    with pytest.warns(ScDrugMapWarning, match="failed"):
        result = run(models={"mine": fails_once, "X_log": "X_log"}, baselines=[])
    notes = result.summary(metrics="accuracy").set_index("model")["note"]
    assert "3 of 4 folds" in notes["mine"]
    assert "folds" not in notes["X_log"]


def test_pooled_majority_is_within_its_folds(run, cohort):
    adata = cohort(n_samples=10)
    adata.obs["response"] = np.where(adata.obs["sample"].isin(["p0", "p1", "p2", "p3", "p4"]), "sensitive", "resistant")
    result = run(adata, baselines=["majority"], n_folds=3)
    summary = result.summary(metrics=["f1_macro", "balanced_accuracy", "mcc", "accuracy"])
    folds = result.table.query("model == 'majority' and level == 'cell'").groupby("metric")["value"].agg(["min", "max"])
    for row in summary[summary["model"] == "majority"].itertuples():
        assert folds.loc[row.metric, "min"] - 1e-9 <= row.value <= folds.loc[row.metric, "max"] + 1e-9, row.metric


def test_samples_are_ranked_over_all_folds(run, cohort):
    adata = cohort(n_samples=20, cells=6, signal=0.25, sample_effect=0.6)
    result = run(adata, baselines=["majority"], n_folds=10)
    row = result.summary(metrics="auroc", level="sample").set_index("model").loc["X_log"]
    parts = []
    units = result.units[result.units["model"] == "X_log"]
    for unit, fold in zip(units["unit"], result.partitions[0].folds, strict=True):
        cells = result.predictions[result.predictions["unit"] == unit]
        means = (
            cells.assign(sample=result.cells["sample"].to_numpy()[cells["row"]])
            .groupby("sample")[["y", "score"]]
            .mean()
        )
        prior = result.cells["y"].to_numpy()[fold.train].mean()
        parts.append(means.assign(score=logit(means["score"]) - logit(prior)))
    together = pd.concat(parts)
    assert len(together) == 20
    assert row["value"] == pytest.approx(roc_auc_score(together["y"], together["score"]), abs=1e-9)
    assert result.summary(metrics="auroc", level="sample").set_index("model").loc["majority", "value"] == 0.5


def test_adaptations_stand_beside_plain_transfer(run, cohort):
    adata = cohort()
    shifted = adata.obs["study"] == "S3"
    adata.obsm["X_log"][shifted] = 5 * adata.obsm["X_log"][shifted] + 20
    result = run(adata, setting="cross", adapt=["none", "study", "coral"], baselines=[], models="X_log")
    values = result.table.query("metric == 'balanced_accuracy' and group == 'S3' and level == 'cell'").set_index(
        "model"
    )
    assert values["value"]["X_log"] == 0.5
    assert values["value"]["X_log + study"] > 0.75
    assert values["value"]["X_log + coral"] > 0.75
    assert "transductive" in values["note"]["X_log + study"]
    assert "transductive" not in values["note"]["X_log"]


def test_screens_name_the_random_split_and_few_samples(run, cohort, tmp_path):
    from scdrugmap.cli._runs import remarks_on, ways_of

    result = run(cohort(n_samples=8), split=["sample", "cell"])
    assert ways_of(result) == f"pooled, split by sample and pooled, split by cell (random): {SAME_SAMPLE}"
    assert "intervals rest on 8 samples or studies only" in remarks_on(result.summary())
    assert any("only 4 samples" in r for r in remarks_on(run(cohort(n_samples=4), n_folds=2).summary()))
    page = result.report(tmp_path / "r.html", figures=[]).read_text()
    assert "so few say little" in page
    assert "Samples: pooled, split by sample" in page


def test_the_report_claims_no_more_than_what_ran(run, cohort, tmp_path):
    claim = "Everything that is fitted sees training cells only"
    adata = cohort()
    adata.obsm["X_pca"] = adata.obsm["X_log"]
    assert claim not in run(adata, models="X_pca").report(tmp_path / "a.html", figures=[]).read_text()
    assert claim in run(adata).report(tmp_path / "b.html", figures=[]).read_text()
