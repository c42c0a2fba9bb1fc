from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score

import scdrugmap as sd
from scdrugmap._errors import (
    CheckpointError,
    InputError,
    InputTypeError,
    MissingKeyError,
    ScDrugMapWarning,
    UnknownNameError,
)

torch.set_num_threads(1)
GENES = [f"GENE{i}" for i in range(60)]


def cells(n_samples=12, per_sample=20, seed=0, study="a", prefix="") -> ad.AnnData:
    """Cells whose first genes tell the response; half of the samples are sensitive."""
    rng = np.random.default_rng(seed)
    n = n_samples * per_sample
    sample = np.repeat(np.arange(n_samples), per_sample)
    sensitive = sample % 2 == 1
    rate = np.full((n, 60), 3.0)
    rate[:, :8] *= np.where(sensitive, 3.0, 1.0)[:, None]
    rate *= np.exp(rng.normal(scale=0.2, size=(n_samples, 60)))[sample]
    X = rng.poisson(rate)
    obs = pd.DataFrame(
        {
            "response": np.where(sensitive, "sensitive", "resistant"),
            "sample": [f"{prefix}s{s}" for s in sample],
            "study": study,
            "tissue": np.where(sample % 4 < 2, "blood", "lung"),
        },
        index=[f"{study}{prefix}c{i}" for i in range(n)],
    )
    adata = ad.AnnData(sparse.csr_matrix(X.astype(np.float32)), obs=obs, var=pd.DataFrame(index=GENES))
    adata.obsm["X_toy"] = np.log1p(X[:, :20]).astype(np.float32)
    return adata


QUICK = {"head": "logistic", "rng": 0}


def snapshot(adata):
    return sorted(adata.obs), sorted(adata.obsm), sorted(adata.uns), adata.X.sum()


@pytest.mark.parametrize("model", ["hvg", "pca"])
@pytest.mark.parametrize("head", ["mlp", "logistic"])
def test_train_save_load_predict(tmp_path, model, head):
    adata, query = cells(), cells(seed=1, prefix="q")
    del query.obs["response"]
    before = snapshot(adata)
    options = {"standardize": True, "lr": 1e-3} if head == "mlp" else {}
    predictor = sd.tl.train(
        adata, model, head=head, head_options=options, calibrate="sigmoid", conformal=0.9, ood=True, rng=0
    )
    assert snapshot(adata) == before
    predictor.save(tmp_path / "p")
    again = sd.load_predictor(tmp_path / "p")
    first, second = predictor.predict(query), again.predict(query)
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    assert first["score"].dtype == np.float32
    truth = np.repeat(np.arange(12), 20) % 2 == 1
    assert roc_auc_score(truth, first["score"]) > 0.95
    assert again.card == predictor.card
    assert again.training == predictor.training
    np.testing.assert_allclose(again.predict_proba(query).sum(1), 1)


def test_the_folder_holds_no_pickle_and_is_self_contained(tmp_path):
    sd.tl.train(cells(), "pca", ood=True, **QUICK).save(tmp_path / "p")
    names = {p.name for p in (tmp_path / "p").iterdir()}
    assert names == {"predictor.json", "head.safetensors", "model.safetensors", "extras.safetensors", "README.md"}
    assert not list(tmp_path.glob(".*"))
    assert "240" in (tmp_path / "p" / "README.md").read_text()


def test_predict_response_writes_what_it_says(tmp_path):
    adata, query = cells(), cells(seed=1, prefix="q")
    truth = query.obs["response"].copy()
    predictor = sd.tl.train(adata, "pca", conformal=0.8, ood=True, **QUICK)
    predictor.save(tmp_path / "p")
    assert sd.tl.predict_response(query, tmp_path / "p", sample_key="sample") is None
    assert query.obs["response_pred"].cat.categories.tolist() == ["resistant", "sensitive"]
    assert query.obs["response_score"].dtype == np.float32
    assert set(query.obs["response_set"]) <= {"resistant", "sensitive", "resistant|sensitive", ""}
    assert query.obs["response_ood"].dtype == bool
    pd.testing.assert_series_equal(query.obs["response"], truth)
    called = (query.obs["response_score"] > 0.5).map({True: "sensitive", False: "resistant"})
    assert (called == query.obs["response_pred"].astype(str)).all()
    table = query.uns["response"]["samples"]
    assert table.loc["qs1", "fraction_resistant"] == np.mean(
        query.obs["response_pred"][query.obs["sample"] == "qs1"] == "resistant"
    )
    query.write_h5ad(tmp_path / "q.h5ad")
    back = ad.read_h5ad(tmp_path / "q.h5ad")
    assert back.obs["response_pred"].tolist() == query.obs["response_pred"].tolist()
    assert back.uns["response"]["params"]["coverage"] == 0.8

    copied = sd.tl.predict_response(cells(seed=1), predictor, key_added="mine", copy=True, conformal=False, ood=False)
    assert {"mine_pred", "mine_score"} <= set(copied.obs) and "mine_set" not in copied.obs and "mine" in copied.uns


def test_predict_response_trains_on_a_reference():
    reference, query = cells(), cells(seed=1, prefix="q")
    sd.tl.predict_response(query, model="pca", reference=reference, ood=True, **QUICK)
    assert (query.obs["response_pred"].astype(str) == query.obs["response"]).mean() > 0.9
    assert "response_ood" in query.obs


def test_abstention():
    adata, query = cells(), cells(seed=1)
    predictor = sd.tl.train(adata, "pca", conformal=0.6, **QUICK)
    sd.tl.predict_response(query, predictor, abstain=0.9)
    score = query.obs["response_score"]
    unsure = np.maximum(score, 1 - score) < 0.9
    assert (query.obs["response_pred"].isna() == unsure).all() and query.uns["response"]["provenance"][
        "cells_abstained"
    ]
    sd.tl.predict_response(query, predictor, abstain="set", conformal=0.95)
    single = query.obs["response_set"].isin(["resistant", "sensitive"])
    assert (query.obs["response_pred"].notna() == single).all()
    with pytest.raises(InputError, match="abstain"):
        sd.tl.predict_response(query, predictor, abstain=0.2)


def test_use_rep_one_several_and_across_modalities():
    import mudata

    adata = cells()
    adata.obsm["X_two"] = sparse.csr_matrix(adata.obsm["X_toy"][:, :3])
    one = sd.tl.train(adata, use_rep="X_toy", **QUICK)
    two = sd.tl.train(adata, use_rep=["X_toy", "X_two"], **QUICK)
    assert one.training["n_features"] == 20 and two.training["n_features"] == 23

    protein = ad.AnnData(np.zeros((230, 1)), obs=pd.DataFrame(index=adata.obs_names[::-1][:230]))
    protein.obsm["X_pca"] = adata.obsm["X_toy"][::-1][:230, :4].copy()
    mdata = mudata.MuData({"rna": adata, "prot": protein})
    rep = {"rna": "X_toy", "prot": "X_pca"}
    with pytest.raises(InputError, match="10 of 240 labelled cells"):
        sd.tl.train(mdata, use_rep=rep, **QUICK)
    adata.obs.loc[adata.obs_names[:10], "response"] = np.nan
    predictor = sd.tl.train(mdata, use_rep=rep, **QUICK)
    assert predictor.training["n_features"] == 24 and predictor.training["n_unlabelled"] == 10
    X = predictor.features(mdata)
    np.testing.assert_array_equal(X[10:, 20:], adata.obsm["X_toy"][10:, :4])
    with pytest.warns(ScDrugMapWarning, match="10 of 240"):
        sd.tl.predict_response(mdata, predictor)
    assert mdata.mod["rna"].obs["response_pred"].isna().sum() == 10
    assert mdata.obs["rna:response_pred"].isna().sum() == 10
    with pytest.raises(InputTypeError, match="MuData"):
        sd.tl.train(adata, use_rep=rep, **QUICK)


def test_calibration_and_sets_come_from_cells_of_other_samples(monkeypatch):
    from scdrugmap.models.pca import PCA

    adata = cells()
    seen = []
    original = PCA.fit
    monkeypatch.setattr(
        PCA, "fit", lambda self, X, genes, batch=None: seen.append(set(batch)) or original(self, X, genes)
    )
    sd.tl.train(adata, "pca", calibrate="sigmoid", n_folds=3, **QUICK)
    samples = set("a/" + adata.obs["sample"])
    assert seen[0] == samples
    held = [samples - s for s in seen[1:]]
    assert len(held) == 3 and set.union(*held) == samples and sum(map(len, held)) == len(samples)


def test_mondrian_sets_travel_with_their_column(tmp_path):
    adata, query = cells(), cells(seed=1)
    sd.tl.train(adata, "pca", conformal=0.8, conformal_by="tissue", **QUICK).save(tmp_path / "p")
    sd.tl.predict_response(query, tmp_path / "p")
    del query.obs["tissue"], query.obs["response_pred"]
    with pytest.raises(MissingKeyError, match="tissue"):
        sd.tl.predict_response(query, tmp_path / "p")
    assert "response_pred" not in query.obs


def test_same_seed_same_predictor():
    adata = cells()
    a, b, c = (sd.tl.train(adata, "pca", rng=r).predict(adata)["score"] for r in (1, 1, 2))
    pd.testing.assert_series_equal(a, b)
    assert not a.equals(c)


def test_few_shots_of_the_query():
    reference, query = cells(), cells(seed=5, study="b")
    options = {"model": "pca", "reference": reference, "n_shots": 3, **QUICK}
    sd.tl.predict_response(query, **options)
    shots = query.uns["response"]["shots"]
    assert query.obs.loc[shots, "response"].value_counts().to_dict() == {"resistant": 3, "sensitive": 3}
    again = cells(seed=5, study="b")
    sd.tl.predict_response(again, **options)
    assert again.uns["response"]["shots"].tolist() == shots.tolist()
    sd.tl.predict_response(query, **{**options, "shot_unit": "sample", "n_shots": 2})
    assert query.obs.loc[query.uns["response"]["shots"], "sample"].nunique() == 4
    alone = cells(seed=5, study="b")
    sd.tl.predict_response(alone, use_rep="X_toy", n_shots=5, **QUICK)
    assert alone.uns["response"]["provenance"]["trained_on_cells"] == 10
    with pytest.raises(InputError, match="n_shots"):
        sd.tl.predict_response(query, **{**options, "n_shots": 1000})


def test_few_shot_curve():
    adata = ad.concat([cells(), cells(seed=3, study="b", prefix="b")])
    table = sd.tl.few_shot_curve(
        adata, use_rep="X_toy", target="b", shots=[0, 2, 5], n_repeats=2, unit="sample", head="logistic", rng=0
    )
    assert len(table) == 3 * 2 * 4
    assert table.groupby("repeat")["n_test"].nunique().tolist() == [1, 1]
    assert (table["n_test"] == 2 * 20).all() and (table["shared_samples"] == 0).all()
    assert table.query("n_shots == 0")["n_train"].eq(240).all() and table.query("n_shots == 5")["n_train"].eq(440).all()
    again = sd.tl.few_shot_curve(
        adata, use_rep="X_toy", target="b", shots=[0, 2, 5], n_repeats=2, unit="sample", head="logistic", rng=0
    )
    pd.testing.assert_frame_equal(table, again)
    mlp = sd.tl.few_shot_curve(
        adata, "pca", target="b", shots=[0, 4], n_repeats=1, head_options={"hidden": (8,), "epochs": 1}, rng=0
    )
    assert mlp["shared_samples"].max() > 0
    with pytest.raises(InputError, match="shots"):
        sd.tl.few_shot_curve(adata, "pca", target="b", shots=[6], unit="sample", rng=0)
    with pytest.raises(InputError, match="target"):
        sd.tl.few_shot_curve(adata, "pca", target="c", rng=0)
    with pytest.raises(InputError, match="shots"):
        sd.tl.few_shot_curve(cells(study="b"), "pca", target="b", rng=0)


def test_bad_labels_are_reported():
    adata = cells()
    adata.obs["response"] = "sensitive"
    with pytest.raises(InputError, match="0 resistant, 240 sensitive"):
        sd.tl.train(adata, "pca", **QUICK)
    adata.obs["response"] = np.where(np.arange(240) % 2, "R", "NR")
    with pytest.raises(InputError, match=r"'R' \(120 cells\).*harmonize_response\(adata, 'response', mapping="):
        sd.tl.train(adata, "pca", **QUICK)
    with pytest.raises(MissingKeyError, match="label_key"):
        sd.tl.train(adata, "pca", label_key="nothing", **QUICK)


def test_too_few_samples_to_hold_out():
    adata = cells(n_samples=2)
    sd.tl.train(adata, "pca", **QUICK)
    with pytest.raises(InputError, match="1 group in the smaller class"):
        sd.tl.train(adata, "pca", conformal=True, **QUICK)
    del adata.obs["sample"]
    with pytest.warns(ScDrugMapWarning, match="one sample on both sides"):
        sd.tl.train(adata, "pca", conformal=True, **QUICK)


def test_nan_embeddings():
    adata = cells()
    adata.obsm["X_toy"][3] = np.nan
    with pytest.raises(InputError, match=r"NaN in 1 of 240 labelled cells.*drop"):
        sd.tl.train(adata, use_rep="X_toy", **QUICK)
    predictor = sd.tl.train(cells(), use_rep="X_toy", **QUICK)
    with pytest.warns(ScDrugMapWarning, match="1 of 240"):
        sd.tl.predict_response(adata, predictor)
    assert adata.obs["response_pred"].isna().sum() == 1 and np.isnan(adata.obs["response_score"].iloc[3])
    adata.obsm["X_toy"][5, 0] = np.inf
    del adata.obs["response_pred"]
    with pytest.raises(InputError, match="NaN or infinite"):
        sd.tl.predict_response(adata, predictor)
    assert "response_pred" not in adata.obs


def test_embedding_of_another_width_or_model():
    adata, query = cells(), cells(seed=1)
    record = {"params": {}, "provenance": {"model": "scGPT", "checkpoint_sha256": {"w": "1"}, "options": {"seed": 0}}}
    adata.uns["toy"] = record
    predictor = sd.tl.train(adata, use_rep="X_toy", **QUICK)
    sd.tl.predict_response(query, predictor)  # no record: nothing to compare
    query.uns["toy"] = {**record, "provenance": {**record["provenance"], "model": "UCE"}}
    with pytest.raises(InputError, match="UCE"):
        sd.tl.predict_response(query, predictor)
    query.uns["toy"] = {**record, "provenance": {**record["provenance"], "checkpoint_sha256": {"w": "2"}}}
    with pytest.raises(InputError, match="checkpoint_sha256"):
        sd.tl.predict_response(query, predictor)
    query.obsm["X_toy"] = query.obsm["X_toy"][:, :5]
    with pytest.raises(InputError, match="5 columns"):
        sd.tl.predict_response(query, predictor)
    del query.obsm["X_toy"]
    with pytest.raises(MissingKeyError, match="X_toy"):
        sd.tl.predict_response(query, predictor)


def test_baseline_axes_of_two_objects_are_not_the_same():
    adata, query = cells(), cells(seed=1)
    sd.tl.embed(adata, "pca", n_components=5)
    sd.tl.embed(query, "pca", n_components=5)
    predictor = sd.tl.train(adata, use_rep="X_scdrugmap_pca", **QUICK)
    with pytest.warns(ScDrugMapWarning, match="same axes"):
        predictor.predict(query)


def test_genes_of_the_query():
    predictor = sd.tl.train(cells(), "pca", **QUICK)
    query = cells(seed=1)
    query.var_names = [f"OTHER{i}" for i in range(60)]
    with pytest.raises(InputError, match="none of the 60 genes"):
        sd.tl.predict_response(query, predictor)
    assert "response_pred" not in query.obs
    with pytest.warns(ScDrugMapWarning, match="33% of the 60 genes"):
        predictor.predict(cells(seed=1)[:, :20].copy())


def test_counts_in_another_layer_of_the_query():
    predictor = sd.tl.train(cells(), "pca", **QUICK)
    query = cells(seed=1)
    expected = predictor.predict(query)["score"]
    query.layers["counts"] = query.X.copy()
    query.X = sparse.csr_matrix(np.log1p(query.X.toarray()))
    with pytest.raises(InputError, match="whole numbers"):
        sd.tl.predict_response(query, predictor)
    sd.tl.predict_response(query, predictor, layer="counts")
    np.testing.assert_array_equal(query.obs["response_score"], expected)


def test_arguments_that_do_not_fit_together():
    adata = cells()
    predictor = sd.tl.train(adata, "pca", **QUICK)
    for call, named in [
        (lambda: sd.tl.train(adata, **QUICK), "model or use_rep"),
        (lambda: sd.tl.train(adata, "pca", use_rep="X_toy", **QUICK), "model or use_rep"),
        (lambda: sd.tl.train(adata, use_rep="X_toy", strategy="lora", **QUICK), "use_rep"),
        (lambda: sd.tl.train(adata, use_rep="X_toy", n_components=3, **QUICK), "n_components"),
        (lambda: sd.tl.train(adata, "pca", conformal_by="tissue", **QUICK), "conformal_by"),
        (lambda: sd.tl.train(adata, "pca", conformal=90, **QUICK), "conformal"),
        (lambda: sd.tl.train(adata, "gpt4omini", **QUICK), "prompt"),
        (lambda: sd.tl.predict_response(adata), "predictor"),
        (lambda: sd.tl.predict_response(adata, predictor, model="pca"), "predictor with model"),
        (lambda: sd.tl.predict_response(adata, predictor, conformal=True), "conformal"),
        (lambda: sd.tl.predict_response(adata, predictor, ood=True), "ood"),
        (lambda: sd.tl.predict_response(adata, predictor, key_added="a/b"), "key_added"),
        (lambda: sd.tl.predict_response(adata, 3), "predictor"),
    ]:
        with pytest.raises(InputError, match=named):
            call()
    with pytest.raises(UnknownNameError, match="frozen"):
        sd.tl.train(adata, "pca", strategy="frosen", **QUICK)
    with pytest.raises(UnknownNameError, match="calibrate"):
        sd.tl.train(adata, "pca", calibrate="beta", **QUICK)
    assert not [c for c in adata.obs if c.startswith("response_")]


def test_any_estimator_trains_but_only_arrays_are_saved(tmp_path):
    predictor = sd.tl.train(cells(), "pca", head=RandomForestClassifier(5), rng=0)
    assert predictor.predict(cells(seed=1))["score"].between(0, 1).all()
    with pytest.raises(InputTypeError, match="pickle"):
        predictor.save(tmp_path / "p")
    assert not list(tmp_path.iterdir())


def test_saving_never_destroys(tmp_path, monkeypatch):
    predictor = sd.tl.train(cells(), "pca", **QUICK)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="not a predictor"):
        predictor.save(tmp_path / "mine", overwrite=True)
    predictor.save(tmp_path / "p")
    with pytest.raises(InputError, match="overwrite"):
        predictor.save(tmp_path / "p")
    predictor.save(tmp_path / "p", overwrite=True)

    def fail(*args):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("scdrugmap.predictor.card.markdown", fail)
        with pytest.raises(OSError, match="disk full"):
            predictor.save(tmp_path / "p", overwrite=True)
    assert sd.load_predictor(tmp_path / "p").predict(cells())["score"].notna().all()
    assert {p.name for p in tmp_path.iterdir()} == {"mine", "p"}


def test_changed_files_are_noticed(tmp_path):
    sd.tl.train(cells(), "pca", **QUICK).save(tmp_path / "p")
    file = tmp_path / "p" / "head.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"head\.safetensors is changed"):
        sd.load_predictor(tmp_path / "p")
    file.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        sd.load_predictor(tmp_path / "p")
    with pytest.raises(CheckpointError, match=r"predictor\.json"):
        sd.load_predictor(tmp_path)
    manifest = tmp_path / "p" / "predictor.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(CheckpointError, match="format 99"):
        sd.load_predictor(tmp_path / "p")


def test_no_warnings_on_the_plain_path():
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScDrugMapWarning)
        query = cells(seed=1)
        sd.tl.predict_response(query, sd.tl.train(cells(), "pca", conformal=True, calibrate="isotonic", **QUICK))
