"""Differences between samples: statistics against independent oracles, refusals, and the planted truth."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, special, stats
from sklearn.metrics import roc_auc_score

import scdrugmap as sd
from scdrugmap._errors import InputError, MissingKeyError, ScDrugMapWarning, UnknownNameError
from scdrugmap.embedding.source import CountSource
from scdrugmap.interpret import moderated
from scdrugmap.interpret.confounding import same_division
from scdrugmap.interpret.meta import random_effects
from scdrugmap.interpret.pseudobulk import pseudobulk

COLUMNS = [
    "gene", "log2_fc", "se", "low", "high", "t", "p", "q", "n_resistant", "n_sensitive", "sign_consistency",
    "detection_resistant", "detection_sensitive", "confounded",
]  # fmt: skip


def genes_of(adata: ad.AnnData) -> set[str]:
    table = adata.uns["simulation"]["programmes"]
    drugs = set(adata.obs["drug"].astype(str))
    return set(table[(table.programme == "shared") | ((table.programme == "private") & table.drug.isin(drugs))].gene)


def quiet(adata: ad.AnnData, **options) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sd.tl.biomarkers(adata, copy=True, **options).uns["biomarkers"]


def test_pseudobulk_is_a_sum_over_the_cells(small):
    codes = pd.factorize(small.obs["sample"])[0]
    codes[:5] = -1
    bulk = pseudobulk(CountSource(small.X), codes, 4, block=7)
    dense = small.X.toarray()
    for unit in range(4):
        np.testing.assert_allclose(bulk.counts[unit], dense[codes == unit].sum(0))
        np.testing.assert_array_equal(bulk.detected[unit], (dense[codes == unit] > 0).sum(0))
    assert bulk.n_cells.sum() == len(codes) - 5


def test_least_squares_is_that_of_scipy(rng):
    Y, y = rng.normal(size=(7, 5)), np.array([0, 0, 0, 1, 1, 1, 1])
    design = np.column_stack([np.ones(7), y == 0]).astype(float)
    fitted = moderated.fit(Y, design)
    plain = stats.ttest_ind(Y[y == 0], Y[y == 1])
    se = np.sqrt(fitted.variance * fitted.unscaled[1, 1])
    np.testing.assert_allclose(fitted.coefficients[1] / se, plain.statistic, rtol=1e-10)


@pytest.mark.parametrize(("d0", "s0"), [(4.0, 0.3), (20.0, 2.0)])
def test_prior_of_the_variances_is_recovered(d0, s0, rng):
    """Variances drawn from the model of Smyth (2004): the prior comes back, and the posterior is its formula."""
    true = d0 * s0 / rng.chisquare(d0, 40_000)
    found = true * rng.chisquare(6, 40_000) / 6
    posterior, prior, df = moderated.squeeze(found, 6)
    assert df == pytest.approx(d0, rel=0.1)
    assert prior == pytest.approx(s0, rel=0.05)
    np.testing.assert_allclose(posterior, (df * prior + 6 * found) / (df + 6))
    assert np.mean((posterior - true) ** 2) < np.mean((found - true) ** 2)


def test_equal_variances_have_an_infinite_prior(rng):
    found = 2.0 * rng.chisquare(5, 20_000) / 5
    posterior, _, df = moderated.squeeze(found, 5)
    assert df == np.inf or df > 100
    assert posterior.mean() == pytest.approx(2.0, rel=0.05)


def test_trigamma_is_inverted():
    for x in (0.01, 0.5, 3.0, 200.0):
        assert moderated._inverse_trigamma(float(special.polygamma(1, x))) == pytest.approx(x, rel=1e-6)


def test_moderated_p_values_are_uniform_without_effect(rng):
    Y = rng.normal(size=(6, 20_000)) * np.sqrt(3 / rng.chisquare(3, 20_000))
    design = np.column_stack([np.ones(6), [1, 1, 1, 0, 0, 0]])
    p = moderated.moderated(moderated.fit(Y, design), np.array([0, 1])).p
    assert stats.kstest(p, "uniform").statistic < 0.015


#: Deaths in vaccinated and not vaccinated, positive and negative: the thirteen trials of BCG (Colditz et al. 1994).
BCG = np.array([
    (4, 119, 11, 128), (6, 300, 29, 274), (3, 228, 11, 209), (62, 13536, 248, 12619), (33, 5036, 47, 5761),
    (180, 1361, 372, 1079), (8, 2537, 10, 619), (505, 87886, 499, 87892), (29, 7470, 45, 7232), (17, 1699, 65, 1600),
    (186, 50448, 141, 27197), (5, 2493, 3, 2338), (27, 16886, 29, 17825),
], dtype=float)  # fmt: skip


def test_meta_analysis_of_a_published_example():
    """DerSimonian and Laird on the log risk ratios of the BCG trials: -0.714, tau squared 0.309 (published)."""
    a, b, c, d = BCG.T
    y = np.log(a / (a + b)) - np.log(c / (c + d))
    v = 1 / a - 1 / (a + b) + 1 / c - 1 / (c + d)
    pooled = random_effects(y[:, None], v[:, None])
    assert pooled.effect[0] == pytest.approx(-0.7141, abs=5e-4)
    assert pooled.tau2[0] == pytest.approx(0.3088, abs=5e-4)
    assert pooled.i2[0] == pytest.approx(0.9212, abs=5e-4)
    # Hartung and Knapp by its definition.
    w = 1 / (v + pooled.tau2[0])
    assert pooled.se[0] == pytest.approx(np.sqrt((w * (y - pooled.effect[0]) ** 2).sum() / 12 / w.sum()))
    assert pooled.df == 12


def test_meta_analysis_leaves_out_studies_without_the_gene():
    effects, variances = np.array([[1.0, 1.0], [3.0, np.nan]]), np.ones((2, 2))
    pooled = random_effects(effects, variances)
    assert pooled.effect.tolist() == [2.0, 1.0]
    assert pooled.n_studies.tolist() == [2, 1]


def test_planted_genes_are_found_and_the_false_ones_are_few(planted):
    table = quiet(planted)
    assert table.columns.tolist() == COLUMNS
    assert len(table) == planted.n_vars
    true = table["gene"].isin(genes_of(planted))
    tested = table["t"].notna()
    assert roc_auc_score(true[tested], table["t"][tested].abs()) > 0.9
    called = table["q"] < 0.05
    assert called.sum() >= 10
    assert (~true[called]).mean() <= 0.1
    programmes = planted.uns["simulation"]["programmes"]
    up = programmes.query("programme == 'shared'").set_index("gene")["log_fold_change"]
    signs = table[called & table["gene"].isin(up.index)].set_index("gene")["log2_fc"]
    assert (np.sign(signs) == np.sign(up[signs.index])).mean() > 0.9, "positive is higher in resistant"
    assert table["low"].lt(table["log2_fc"])[tested].all()
    assert table["high"].gt(table["log2_fc"])[tested].all()


@pytest.mark.parametrize("seed", range(3))
def test_without_effect_nothing_is_called(seed):
    cells = sd.datasets.simulate(
        n_studies=1, n_patients=8, n_samples_per_patient=1, n_cells=500, n_genes=300, shared_effect=0.0,
        private_effect=0.0, rng=seed,
    )  # fmt: skip
    assert (quiet(cells)["q"] < 0.05).sum() <= 1


def test_effects_are_those_of_the_sums(planted):
    table = quiet(planted).set_index("gene")
    labels = planted.obs.groupby("sample", observed=True)["response"].first()
    X = planted.X.astype(np.float64)
    sums = np.array([X[(planted.obs["sample"] == s).to_numpy()].sum(0).A1 for s in labels.index])
    cpm = np.log2((sums + 0.5) / (sums.sum(1, keepdims=True) + 1) * 1e6)
    resistant = (labels == "resistant").to_numpy()
    expected = cpm[resistant].mean(0) - cpm[~resistant].mean(0)
    np.testing.assert_allclose(table.loc[planted.var_names, "log2_fc"], expected, atol=1e-10)
    cells = (planted.obs["response"] == "resistant").to_numpy()
    share = (planted.X[cells] > 0).mean(0).A1
    np.testing.assert_allclose(table.loc[planted.var_names, "detection_resistant"], share)
    assert (table["n_resistant"] == 4).all()


def test_predictions_are_compared_within_samples(planted):
    """A prediction divides every sample, so that each is its own control: the same genes with a patient effect."""
    cells = planted.copy()
    cells.obs["response_pred"] = cells.obs["true_state"]
    cells.obs.loc[cells.obs_names[:9], "response_pred"] = np.nan
    table = quiet(cells, key="response_pred", min_cells=3)
    assert table["n_resistant"].iloc[0] + table["n_sensitive"].iloc[0] > 8
    assert table.head(10)["gene"].isin(genes_of(planted)).mean() > 0.6


def test_few_samples_give_effects_without_p(planted):
    two = planted.obs.groupby("response", observed=True)["sample"].unique().map(lambda s: list(s[:2])).sum()
    cells = planted[planted.obs["sample"].isin(two)].copy()
    with pytest.warns(ScDrugMapWarning, match="fewer than 3"):
        sd.tl.biomarkers(cells)
    table = cells.uns["biomarkers"]
    assert table["log2_fc"].notna().all()
    assert table[["p", "q", "se", "t"]].isna().all(axis=None)
    assert "fewer than 3" in cells.uns["biomarkers_record"]["reasons"][0]


def test_treated_against_untreated_is_flagged(planted):
    cells = planted.copy()
    cells.obs["time_point"] = cells.obs["response"].map({"resistant": "post", "sensitive": "pre"}).astype(str)
    with pytest.warns(ScDrugMapWarning, match="time_point"):
        sd.tl.biomarkers(cells)
    table = cells.uns["biomarkers"]
    assert table["confounded"].all()
    assert table["p"].isna().all()


def test_depth_that_goes_with_the_label_is_flagged(planted):
    cells = planted.copy()
    thin = (cells.obs["response"] == "sensitive").to_numpy()
    X = cells.X.copy()
    rows = np.repeat(thin, np.diff(X.indptr))
    X.data[rows] = np.random.default_rng(0).binomial(X.data[rows].astype(int), 0.2)
    X.eliminate_zeros()
    cells.X = X
    with pytest.warns(ScDrugMapWarning, match="depth"):
        sd.tl.biomarkers(cells)
    assert cells.uns["biomarkers"]["confounded"].any()


def test_a_column_that_names_every_sample_explains_nothing():
    y, study = np.array([0, 0, 1, 1]), np.zeros(4)
    assert not same_division(np.arange(4), y, study)
    assert not same_division(np.array(["a", "b", "a", "b"]), y, study)
    assert same_division(np.array(["a", "a", "b", "b"]), y, study)


def test_several_studies_are_joined():
    cells = sd.datasets.simulate(n_studies=3, n_patients=4, n_cells=900, n_genes=300, rng=1)
    table = quiet(cells)
    assert {"n_studies", "i2"} <= set(table)
    shared = set(cells.uns["simulation"]["programmes"].query("programme == 'shared'")["gene"])
    assert table.head(15)["gene"].isin(shared).mean() > 0.7
    assert (~table[table["q"] < 0.05]["gene"].isin(genes_of(cells))).mean() <= 0.1


def test_one_label_per_study_is_no_comparison(planted):
    cells = planted.copy()
    cells.obs["study"] = cells.obs["response"].astype(str)
    with pytest.warns(ScDrugMapWarning, match="cannot be told apart"):
        sd.tl.biomarkers(cells)
    assert cells.uns["biomarkers"]["p"].isna().all()


def test_strata_and_copy(planted):
    out = sd.tl.biomarkers(planted, by="cell_type", min_cells=1, copy=True)
    assert "biomarkers" not in planted.uns
    assert set(out.uns["biomarkers"]["stratum"]) <= set(planted.obs["cell_type"])
    assert sd.tl.biomarkers(planted.copy()) is None


def test_the_table_travels(planted, tmp_path):
    cells = planted.copy()
    sd.tl.biomarkers(cells)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    again = ad.read_h5ad(tmp_path / "cells.h5ad").uns["biomarkers"]
    pd.testing.assert_frame_equal(again, cells.uns["biomarkers"], check_dtype=False)


def test_order_of_the_cells_changes_nothing(planted):
    shuffled = planted[np.random.default_rng(0).permutation(planted.n_obs)].copy()
    by_gene = [quiet(cells).set_index("gene").loc[planted.var_names] for cells in (planted, shuffled)]
    pd.testing.assert_frame_equal(*by_gene, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"key": "nothing"}, MissingKeyError, "nothing"),
        ({"groups": "nothing"}, MissingKeyError, "nothing"),
        ({"key": "cell_type"}, InputError, "labels"),
        ({"method": "wilcoxon"}, UnknownNameError, "replicates"),
        ({"engine": "edger"}, UnknownNameError, "edger"),
        ({"min_cells": 0}, InputError, "min_cells"),
    ],
)
def test_what_cannot_be_used_is_refused(planted, options, kind, words):
    before = planted.obs.copy()
    with pytest.raises(kind, match=words):
        sd.tl.biomarkers(planted, **options)
    assert "biomarkers" not in planted.uns
    pd.testing.assert_frame_equal(planted.obs, before)


def test_logged_values_are_refused(planted):
    cells = planted.copy()
    cells.X = sparse.csr_matrix(cells.X.log1p())
    with pytest.raises(InputError, match="counts"):
        sd.tl.biomarkers(cells)


@pytest.mark.parametrize("n_studies", [1, 2])
def test_the_negative_binomial_engine_is_pydeseq2(n_studies):
    """Sums per sample given to PyDESeq2 directly, with the genes in another order, where its optimiser stops elsewhere."""
    dds = pytest.importorskip("pydeseq2.dds")
    ds = pytest.importorskip("pydeseq2.ds")
    cells = sd.datasets.simulate(
        n_studies=n_studies, n_patients=6, n_samples_per_patient=1, n_cells=240 * n_studies, n_genes=60, rng=1
    )
    table = quiet(cells, engine="deseq2", min_cells=1, rng=0).set_index("gene")
    tested = table.index[table["p"].notna()]
    assert len(tested) > 20
    label = cells.obs.groupby("sample", observed=True)[["response", "study"]].first().astype(str)
    sums = (
        pd.DataFrame(cells.X.toarray(), columns=cells.var_names)
        .groupby(cells.obs["sample"].astype(str).to_numpy())
        .sum()
    )
    sums, label = sums[list(tested)].round().astype(int), label.loc[sums.index]
    data = dds.DeseqDataSet(
        counts=sums, metadata=label, design="~response" if n_studies == 1 else "~study + response", quiet=True
    )
    data.deseq2()
    found = ds.DeseqStats(data, contrast=["response", "resistant", "sensitive"], quiet=True)
    found.summary()
    expected = found.results_df.loc[tested]
    np.testing.assert_allclose(table.loc[tested, "log2_fc"], expected["log2FoldChange"], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(table.loc[tested, "se"], expected["lfcSE"], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(table.loc[tested, "t"], expected["stat"], rtol=1e-3, atol=1e-5)
    known = expected["pvalue"].notna().to_numpy()
    np.testing.assert_allclose(table.loc[tested, "p"][known], expected["pvalue"][known], rtol=1e-3, atol=1e-5)
