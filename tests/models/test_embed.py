"""``sd.tl.embed``: what it writes, and what it refuses."""

from __future__ import annotations

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scdrugmap as sd
from scdrugmap._errors import InputError, InputTypeError, MissingKeyError, ScDrugMapWarning, UnknownNameError
from scdrugmap.models.tgpt import TGPT
from scdrugmap.testing.cells import example_cells


@pytest.fixture
def adata():
    X, genes = example_cells()
    obs = pd.DataFrame({"sample": ["a", "b"] * (X.shape[0] // 2)}, index=[f"c{i}" for i in range(X.shape[0])])
    var = pd.DataFrame({"ensembl_id": genes.ensembl}, index=genes.symbols)
    return ad.AnnData(X, obs=obs, var=var)


@pytest.fixture
def tiny():
    return TGPT.random(example_cells()[1])


def snapshot(adata):
    return adata.X.copy(), adata.obs.copy(), adata.var.copy(), list(adata.obsm), list(adata.uns), list(adata.layers)


def unchanged(adata, before):
    X, obs, var, obsm, uns, layers = before
    np.testing.assert_array_equal(adata.X.toarray(), X.toarray())
    pd.testing.assert_frame_equal(adata.obs, obs)
    pd.testing.assert_frame_equal(adata.var, var)
    assert (list(adata.obsm), list(adata.uns), list(adata.layers)) == (obsm, uns, layers)


def test_writes_embedding_and_provenance(adata, tiny, tmp_path):
    assert sd.tl.embed(adata, tiny) is None
    assert adata.obsm["X_tgpt"].dtype == np.float32
    record = adata.uns["tgpt"]
    assert set(record) == {"params", "provenance"}
    for field in ("scdrugmap", "model", "licence", "checkpoint_sha256", "genes_used", "device", "precision", "options"):
        assert field in record["provenance"]
    adata.write_h5ad(tmp_path / "out.h5ad")
    again = ad.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(again.obsm["X_tgpt"], adata.obsm["X_tgpt"])


def test_copy_leaves_the_original(adata):
    before = snapshot(adata)
    out = sd.tl.embed(adata, "pca", n_components=3, copy=True)
    unchanged(adata, before)
    assert out.obsm["X_scdrugmap_pca"].shape == (adata.n_obs, 3)


def test_several_models_at_once(adata):
    sd.tl.embed(adata, ["hvg", "pca"])
    assert {"X_scdrugmap_hvg", "X_scdrugmap_pca"} <= set(adata.obsm)


def test_layer(adata):
    adata.layers["counts"] = adata.X.copy()
    expected = sd.tl.embed(adata, "pca", n_components=3, copy=True).obsm["X_scdrugmap_pca"]
    adata.X = np.log1p(adata.X)
    sd.tl.embed(adata, "pca", n_components=3, layer="counts")
    np.testing.assert_array_equal(adata.obsm["X_scdrugmap_pca"], expected)


def test_mudata(adata, tiny):
    protein = ad.AnnData(np.ones((adata.n_obs, 2)), obs=pd.DataFrame(index=adata.obs_names))
    mdata = md.MuData({"rna": adata, "prot": protein})
    sd.tl.embed(mdata, tiny)
    assert "X_tgpt" in mdata.mod["rna"].obsm
    with pytest.raises(MissingKeyError, match="mod"):
        sd.tl.embed(mdata, tiny, mod="atac")


def test_empty_cell_is_nan_with_a_warning(adata, tiny):
    X = adata.X.tolil()
    X[3] = 0
    adata.X = sparse.csr_matrix(X)
    with pytest.warns(ScDrugMapWarning, match="1 of"):
        sd.tl.embed(adata, tiny)
    assert np.isnan(adata.obsm["X_tgpt"][3]).all()
    assert np.isfinite(np.delete(adata.obsm["X_tgpt"], 3, axis=0)).all()


def test_duplicate_names_are_summed_with_a_warning(adata, tiny):
    expected = sd.tl.embed(adata, tiny, copy=True).obsm["X_tgpt"]
    doubled = ad.concat([adata, adata[:, :1]], axis=1, merge="first")
    doubled.X = sparse.csr_matrix(sparse.hstack([adata.X, sparse.csr_matrix((adata.n_obs, 1))]))
    with pytest.warns(ScDrugMapWarning, match="summed"):
        sd.tl.embed(doubled, tiny)
    np.testing.assert_allclose(doubled.obsm["X_tgpt"], expected, rtol=1e-5, atol=1e-6)


def bad(change):
    def apply(adata):
        adata = adata.copy()
        change(adata)
        return adata

    return apply


def set_value(value):
    def change(adata):
        X = adata.X.astype(np.float64)
        X.data[0] = value
        adata.X = X

    return change


@pytest.mark.parametrize(
    ("prepare", "options", "error", "words"),
    [
        (bad(set_value(np.nan)), {}, InputError, "NaN"),
        (bad(set_value(-1)), {}, InputError, "negative"),
        (
            bad(lambda a: setattr(a, "var_names", [f"x{i}x" for i in range(a.n_vars)])),
            {},
            InputError,
            "harmonize_genes",
        ),
        (bad(lambda a: setattr(a, "var_names", [f"Abc{i}a" for i in range(a.n_vars)])), {}, InputError, "mouse"),
        (lambda a: a[:0].copy(), {}, InputError, "0 cells"),
        (lambda a: a[:, :0].copy(), {}, InputError, "0 genes"),
        (lambda a: a, {"layer": "counts"}, MissingKeyError, "layer"),
        (lambda a: a, {"device": "cuda:99"}, InputError, "device"),
        (lambda a: a, {"precision": "float8"}, InputError, "precision"),
        (lambda a: a, {"key_added": "a/b"}, InputError, "key_added"),
        (lambda a: a, {"rng": "seven"}, InputTypeError, "rng"),
        (lambda a: a, {"max_length": 5}, InputError, "loaded model"),
    ],
)
def test_bad_input_changes_nothing(adata, tiny, prepare, options, error, words):
    data = prepare(adata)
    data.var = data.var.drop(columns="ensembl_id")
    before = snapshot(data)
    with pytest.raises(error, match=words):
        sd.tl.embed(data, tiny, **options)
    unchanged(data, before)


@pytest.mark.parametrize("data", [None, 3, np.ones((2, 2)), pd.DataFrame([[1]])])
def test_not_anndata(data, tiny):
    with pytest.raises(InputTypeError, match="adata"):
        sd.tl.embed(data, tiny)


def test_names_are_forgiving_and_unknown_ones_get_a_suggestion(adata):
    sd.tl.embed(adata, "PCA", n_components=2)
    with pytest.raises(UnknownNameError, match="scGPT"):
        sd.tl.embed(adata, "scGTP")
    with pytest.raises(UnknownNameError, match="n_components"):
        sd.tl.embed(adata, "pca", n_component=2)
    with pytest.raises(InputError, match="predict_response"):
        sd.tl.embed(adata, "GPT-4o-mini")


def test_two_settings_for_several_models(adata):
    with pytest.raises(InputError, match="one model"):
        sd.tl.embed(adata, ["hvg", "pca"], key_added="x")


def test_normalised_data_are_refused_where_counts_are_needed(adata):
    adata.X = adata.X.multiply(0.37).tocsr()
    before = snapshot(adata)
    with pytest.raises(InputError, match="layer"):
        sd.tl.embed(adata, "hvg")
    unchanged(adata, before)


def test_baselines_leave_the_slots_of_other_tools_alone():
    adata = sd.datasets.simulate(n_studies=1, n_cells=60, n_genes=80, rng=0)
    adata.obsm["X_pca"], adata.uns["pca"] = np.ones((adata.n_obs, 2)), {"variance_ratio": np.array([0.6, 0.4])}
    sd.tl.embed(adata, ["pca", "hvg"])
    assert (adata.obsm["X_pca"] == 1).all() and list(adata.uns["pca"]) == ["variance_ratio"]
    assert {"X_scdrugmap_pca", "X_scdrugmap_hvg"} <= set(adata.obsm)
    assert {"scdrugmap_pca", "scdrugmap_hvg"} <= set(adata.uns)
    assert sd.models.info("scGPT").stem == "scgpt" and sd.models.info("scvi").stem == "scdrugmap_scvi"


def test_what_an_older_version_wrote_is_still_read():
    adata = sd.datasets.simulate(n_studies=1, n_cells=60, n_genes=80, rng=0)
    sd.tl.embed(adata, "pca", n_components=4)
    adata.obsm["X_pca"], adata.uns["pca"] = adata.obsm.pop("X_scdrugmap_pca"), adata.uns.pop("scdrugmap_pca")
    predictor = sd.tl.train(adata, use_rep="X_pca", head="logistic", rng=0)
    assert predictor.representation.parts[0].origin["model"] == "pca"
