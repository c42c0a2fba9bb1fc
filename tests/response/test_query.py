"""A query that says the same as the training data in another way, one that says something else, and none at all."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

import scdrugmap as sd
from scdrugmap._errors import InputError, MissingKeyError, ScDrugMapWarning
from scdrugmap.genes import packaged_table

QUICK = {"head": "logistic", "rng": 0}


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    out = sd.datasets.simulate(n_studies=1, n_cells=120, n_genes=80, rng=0)
    table = packaged_table().query("ensembl_id != ''").drop_duplicates("symbol").head(80)
    out.var_names = table["symbol"].to_numpy()
    out.var = out.var[[]].assign(ensembl_id=table["ensembl_id"].to_numpy())
    return out


def by_ensembl(adata: ad.AnnData) -> ad.AnnData:
    out = adata.copy()
    out.var = out.var[[]].set_index(out.var["ensembl_id"].to_numpy())
    return out


def test_counts_in_another_place(adata):
    trained = adata.copy()
    trained.layers["counts"], trained.X = trained.X.copy(), np.log1p(trained.X.toarray())
    predictor = sd.tl.train(trained, "pca", layer="counts", **QUICK)
    expected = predictor.predict(trained)["score"]
    with pytest.warns(ScDrugMapWarning, match="counts in X are used"):
        found = predictor.predict(adata)["score"]
    np.testing.assert_array_equal(found, expected)
    del trained.layers["counts"]
    with pytest.raises(MissingKeyError, match="no raw counts in X"):
        predictor.predict(trained)


@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("bare", [False, True])
def test_the_other_identifiers(adata, turn, bare):
    """Ensembl ids and symbols name the same genes, in ``var`` or in the packaged table."""
    symbols = adata.copy()
    if bare:
        symbols.var = symbols.var[[]]
    one, other = (symbols, by_ensembl(adata)) if turn else (by_ensembl(adata), symbols)
    predictor = sd.tl.train(one, "pca", **QUICK)
    np.testing.assert_allclose(predictor.predict(other)["score"], predictor.predict(one)["score"], rtol=1e-5)


def test_genes_of_nobody_are_refused(adata):
    predictor = sd.tl.train(adata, "pca", **QUICK)
    strange = adata.copy()
    strange.var = strange.var[[]].set_index(np.array([f"XYZ{i}" for i in range(80)]))
    with pytest.raises(InputError, match="none of the"):
        predictor.predict(strange)


def test_another_drug_is_said(adata):
    trained, query = adata.copy(), adata.copy()
    trained.obs["drug"], query.obs["drug"] = "Cisplatin", "cisplatin "
    trained.obs["tissue"], query.obs["tissue"] = "lung", ["lung"] * 60 + ["skin"] * 60
    predictor = sd.tl.train(trained, "pca", **QUICK)
    with pytest.warns(ScDrugMapWarning, match="60 of 120 cells are of tissue 'skin', not 'lung'") as seen:
        sd.tl.predict_response(query, predictor)
    assert not any("cisplatin" in str(w.message) for w in seen)
    assert {w.filename for w in seen} == {__file__}


def test_no_count_no_call(adata):
    predictor = sd.tl.train(adata, "pca", **QUICK)
    empty = adata.copy()
    empty.X = sparse.csr_matrix(empty.shape, dtype=np.float32)
    before = sorted(empty.obs)
    with pytest.raises(InputError, match="no count"):
        sd.tl.predict_response(empty, predictor)
    assert sorted(empty.obs) == before
    some = adata.copy()
    some.X = some.X.multiply(np.arange(120)[:, None] > 1).tocsr()
    with pytest.warns(ScDrugMapWarning, match="2 of 120 cells"):
        out = predictor.predict(some)
    assert out["score"].isna().tolist() == [True, True] + [False] * 118


def test_torn_matrix_is_refused(adata):
    torn = adata.copy()
    torn.X.data = torn.X.data[:-5]
    with pytest.raises(InputError, match=r"adata.X.*cut off"):
        sd.tl.embed(torn, "pca")
    with pytest.raises(InputError, match=r"adata.X.*cut off"):
        sd.tl.benchmark(torn, models=["pca"], baselines=[], duplicates="ignore")


def test_warnings_point_at_the_line_of_the_caller(adata):
    """Whatever way a call takes through the package."""
    query = adata.copy()
    query.obs["response"] = query.obs["response"].astype(object)
    query.obs.iloc[:5, query.obs.columns.get_loc("response")] = None
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        sd.tl.benchmark(query, models=["pca"], baselines=[], head="logistic", n_folds=2, progress=False)
        sd.tl.embed(query, "pca", groups="sample")
    ours = [w for w in seen if issubclass(w.category, ScDrugMapWarning)]
    assert len(ours) >= 2
    assert {w.filename for w in ours} == {__file__}
