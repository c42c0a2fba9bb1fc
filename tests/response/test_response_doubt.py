"""A query that a predictor cannot speak about, and a predictor that cannot speak, say so before any call."""

from __future__ import annotations

import json
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

import scdrugmap as sd
from scdrugmap._errors import InputError, ScDrugMapWarning, UnknownNameError
from scdrugmap.predictor.training import Trust, train_head
from scdrugmap.trust.samples import SampleErrors, sample_calls
from scdrugmap.trust.shift import CANNOT_TELL, IN_DOMAIN, SHIFTED, ShiftReference
from scdrugmap.trust.worth import auroc_interval, worth_of

N_GENES, N_SIGNAL = 220, 40
BASE = np.random.default_rng(5).gamma(0.6, 5.0, size=N_GENES) + 0.2
OTHER_TISSUE = np.random.default_rng(6).permutation(BASE)


def cells(n_samples=12, per_sample=20, seed=0, base=BASE, effect=2.5, batch=0.1, prefix="") -> ad.AnnData:
    """Cells whose first genes tell the response; every second sample is sensitive."""
    rng = np.random.default_rng(seed)
    sample = np.repeat(np.arange(n_samples), per_sample)
    sensitive = sample % 2 == 1
    rate = np.tile(base, (len(sample), 1))
    up, down = slice(0, N_SIGNAL // 2), slice(N_SIGNAL // 2, N_SIGNAL)
    rate[:, up] *= np.where(sensitive, effect, 1.0)[:, None]
    rate[:, down] *= np.where(sensitive, 1.0, effect)[:, None]
    rate *= np.exp(rng.normal(scale=batch, size=N_GENES))
    rate *= np.exp(rng.normal(scale=0.1, size=(n_samples, N_GENES)))[sample]
    rate *= np.exp(rng.normal(scale=0.3, size=(len(sample), 1)))
    obs = pd.DataFrame(
        {
            "response": np.where(sensitive, "sensitive", "resistant"),
            "sample": [f"{prefix}s{s}" for s in sample],
        },
        index=[f"{prefix}c{i}" for i in range(len(sample))],
    )
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(N_GENES)])
    return ad.AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)), obs=obs, var=var)


def renamed(adata: ad.AnnData) -> ad.AnnData:
    out = adata.copy()
    out.var = out.var.iloc[np.random.default_rng(1).permutation(out.n_vars)].copy()
    return out


def dealt(adata: ad.AnnData, seed=0) -> ad.AnnData:
    """The responses of the samples dealt at random, as many of each."""
    out = adata.copy()
    names = out.obs["sample"].unique()
    new = np.random.default_rng(seed).permutation(np.arange(len(names)) % 2)
    out.X = cells(len(names), 20, seed=seed, effect=1.0).X
    out.obs["response"] = out.obs["sample"].map(
        dict(zip(names, np.array(["resistant", "sensitive"])[new], strict=True))
    )
    return out


@pytest.fixture(scope="module")
def predictor():
    return sd.tl.train(cells(), "pca", head="logistic", conformal=0.9, rng=0)


@pytest.fixture(scope="module")
def worthless():
    with pytest.warns(ScDrugMapWarning, match="NOT BETTER THAN NO PREDICTOR"):
        return sd.tl.train(dealt(cells()), "pca", head="logistic", rng=0)


# -- the verdict ---------------------------------------------------------------------------------------------------


def test_a_held_out_batch_and_one_class_of_it_are_in_domain(predictor):
    batch = cells(seed=1, batch=0.3)
    assert predictor.judge(batch).verdict == IN_DOMAIN
    for label in ("sensitive", "resistant"):
        one = predictor.judge(batch[batch.obs["response"] == label].copy())
        assert one.verdict == IN_DOMAIN and one.figures["coherence_kept"] < 0.5, "one class has no coherence to keep"
    assert predictor.judge(batch[batch.obs["sample"] == "s1"].copy()).verdict == IN_DOMAIN


@pytest.mark.parametrize("kind", ["names", "tissue", "species", "mouse"])
def test_foreign_cells_are_shifted(predictor, kind):
    query = renamed(cells(seed=1)) if kind == "names" else cells(seed=1, base=OTHER_TISSUE, effect=1.0)
    features = None
    if kind == "species":
        query = cells(seed=1, batch=1.5, effect=1.0)
    if kind == "mouse":
        query = cells(seed=1)
        query.var_names = [n.capitalize() for n in query.var_names]
        features = predictor.features(cells(seed=1))
    verdict = predictor.judge(query, features=features)
    assert verdict.verdict == SHIFTED, verdict
    assert kind != "mouse" or "species" in verdict.reason


def test_calls_of_both_classes_without_the_programme_are_not_in_domain(predictor):
    query, reference = cells(seed=1, effect=1.0), predictor.shift
    X, names = query.X, query.var_names.to_numpy()
    features = predictor.features(query)
    assert predictor.judge(query).verdict == CANNOT_TELL and "both classes" in predictor.judge(query).reason
    both, one = np.tile([-1.0, 1.0], query.n_obs // 2), np.ones(query.n_obs)
    assert reference.judge(X, names, features, both).verdict == CANNOT_TELL
    assert reference.judge(X, names, features, one).verdict == IN_DOMAIN


def test_what_cannot_be_judged_says_why(predictor):
    query = cells(seed=1)
    assert "too few" in predictor.judge(query[:5].copy()).reason
    assert "too few of the genes" in predictor.judge(query[:, 100:150].copy()).reason
    scaled = query.copy()
    scaled.X = np.asarray(query.X.toarray() - 1.0)
    assert "no counts" in predictor.judge(scaled, features=predictor.features(query)).reason
    query.obsm["X_mine"] = np.asarray(query.X[:, :30].toarray())
    alone = ad.AnnData(obs=query.obs, obsm={"X_mine": query.obsm["X_mine"]})
    bare = sd.tl.train(alone, use_rep="X_mine", head="logistic", rng=0)
    assert bare.shift is None and bare.judge(alone).verdict == CANNOT_TELL
    both = sd.tl.train(query, use_rep="X_mine", head="logistic", rng=0)
    assert both.judge(query).verdict == IN_DOMAIN and both.judge(alone).verdict == CANNOT_TELL


def test_figures_by_brute_force(predictor):
    query, reference = cells(seed=1, batch=0.3), predictor.shift
    found = predictor.judge(query).figures
    dense = query.X.toarray().astype(float)
    logs = pd.DataFrame(np.log1p(dense / dense.sum(1, keepdims=True) * 1e4), columns=query.var_names)
    sign = np.sign(reference.weight)
    matrix = logs[reference.genes].corr().to_numpy() * np.outer(sign, sign)
    off = ~np.eye(len(sign), dtype=bool)
    assert found["coherence"] == pytest.approx(matrix[off].mean(), abs=1e-9)
    own = (reference.correlation * np.outer(sign, sign))[off].mean()
    assert found["coherence_training"] == pytest.approx(own, abs=1e-6)
    assert found["support"] == pytest.approx(found["similarity"] + 0.3 * min(1, found["coherence"] / own), abs=1e-9)
    assert 0.5 < found["similarity"] <= 1 and found["coverage"] == 1.0


@pytest.mark.parametrize("on_shift", ["warn", "abstain", "ignore"])
def test_a_shifted_query_loses_its_certainty(predictor, on_shift):
    query = renamed(cells(seed=1, prefix="q"))
    raw = predictor.predict(query)
    if on_shift == "ignore":
        with warnings.catch_warnings():
            warnings.simplefilter("error", ScDrugMapWarning)
            sd.tl.predict_response(query, predictor, on_shift=on_shift, sample_key="sample")
        np.testing.assert_array_equal(query.obs["response_score"], raw["score"])
        assert query.uns["response"]["shift"]["verdict"] == SHIFTED
        return
    with pytest.warns(ScDrugMapWarning, match="UNLIKE THE TRAINING DATA"):
        sd.tl.predict_response(query, predictor, on_shift=on_shift, sample_key="sample")
    score = query.obs["response_score"]
    np.testing.assert_allclose(score, 0.5 + 0.25 * (raw["score"] - 0.5), atol=1e-6)
    assert score.dtype == np.float32 and score.between(0.3, 0.7).all()
    assert set(query.obs["response_set"]) == {"resistant|sensitive"}
    assert query.obs["response_pred"].isna().all() == (on_shift == "abstain")
    assert set(query.uns["response"]["samples"]["call"]) == {"undecided"}


def test_the_verdict_stands_in_uns_and_in_files(predictor, tmp_path):
    query = cells(seed=1, prefix="q")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScDrugMapWarning)
        sd.tl.predict_response(query, predictor, sample_key="sample")
    assert query.uns["response"]["shift"]["verdict"] == IN_DOMAIN
    assert query.uns["response"]["worth"]["auroc"] > 0.9
    query.write_h5ad(tmp_path / "q.h5ad")
    assert ad.read_h5ad(tmp_path / "q.h5ad").uns["response"]["shift"]["verdict"] == IN_DOMAIN
    predictor.save(tmp_path / "p")
    again = sd.load_predictor(tmp_path / "p")
    assert again.judge(query) == predictor.judge(query) and again.worth == predictor.worth
    np.testing.assert_array_equal(again.errors.error, np.sort(predictor.errors.error))
    assert "verdict on a query" in (tmp_path / "p" / "README.md").read_text()
    with pytest.raises(UnknownNameError, match="on_shift"):
        sd.tl.predict_response(query, predictor, on_shift="shrug")


def test_a_predictor_of_an_earlier_version_cannot_tell(predictor, tmp_path):
    predictor.save(tmp_path / "p")
    file = tmp_path / "p" / "predictor.json"
    manifest = json.loads(file.read_text())
    for name in ("shift", "errors"):
        del manifest[name]
    del manifest["training"]["worth"]
    file.write_text(json.dumps(manifest))
    old, query = sd.load_predictor(tmp_path / "p"), cells(seed=1)
    sd.tl.predict_response(query, old)
    assert query.uns["response"]["shift"]["verdict"] == CANNOT_TELL
    assert "earlier version" in query.uns["response"]["worth"]["reason"] and "Not known" in old.card


def test_too_little_to_learn_a_reference_from():
    X, names = sparse.csr_matrix(np.ones((50, 20))), np.array([f"G{i}" for i in range(20)])
    assert ShiftReference.fit(X, names, np.arange(50.0), np.zeros((50, 2)), rng=0) is None


# -- the worth -----------------------------------------------------------------------------------------------------


def test_the_worth_is_that_of_held_out_groups(predictor):
    worth = predictor.worth
    assert worth["auroc"] > 0.95 and worth["auroc_low"] > 0.5 and worth["below_floor"] == ""
    assert worth["brier"] < worth["brier_constant"] == 0.25 and 0.8 < worth["set_size"] < 1.2
    assert "AUROC on held-out groups" in predictor.card


def test_a_worthless_predictor_is_not_handed_out(worthless, monkeypatch):
    assert worthless.worth["below_floor"] and "better than no predictor" in worthless.card
    sent = []
    monkeypatch.setattr("scdrugmap.predictor.hub.push", lambda *a, **k: sent.append(a) or "address")
    with pytest.raises(InputError, match="force=True"):
        worthless.push_to_hub("lab/none")
    assert not sent
    assert worthless.push_to_hub("lab/none", force=True) == "address" and len(sent) == 1
    with pytest.warns(ScDrugMapWarning, match="NOT BETTER"):
        sd.tl.predict_response(cells(seed=1), worthless)


def test_without_groups_the_worth_is_not_known():
    predictor = sd.tl.train(cells(), "pca", head="logistic", groups=False, rng=0)
    assert "auroc" not in predictor.worth and "single cells" in predictor.worth["reason"]
    few = cells(n_samples=4)
    found = sd.tl.train(few, "pca", head="logistic", rng=0)
    assert "auroc_low" not in found.worth and "too few" in found.card


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
def test_calibration_that_is_worse_than_a_constant_is_left_out(method):
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), 10)
    y = groups % 2
    noise = rng.normal(size=(120, 5)) + rng.normal(size=(12, 5))[groups]
    from sklearn.linear_model import LogisticRegression

    with pytest.warns(ScDrugMapWarning, match="is not applied"):
        trained = train_head(noise, y, LogisticRegression(), Trust(calibrate=method), groups=groups)
    assert trained.doubt.calibration is None and "constant" in trained.summary["worth"]["calibration_left_out"]
    useful = noise * 0.3 + y[:, None]
    assert train_head(useful, y, LogisticRegression(), Trust(calibrate=method), groups=groups).doubt.calibration


def test_auroc_is_that_of_scikit_learn_and_few_groups_have_no_interval():
    rng = np.random.default_rng(0)
    y, groups = np.arange(90) % 2, np.repeat(np.arange(9), 10)
    margin = np.round(rng.normal(size=90) + y, 1)  # with ties
    auroc, low, high, n = auroc_interval(margin, y, groups)
    assert auroc == pytest.approx(roc_auc_score(y, margin)) and low < auroc < high and n == 9
    assert np.isnan(auroc_interval(margin[:30], y[:30], groups[:30])[1])
    # as the permutation test says: four against four groups tell a perfect ranking from chance
    four = np.repeat(np.arange(8), 5)
    assert 0.5 < auroc_interval(four % 2 * 1.0, four % 2, four)[1] < 0.7


@pytest.mark.parametrize("n", [10, 20, 40])
@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_the_interval_of_the_auroc_covers(n, shift):
    rng, covered = np.random.default_rng(n), 0
    groups = np.repeat(np.arange(n), 8)
    y, truth = groups % 2, norm.cdf(shift / 2)
    for _ in range(200):
        margin = y * shift + rng.normal(size=n)[groups] + rng.normal(size=len(y))
        _, low, high, _ = auroc_interval(margin, y, groups)
        covered += low <= truth <= high
    assert covered / 200 > 0.91


def test_the_constant_is_the_floor_of_the_brier_score():
    y, groups = np.arange(80) // 5 % 2, np.repeat(np.arange(16), 5)
    margin = y - 0.5 + np.random.default_rng(0).normal(scale=0.1, size=80)
    good = worth_of(margin, y, groups, np.where(y == 1, 0.8, 0.2), np.ones(80))
    assert good["below_floor"] == "" and good["brier"] == pytest.approx(0.04)
    overconfident = worth_of(margin, y, groups, np.where(np.arange(80) % 3 == 0, 1.0 - y, y), np.ones(80))
    assert "constant" in overconfident["below_floor"]


# -- samples -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [6, 10, 20, 40])
@pytest.mark.parametrize("right", [0.5, 0.8, 0.95])
def test_sample_intervals_cover_held_out_patients(n, right):
    """True fraction of a new patient, where the calls of whole patients are right as often as ``right``."""
    rng, runs, covered, wrong = np.random.default_rng(n), 600, 0, 0
    for _ in range(runs):
        y = rng.integers(0, 2, n + 1)
        called = np.where(rng.random(n + 1) < right, y, 1 - y)
        resistant = 1 - rng.binomial(40, np.where(called == 1, 0.95, 0.05)) / 40  # share of cells
        half = SampleErrors((1 - y[:n]) - resistant[:n]).half_width(0.95)
        covered += abs(1 - y[n] - resistant[n]) <= half
        wrong += (resistant[n] - half > 0.5 and y[n] == 1) or (resistant[n] + half < 0.5 and y[n] == 0)
    assert covered / runs > 0.91 and wrong / runs < 0.07


def test_the_table_takes_the_wider_bound():
    score, errors = [0.1] * 36 + [0.9] * 4, SampleErrors(np.r_[np.zeros(38), 0.3, -0.3])
    row, alone = sample_calls(score, ["a"] * 40, errors=errors).iloc[0], sample_calls(score, ["a"] * 40).iloc[0]
    assert row["lower"] == pytest.approx(0.6) and row["call"] == "resistant" and row["upper"] == 1.0
    assert alone["lower"] > row["lower"]
    nothing = sample_calls(score, ["a"] * 40, errors=SampleErrors(np.empty(0))).iloc[0]
    assert (nothing["lower"], nothing["upper"], nothing["call"]) == (0.0, 1.0, "undecided")


def test_errors_are_conformal_where_groups_suffice():
    error = np.random.default_rng(0).normal(scale=0.1, size=39)
    assert SampleErrors(error).half_width(0.95) == pytest.approx(np.sort(np.abs(error))[37])
    assert SampleErrors(error[:5]).half_width(0.95) == 1.0
    fitted = SampleErrors.fit(np.array([0.9, 0.9, 0.1, 0.4]), np.array([1, 0, 0, 0]), np.array(["a", "a", "b", "b"]))
    assert fitted.error.tolist() == [0.5, 0.0]


def test_without_held_out_groups_the_table_of_samples_says_so():
    predictor = sd.tl.train(cells(), "pca", head="logistic", groups=False, rng=0)
    with pytest.warns(ScDrugMapWarning, match="about their cells alone"):
        sd.tl.predict_response(cells(seed=1), predictor, sample_key="sample")
