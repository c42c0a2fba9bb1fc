"""Intervals and tests against brute force, SciPy, scikit-posthocs and simulation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scikit_posthocs as sp
from scipy import stats
from statsmodels.stats.multitest import multipletests

from scdrugmap._metrics import METRICS, evaluate, resolve_metrics
from scdrugmap.evaluation.result.significance import corrected_t, holm, permutation_pvalue, rank_models
from scdrugmap.evaluation.result.statistics import blocks_of, bootstrap_weights, interval, resampled, strata_of


def predictions(n_groups=12, cells=15, strength=0.8, seed=0):
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(n_groups), cells)
    y = group % 2
    score = 1 / (1 + np.exp(-(strength * (2 * y - 1) + rng.normal(size=n_groups)[group] + rng.normal(size=len(y)))))
    return y, score, (score >= 0.5).astype(int), group


def ci_of(y, score, pred, unit, metric, bounds=(0.0, 1.0)):
    """The interval as a summary makes it: the value, and the values without each group in turn."""
    codes = np.unique(unit, return_inverse=True)[1]
    n = codes.max() + 1
    value = resampled(y, score, pred, codes, [metric], np.ones((1, n)))[metric.name][0]
    left_out = resampled(y, score, pred, codes, [metric], 1 - np.eye(n))[metric.name]
    return interval(float(value), left_out, strata_of(y, codes, n), bounds=bounds)


def test_bootstrap_equals_resampling_cells_by_hand():
    y, score, pred, group = predictions()
    weights = bootstrap_weights(12, 40, np.random.default_rng(3))
    assert (weights.sum(axis=1) == 12).all()
    got = resampled(y, score, pred, group, list(METRICS.values()), weights)
    for b, w in enumerate(weights):
        rows = np.concatenate([np.tile(np.flatnonzero(group == g), int(k)) for g, k in enumerate(w)])
        for name, (value, _) in evaluate(y[rows], score[rows], pred[rows]).items():
            np.testing.assert_allclose(got[name][b], value, atol=1e-9, err_msg=name)


def test_without_bounds_the_interval_of_a_mean_is_students():
    values = np.random.default_rng(0).normal(size=9)
    left_out = (values.sum() - values) / 8
    ci = interval(values.mean(), left_out, np.zeros(9, int), level=0.9)
    expected = stats.t.interval(0.9, 8, values.mean(), stats.sem(values))
    assert (ci.low, ci.high) == pytest.approx(expected)


def test_variance_of_an_auroc_is_delongs():
    """One cell per group: the jackknife of the AUROC has the variance of DeLong et al. up to n / (n - 1) per class."""
    rng = np.random.default_rng(1)
    y = np.repeat([0, 1], [9, 7])
    score = rng.normal(size=16) + y
    wins = (score[y == 1][:, None] > score[y == 0]).astype(float)
    delong = wins.mean(1).var(ddof=1) / 7 + wins.mean(0).var(ddof=1) / 9
    ci = ci_of(y, score, (score > 0).astype(int), np.arange(16), METRICS["auroc"], bounds=None)
    per_class = (wins.mean(1).var(ddof=1) / 7) ** 2 / 6 + (wins.mean(0).var(ddof=1) / 9) ** 2 / 8
    half = stats.t.ppf(0.975, delong**2 / per_class) * delong**0.5
    assert (ci.value, ci.high - ci.low) == (pytest.approx(wins.mean()), pytest.approx(2 * half))


@pytest.mark.parametrize(("per_class", "least"), [(3, 0.2), (10, 0.6), (40, 0.9)])
def test_a_perfect_score_on_few_groups_is_no_certainty(per_class, least):
    group = np.repeat(np.arange(2 * per_class), 10)
    y = group % 2
    ci = ci_of(y, y * 1.0, y, group, METRICS["auroc"])
    assert (ci.value, ci.high) == (1, 1)
    assert least < ci.low < 0.95


def test_intervals_of_an_auroc_over_ten_samples_cover():
    """One cell of the table that benchmarks/coverage.py prints; the percentile bootstrap covers 0.85 here."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(10), 8)
    y = (group < 4).astype(int)
    hits = []
    for _ in range(300):
        score = 1.2 * y + 0.7**0.5 * rng.normal(size=10)[group] + 0.3**0.5 * rng.normal(size=80)
        ci = ci_of(y, score, y, group, METRICS["auroc"])
        hits.append(ci.low <= stats.norm.cdf(1.2 / 2**0.5) <= ci.high)
    assert 0.93 <= np.mean(hits) <= 0.99


@pytest.mark.parametrize(("y", "reason"), [
    (np.repeat([0, 1, 0, 1], 5), "only 4 samples"), (np.repeat([0, 1, 0, 0, 0, 0], 5), "one class has 1 of the 6 samples"),
])  # fmt: skip
def test_too_few_groups_have_no_interval(y, reason):
    group = np.arange(len(y)) // 5
    score = np.random.default_rng(0).random(len(y))
    ci = ci_of(y, score, (score > 0.5).astype(int), group, METRICS["auroc"])
    assert np.isfinite(ci.value)
    assert np.isnan(ci.low)
    assert reason in ci.reason


def test_many_groups_are_left_out_in_blocks_of_one_class():
    strata = np.random.default_rng(0).integers(0, 2, 900)
    block = blocks_of(strata)
    assert 190 <= block.max() + 1 <= 201
    assert all(len(np.unique(strata[block == b])) == 1 for b in range(block.max() + 1))
    values = np.random.default_rng(1).normal(size=900)
    left_out = np.array([values[block != b].mean() for b in range(block.max() + 1)])
    ci = interval(values.mean(), left_out, np.zeros(len(left_out), int), n_groups=900)
    assert ci.high - ci.low == pytest.approx(2 * 1.96 * values.std() / 30, rel=0.15)


def test_resampling_samples_is_wider_than_resampling_cells():
    y, score, pred, group = predictions(strength=0.3)
    width = {}
    for name, unit in (("samples", group), ("cells", np.arange(len(y)))):
        ci = ci_of(y, score, pred, unit, METRICS["accuracy"])
        width[name] = ci.high - ci.low
    assert width["samples"] > 1.8 * width["cells"]


def test_interval_covers():
    rng = np.random.default_rng(0)
    truth = np.mean(np.concatenate([_accuracies(rng, 40) for _ in range(200)]))
    hits = 0
    for _ in range(150):
        means = _accuracies(rng, 40)
        correct = (rng.random((40, 10)) < means[:, None]).astype(int).ravel()
        units = np.repeat(np.arange(40), 10)
        ci = ci_of(np.ones(400, int), correct * 1.0, correct, units, METRICS["accuracy"])
        hits += ci.low <= truth <= ci.high
    assert 0.87 <= hits / 150 <= 1


def _accuracies(rng, n):
    return rng.beta(4, 2, n)


def test_custom_metric_is_resampled():
    y, score, pred, group = predictions()
    mine = resolve_metrics({"mine": lambda y, s, p: float((y == p).mean())})
    weights = bootstrap_weights(12, 50, np.random.default_rng(0))
    both = resampled(y, score, pred, group, [*mine, METRICS["accuracy"]], weights)
    np.testing.assert_allclose(both["mine"], both["accuracy"])


def test_strata_keep_their_size():
    weights = bootstrap_weights(np.array([0, 0, 0, 1]), 20, np.random.default_rng(0))
    assert (weights[:, :3].sum(axis=1) == 3).all()
    assert (weights[:, 3] == 1).all()


def test_corrected_t_formula_and_limit():
    d = np.array([0.05, 0.02, 0.08, -0.01, 0.04])
    t, p = corrected_t(d, 80, 20)
    assert t == pytest.approx(d.mean() / np.sqrt(d.var(ddof=1) * (1 / 5 + 20 / 80)))
    assert p == pytest.approx(2 * stats.t.sf(abs(t), 4))
    plain = stats.ttest_1samp(d, 0)
    assert corrected_t(d, 1e12, 1) == pytest.approx((plain.statistic, plain.pvalue))
    assert p > plain.pvalue
    assert np.isnan(corrected_t(d[:1], 1, 1)[0])
    assert corrected_t(np.zeros(3), 1, 1) == (0.0, 1.0)


def test_holm_equals_statsmodels():
    p = np.random.default_rng(0).random(9) ** 3
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])
    with_gap = holm(np.array([0.01, np.nan, 0.04]))
    np.testing.assert_allclose(with_gap[[0, 2]], [0.02, 0.04])
    assert np.isnan(with_gap[1])


def test_ranking_equals_scipy_and_posthocs():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.random((9, 4)) + np.arange(4) * 0.3, columns=list("abcd"))
    table.loc[9] = np.nan
    result = rank_models(table)
    full = table.dropna()
    assert (result.statistic, result.pvalue) == pytest.approx(tuple(stats.friedmanchisquare(*full.to_numpy().T)))
    assert result.n == 9
    assert result.ranks.index[0] == "d"
    np.testing.assert_allclose(
        result.posthoc, sp.posthoc_conover_friedman(-full.to_numpy(), p_adjust="holm"), atol=1e-9
    )
    nemenyi = rank_models(table, test="nemenyi")
    np.testing.assert_allclose(nemenyi.posthoc, sp.posthoc_nemenyi_friedman(-full.to_numpy()), atol=1e-9)
    # Demsar 2006, table 5: q = 2.569 for four models at 5 %.
    assert result.critical_difference == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 9)), abs=1e-3)
    assert rank_models(table, higher_is_better=False).ranks.index[0] == "a"


def test_permutation_moves_whole_samples():
    y, score, pred, group = predictions(n_groups=6, strength=9)
    p, reason = permutation_pvalue(
        y, score, pred, group, METRICS["accuracy"], n_permutations=2000, rng=np.random.default_rng(0)
    )
    # Three of six samples are sensitive: 20 orders, one of which is the true one.
    assert p == pytest.approx(1 / 20, abs=0.015)
    assert reason == ""


def test_permutation_is_uniform_without_signal():
    pvalues = []
    for seed in range(120):
        y, score, pred, group = predictions(n_groups=10, strength=0, seed=seed)
        rng = np.random.default_rng(seed)
        pvalues.append(permutation_pvalue(y, score, pred, group, METRICS["auroc"], n_permutations=200, rng=rng)[0])
    assert stats.kstest(pvalues, "uniform").pvalue > 0.01
    assert np.mean(np.array(pvalues) < 0.05) < 0.12


def test_permutation_within_studies_and_reasons():
    y, score, pred, group = predictions(n_groups=8, strength=9)
    rng = np.random.default_rng(0)
    study = group // 2
    p, _ = permutation_pvalue(y, score, pred, group, METRICS["f1"], strata=study, n_permutations=2000, rng=rng)
    assert p == pytest.approx(1 / 2**4, abs=0.02)
    for kwargs, word in (({"strata": y}, "within a study"),):
        value, reason = permutation_pvalue(y, score, pred, group, METRICS["f1"], rng=rng, **kwargs)
        assert np.isnan(value)
        assert word in reason
    assert "both labels" in permutation_pvalue(y, score, pred, group // 2, METRICS["f1"], rng=rng)[1]
    assert "one class" in permutation_pvalue(np.ones_like(y), score, pred, group, METRICS["f1"], rng=rng)[1]
