"""The verdict: a predictor that reads the planted genes passes, those that do not are refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import scdrugmap as sd
from scdrugmap._errors import InputError
from scdrugmap.interpret import report as checks
from scdrugmap.interpret.faithfulness import likeness, overlap, rank_correlation


@pytest.fixture(scope="module")
def clear():
    """Every cell is malignant and in the state of its sample."""
    return sd.datasets.simulate(
        n_studies=1, n_patients=8, n_samples_per_patient=1, n_cells=480, n_genes=150, heterogeneity=0.0,
        cell_types={"malignant": 1.0}, rng=0,
    )  # fmt: skip


def test_a_predictor_of_the_planted_genes_passes(clear):
    before = clear.copy()
    predictor = sd.tl.train(clear, "pca", head="logistic", rng=0)
    report = sd.tl.attribution_report(clear, predictor, max_cells_per_sample=20, rng=0)
    assert report.ok, report.to_text()
    assert report.reasons == []
    assert isinstance(report.ok, bool)
    table = report.table.set_index("check")
    assert table.loc["faithfulness", "low"] > 1
    assert abs(table.loc["random head", "value"]) < 0.3
    assert "random" in table.loc["planted truth", "note"]
    assert "may be called" in report.to_text()
    assert list(clear.uns) == list(before.uns)
    assert clear.obs.equals(before.obs)
    assert set(report.curves["genes"]) == {"attribution", "matched", "random", "expression"}


def test_a_predictor_of_shuffled_labels_is_refused(clear):
    labels = clear.obs.groupby("sample", observed=True)["response"].first()
    wrong = clear.copy()
    resistant, sensitive = labels.index[labels == "resistant"], labels.index[labels == "sensitive"]
    turned = dict.fromkeys([*resistant[:2], *sensitive[:2]], "resistant")
    wrong.obs["response"] = wrong.obs["sample"].astype(str).map(lambda s: turned.get(s, "sensitive"))
    predictor = sd.tl.train(wrong, "pca", head="logistic", rng=0)
    report = sd.tl.attribution_report(wrong, predictor, max_cells_per_sample=15, rng=0)
    assert not report.ok
    assert any(r.startswith(("prediction", "planted truth")) for r in report.reasons)
    assert "No gene may be called a biomarker" in report.to_text()


def test_without_labels_nothing_may_be_called(clear):
    predictor = sd.tl.train(clear, "pca", head="logistic", rng=0)
    query = clear.copy()
    del query.obs["response"], query.uns["simulation"]
    report = sd.tl.attribution_report(query, predictor, max_cells_per_sample=5, rng=0)
    assert not report.ok
    table = report.table.set_index("check")
    assert pd.isna(table.loc["random labels", "passed"])
    assert "not tested" in report.to_text()
    with_reference = sd.tl.attribution_report(query, predictor, reference=clear, max_cells_per_sample=5, rng=0)
    assert with_reference.table.set_index("check").loc["random labels", "passed"]


def test_predictors_on_obsm_are_refused(clear):
    cells = clear.copy()
    cells.obsm["X_rep"] = np.random.default_rng(0).normal(size=(cells.n_obs, 3)).astype(np.float32)
    predictor = sd.tl.train(cells, use_rep="X_rep", head="logistic", rng=0)
    with pytest.raises(InputError, match="model="):
        sd.tl.attribution_report(cells, predictor)


def test_shuffles_of_samples_are_far_from_the_truth(rng):
    samples = np.repeat([f"s{i}" for i in range(8)], 5)
    y = np.repeat([0, 1], 20)
    for drawn in checks.shuffled_samples(y, samples, rng, 3):
        assert abs(np.corrcoef(y, drawn)[0, 1]) < 1e-9
        assert drawn.reshape(8, 5).std(axis=1).max() == 0


def test_prediction_must_beat_chance_over_samples(rng):
    samples = np.repeat(np.arange(8), 20)
    y = (samples % 2).astype(int)
    assert checks.prediction_check(y, y + rng.normal(size=160), samples, rng)["passed"]
    noise = [checks.prediction_check(y, rng.normal(size=160), samples, rng)["passed"] for _ in range(20)]
    assert sum(noise) <= 4, "one side of a 95 % interval over eight samples"


def test_pairs_have_an_interval_over_what_is_compared(rng):
    """Against the jackknife written out."""
    found = list(rng.normal(size=(5, 30)) + rng.normal(size=30))
    mean, low, high = checks.pairwise(found, rank_correlation)

    def average(kept):
        return np.mean([rank_correlation(a, b) for i, a in enumerate(kept) for b in kept[i + 1 :]])

    assert mean == pytest.approx(average(found))
    without = np.array([average(found[:i] + found[i + 1 :]) for i in range(5)])
    se = np.sqrt(4 / 5 * ((without - without.mean()) ** 2).sum())
    assert [low, high] == pytest.approx([mean - stats.t.ppf(0.975, 4) * se, mean + stats.t.ppf(0.975, 4) * se])
    assert np.isnan(checks.pairwise(found[:2], rank_correlation)[1])


def test_stability_over_folds_seeds_and_studies():
    cells = sd.datasets.simulate(
        n_studies=3, n_patients=4, n_samples_per_patient=1, n_cells=360, n_genes=100, heterogeneity=0.0,
        cell_types={"malignant": 1.0}, rng=0,
    )  # fmt: skip
    options = {"hidden": (8,), "epochs": 3}
    predictor = sd.tl.train(cells, "pca", head="mlp", head_options=options, rng=0)
    table = sd.tl.attribution_report(cells, predictor, max_cells_per_sample=4, rng=0).table.set_index("check")
    for check in ("stable folds", "stable seeds", "stable studies"):
        row = table.loc[check]
        assert row["rank_low"] <= row["rank_correlation"] <= row["rank_high"], check
        assert row["passed"] in (True, False)
    assert table.loc["stable seeds", "rank_correlation"] < 1
    assert table["rank_correlation"].notna().sum() == 4
    one = cells[cells.obs["study"] == cells.obs["study"].iloc[0]].copy()
    table = sd.tl.attribution_report(one, predictor, max_cells_per_sample=4, rng=0).table.set_index("check")
    assert pd.isna(table.loc["stable studies", "passed"])
    assert "1 of 1 studies" in table.loc["stable studies", "note"]


def test_measures_of_likeness(rng):
    a = rng.normal(size=200)
    assert likeness(a, 3 * a) == pytest.approx(1)
    assert likeness(a, -a) == pytest.approx(-1)
    assert likeness(a, np.zeros(200)) == 0
    assert abs(rank_correlation(a, rng.normal(size=200))) < 0.25
    assert overlap(a, a) == 1
    assert overlap(np.r_[np.ones(50), np.zeros(50)], np.r_[np.zeros(50), np.ones(50)], n=50) == 0
