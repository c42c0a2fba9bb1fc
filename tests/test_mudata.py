"""A MuData wherever an AnnData is accepted: read from and written to one modality, mirrored in ``obs``."""

from __future__ import annotations

import matplotlib
import mudata
import numpy as np
import pandas as pd
import pytest

import scdrugmap as sd
from scdrugmap._anndata import no_pull

matplotlib.use("agg")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def simulated() -> mudata.MuData:
    mdata = sd.datasets.simulate(n_studies=2, n_patients=2, n_cells=96, n_genes=60, protein=True, rng=0)
    for name in mdata.mod:
        mdata.mod[name].obsm["X_rep"] = np.asarray(mdata.mod[name].X[:, :3].todense())
        mdata.mod[name].obsm["X_umap"] = np.random.default_rng(0).normal(size=(mdata.n_obs, 2))
    return mdata


@pytest.fixture
def mdata(simulated) -> mudata.MuData:
    return simulated.copy()


@pytest.fixture
def adata(simulated):
    return simulated.mod["rna"].copy()


@pytest.fixture
def swapped(simulated) -> mudata.MuData:
    """The RNA under another name, which only ``mod=`` finds."""
    with no_pull():
        return mudata.MuData({"gex": simulated.mod["rna"].copy(), "prot": simulated.mod["prot"].copy()})


def network(adata):
    from scdrugmap._anndata import gene_ids
    from scdrugmap.models.tgpt import TGPT

    return TGPT.random(gene_ids(adata))


READ = {
    "pp.check": lambda x, **mod: sd.pp.check(x, **mod).to_frame(),
    "pp.gene_coverage": lambda x, **mod: sd.pp.gene_coverage(x, network(rna_of(x)), **mod),
    "pp.concat_studies": lambda x, **mod: sd.pp.concat_studies({"A": x}, **mod).to_df(),
    "tl.train": lambda x, **mod: sd.tl.train(x, "pca", head="logistic", rng=0, **mod).head[-1].coef_,
    "tl.train(use_rep)": lambda x, **mod: sd.tl.train(x, use_rep="X_rep", head="logistic", rng=0, **mod).head[-1].coef_,
    "tl.benchmark": lambda x, **mod: scores(
        sd.tl.benchmark(x, models=["X_rep", "pca"], head="logistic", baselines=["depth"], n_folds=2, rng=0, **mod)
    ),
    "tl.few_shot_curve": lambda x, **mod: sd.tl.few_shot_curve(
        x, "pca", target="study2", head="logistic", shots=(0, 1), n_repeats=1, rng=0, **mod
    ),
    "tl.leakage_report": lambda x, **mod: sd.tl.leakage_report(x, **mod).findings,
    "tl.profile": lambda x, **mod: sd.tl.profile(x, "pca", n_cells=8, **mod)[["n_parameters", "dim"]],
    "pl.response": lambda x, **mod: [ax.get_title() for ax in sd.pl.response(x, **mod)],
}


def rna_of(data):
    return next(data.mod[m] for m in ("rna", "gex") if m in data.mod) if hasattr(data, "mod") else data


def scores(result) -> pd.DataFrame:
    return result.table[["model", "category", "fold", "level", "metric", "value"]]


def equal(a, b) -> bool:
    if isinstance(a, pd.DataFrame):
        pd.testing.assert_frame_equal(a, b)
        return True
    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else a == b


@pytest.mark.parametrize("name", READ)
def test_readers_see_the_modality(name, mdata, adata, swapped):
    before = mdata.copy()
    expected = READ[name](adata)
    assert equal(READ[name](mdata), expected)
    assert equal(READ[name](swapped, mod="gex"), expected)
    pd.testing.assert_frame_equal(mdata.obs, before.obs)
    for m in mdata.mod:
        pd.testing.assert_frame_equal(mdata.mod[m].obs, before.mod[m].obs)
        assert list(mdata.mod[m].obsm) == list(before.mod[m].obsm)
        assert list(mdata.mod[m].uns) == list(before.mod[m].uns)


def test_embed(mdata, adata, swapped):
    assert sd.tl.embed(mdata, "pca", n_components=4) is None
    sd.tl.embed(adata, "pca", n_components=4)
    sd.tl.embed(swapped, "pca", n_components=4, mod="gex")
    np.testing.assert_array_equal(mdata.mod["rna"].obsm["X_scdrugmap_pca"], adata.obsm["X_scdrugmap_pca"])
    np.testing.assert_array_equal(swapped.mod["gex"].obsm["X_scdrugmap_pca"], adata.obsm["X_scdrugmap_pca"])
    assert mdata.mod["rna"].uns["scdrugmap_pca"]["params"] == adata.uns["scdrugmap_pca"]["params"]
    assert "X_scdrugmap_pca" not in mdata.mod["prot"].obsm and "X_scdrugmap_pca" not in mdata.obsm


def test_embed_with_a_network(mdata, adata):
    model = network(adata)
    sd.tl.embed(mdata, model)
    sd.tl.embed(adata, model)
    np.testing.assert_array_equal(mdata.mod["rna"].obsm["X_tgpt"], adata.obsm["X_tgpt"])


def test_embed_a_copy(mdata):
    copied = sd.tl.embed(mdata, "pca", n_components=4, copy=True)
    assert isinstance(copied, mudata.MuData)
    assert "X_scdrugmap_pca" in copied.mod["rna"].obsm and "X_scdrugmap_pca" not in mdata.mod["rna"].obsm


def test_embed_the_proteins(mdata):
    sd.tl.embed(mdata, "pca", n_components=3, mod="prot")
    assert mdata.mod["prot"].obsm["X_scdrugmap_pca"].shape == (mdata.n_obs, 3)
    assert "X_scdrugmap_pca" not in mdata.mod["rna"].obsm


def test_harmonize_response(mdata, swapped):
    for data, mod in ((mdata, "rna"), (swapped, "gex")):
        data.mod[mod].obs["status"] = np.where(np.arange(data.n_obs) % 2, "R", "S")
        sd.pp.harmonize_response(data, "status", key_added="label", mod=mod)
        assert data.mod[mod].obs["label"].tolist()[:2] == ["sensitive", "resistant"]
        assert data.obs[f"{mod}:label"].tolist() == data.mod[mod].obs["label"].tolist()
        assert "label" not in data.mod["prot"].obs and "label" not in data.obs


def test_harmonize_genes(mdata, adata):
    names = adata.var_names.to_numpy().astype(object)
    for data in (mdata.mod["rna"], adata):
        # The second gene is the first one under its Ensembl id.
        data.var = pd.DataFrame(index=[names[0], data.var["ensembl_id"].iloc[0], *names[2:]])
    mdata.update()
    n_prot = mdata.mod["prot"].n_vars
    sd.pp.harmonize_genes(mdata)
    sd.pp.harmonize_genes(adata)
    assert mdata.mod["rna"].n_vars == adata.n_vars == len(names) - 1
    assert (mdata.mod["rna"].X != adata.X).nnz == 0
    pd.testing.assert_frame_equal(mdata.mod["rna"].var, adata.var)
    assert mdata.n_vars == adata.n_vars + n_prot


@pytest.fixture(scope="module")
def predictor(simulated):
    return sd.tl.train(simulated, "pca", head="logistic", conformal=0.8, ood=True, n_folds=2, rng=0)


def test_predict_response(mdata, adata, swapped, predictor):
    before = mdata.copy()
    sd.tl.predict_response(adata, predictor, sample_key="sample")
    for data, mod in ((mdata, "rna"), (swapped, "gex")):
        assert sd.tl.predict_response(data, predictor, sample_key="sample", mod=mod) is None
        for column in ("response_pred", "response_score", "response_set", "response_ood"):
            expected = adata.obs[column]
            assert data.mod[mod].obs[column].equals(expected)
            mirrored = data.obs[f"{mod}:{column}"]
            assert mirrored.dtype == expected.dtype and mirrored.tolist() == expected.tolist()
            assert column not in data.mod["prot"].obs
        pd.testing.assert_frame_equal(data.mod[mod].uns["response"]["samples"], adata.uns["response"]["samples"])
    assert mdata.mod["rna"].obs["response"].equals(before.mod["rna"].obs["response"])


def test_predict_response_of_a_copy(mdata, predictor):
    copied = sd.tl.predict_response(mdata, predictor, copy=True)
    assert "rna:response_pred" in copied.obs and "rna:response_pred" not in mdata.obs
    assert "response_pred" not in mdata.mod["rna"].obs


def test_predictor_methods(mdata, adata, swapped, predictor):
    for method in ("predict", "predict_proba", "features"):
        expected = getattr(predictor, method)(adata)
        assert equal(getattr(predictor, method)(mdata), expected)
        assert equal(getattr(predictor, method)(swapped, mod="gex"), expected)


def test_predict_from_a_reference(mdata, adata):
    half = np.asarray(adata.obs["study"] == "study1")
    query, reference = mdata[~half].copy(), mdata[half].copy()
    plain = adata[~half].copy()
    sd.tl.predict_response(query, model="pca", reference=reference, head="logistic", rng=0)
    sd.tl.predict_response(plain, model="pca", reference=adata[half].copy(), head="logistic", rng=0)
    assert query.mod["rna"].obs["response_score"].equals(plain.obs["response_score"])


@pytest.mark.parametrize("saved", [False, True])
def test_two_modalities_side_by_side(mdata, adata, tmp_path, saved):
    use_rep = {"rna": "X_rep", "prot": "X_rep"}
    predictor = sd.tl.train(mdata, use_rep=use_rep, head="logistic", rng=0)
    if saved:
        predictor.save(tmp_path / "p")
        predictor = sd.load_predictor(tmp_path / "p")
    both = np.hstack([mdata.mod["rna"].obsm["X_rep"], mdata.mod["prot"].obsm["X_rep"]])
    np.testing.assert_allclose(predictor.features(mdata), both)
    adata.obsm["X_both"] = both
    alone = sd.tl.train(adata, use_rep="X_both", head="logistic", rng=0)
    sd.tl.predict_response(mdata, predictor)
    np.testing.assert_array_equal(mdata.mod["rna"].obs["response_score"], alone.predict(adata)["score"])
    assert mdata.obs["rna:response_pred"].notna().all()


def test_cells_of_one_modality_only(simulated):
    """A cell without proteins gets no prediction; cells are matched by name, not by position."""
    rna, prot = simulated.mod["rna"].copy(), simulated.mod["prot"].copy()
    order = np.random.default_rng(0).permutation(prot.n_obs)[10:]
    with no_pull():
        ragged = mudata.MuData({"rna": rna, "prot": prot[order].copy()})
    predictor = sd.tl.train(simulated, use_rep={"rna": "X_rep", "prot": "X_rep"}, head="logistic", rng=0)
    sd.tl.predict_response(ragged, predictor)
    score = ragged.mod["rna"].obs["response_score"]
    without = ~rna.obs_names.isin(prot.obs_names[order])
    assert without.sum() == 10 and (score.isna().to_numpy() == without).all()
    expected = predictor.predict(simulated)["score"]
    np.testing.assert_allclose(score[~without], expected[~without], atol=1e-6)
    mirrored = ragged.obs["rna:response_score"].reindex(rna.obs_names)
    np.testing.assert_array_equal(mirrored, score)


def test_mirror_leaves_gaps_for_cells_that_the_modality_lacks(simulated, predictor):
    rna, prot = simulated.mod["rna"][:-5].copy(), simulated.mod["prot"].copy()
    with no_pull():
        ragged = mudata.MuData({"rna": rna, "prot": prot})
    sd.tl.predict_response(ragged, predictor)
    pred = ragged.obs["rna:response_pred"]
    assert pred.isna().sum() == 5 and list(pred.cat.categories) == ["resistant", "sensitive"]
    assert pred[rna.obs_names].tolist() == rna.obs["response_pred"].tolist()


def test_results_survive_a_file(mdata, predictor, tmp_path):
    sd.tl.embed(mdata, "pca", n_components=4)
    sd.tl.predict_response(mdata, predictor, sample_key="sample")
    mdata.write_h5mu(tmp_path / "x.h5mu")
    again = mudata.read_h5mu(tmp_path / "x.h5mu")
    assert again.obs["rna:response_pred"].tolist() == mdata.obs["rna:response_pred"].tolist()
    np.testing.assert_array_equal(again.mod["rna"].obsm["X_scdrugmap_pca"], mdata.mod["rna"].obsm["X_scdrugmap_pca"])
