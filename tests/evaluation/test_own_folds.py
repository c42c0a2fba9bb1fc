"""Folds of one's own, numbers that make no fold, and representations of several modalities."""

from __future__ import annotations

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import KFold, RepeatedKFold, StratifiedGroupKFold

import scdrugmap as sd
from scdrugmap._errors import InputError, MissingKeyError, UnknownNameError

QUICK = {"head": "logistic", "baselines": ["majority"], "progress": False, "rng": 0}


@pytest.fixture
def adata() -> ad.AnnData:
    rng = np.random.default_rng(0)
    sample = np.repeat(np.arange(8), 6)
    obs = pd.DataFrame(
        {"sample": [f"s{i}" for i in sample], "response": np.where(sample % 2, "sensitive", "resistant")}
    )
    obs["study"] = np.where(sample < 4, "a", "b")
    obs["fold"] = pd.Categorical([f"f{i // 2}" for i in sample])
    obs.index = [f"c{i}" for i in range(48)]
    out = ad.AnnData(rng.poisson(3, (48, 12)).astype(np.float32), obs=obs)
    out.obsm["X_mine"] = rng.normal(size=(48, 4)).astype(np.float32)
    return out


def test_a_column_of_fold_names(adata):
    result = sd.tl.benchmark(adata, models="X_mine", cv="fold", **QUICK)
    (partition,) = result.partitions
    assert [f.name for f in partition.folds] == ["f0", "f1", "f2", "f3"]
    for fold in partition.folds:
        assert set(adata.obs["fold"].iloc[fold.test]) == {fold.name}
        assert len(fold.train) + len(fold.test) == 48
    assert "folds of 'fold'" in partition.notes and result.info["cv"] == "fold"


def test_a_splitter_gets_the_samples(adata):
    cv = StratifiedGroupKFold(4)
    result = sd.tl.benchmark(adata, models="X_mine", cv=cv, **QUICK)
    y = (adata.obs["response"] == "sensitive").to_numpy()
    expected = [test.tolist() for _, test in cv.split(adata.X, y, adata.obs["sample"])]
    assert [f.test.tolist() for f in result.partitions[0].folds] == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cv": KFold(5, shuffle=True, random_state=0)}, "on both sides"),
        ({"cv": RepeatedKFold(n_splits=2), "split": "cell"}, "no cell twice"),
        ({"cv": "fold", "setting": "cross"}, "pooled"),
        ({"cv": "fold", "test_size": 0.5, "split": "cell"}, "test_size"),
        ({"cv": 5}, "splitter"),
        ({"test_size": 0, "split": "cell"}, "between 0 and 1"),
        ({"test_size": 1.5, "split": "cell"}, "between 0 and 1"),
    ],
)
def test_folds_that_cannot_be_used(adata, options, words):
    with pytest.raises(InputError, match=words):
        sd.tl.benchmark(adata, models="X_mine", **options, **QUICK)


def test_folds_that_part_copies(adata):
    adata.X[6] = adata.X[0]
    adata.obs["fold"] = adata.obs["fold"].cat.add_categories("g")
    adata.obs.loc[adata.obs["sample"] == "s1", "fold"] = "g"
    with pytest.raises(InputError, match="copies of one cell"):
        sd.tl.benchmark(adata, models="X_mine", cv="fold", **QUICK)
    assert sd.tl.benchmark(adata, models="X_mine", cv="fold", duplicates="ignore", **QUICK).units.shape[0] > 0


def test_column_of_folds_that_is_not_there(adata):
    with pytest.raises(MissingKeyError, match="folds"):
        sd.tl.benchmark(adata, models="X_mine", cv="folds", **QUICK)


def test_a_folder_without_any_finished_unit_still_reports(adata, tmp_path):
    adata.obs["response"] = "resistant"
    result = sd.tl.benchmark(adata, models="X_mine", **QUICK)
    assert result.units.empty
    result.to_parquet(tmp_path / "result")
    again = sd.evaluation.BenchmarkResult.from_parquet(tmp_path / "result")
    again.report(tmp_path / "report.html")
    assert "one class only" in (tmp_path / "report.html").read_text()


def test_an_option_that_one_of_several_models_lacks(adata, monkeypatch):
    from scdrugmap.models.pca import PCA

    monkeypatch.setattr(PCA, "fit", lambda *_, **__: pytest.fail("computed before the options were read"))
    with pytest.raises(UnknownNameError, match="options of hvg"):
        sd.tl.embed(adata, ["pca", "hvg"], n_components=3)


def test_the_machine_reaches_every_contender(adata, monkeypatch):
    """The device is handed down, and is no part of what a finished unit is found by."""
    from scdrugmap.heads import mlp

    seen = []
    real = mlp.pick_device
    monkeypatch.setattr(mlp, "pick_device", lambda device=None: seen.append(device) or real(device))
    options = {**QUICK, "head": "mlp", "head_options": {"epochs": 1}, "n_folds": 2}
    here = sd.tl.benchmark(adata, models="X_mine", device="cpu", precision="float32", batch_size=4, **options)
    assert "cpu" in seen
    plain = sd.tl.benchmark(adata, models="X_mine", **options)
    assert here.units["key"].tolist() == plain.units["key"].tolist()
    with pytest.raises(InputError, match="batch_size"):
        sd.tl.benchmark(adata, models="X_mine", batch_size=0, **options)


@pytest.fixture
def mdata(adata) -> md.MuData:
    """Labels and samples lie in the object itself, not in a modality."""
    prot = ad.AnnData(adata.X[:, :4].copy(), obs=adata.obs[[]].copy())
    prot.obsm["X_prot"] = np.log1p(prot.X)
    obs, adata.obs = adata.obs, adata.obs[[]].copy()
    out = md.MuData({"rna": adata, "prot": prot})
    out.obs = out.obs.join(obs)
    return out


def test_labels_of_the_object_itself(mdata):
    before = list(mdata.mod["rna"].obs)
    assert sd.tl.train(mdata, use_rep="X_mine", head="logistic", rng=0).training["groups"] == "sample"
    result = sd.tl.benchmark(mdata, models="X_mine", n_folds=2, **QUICK)
    assert result.info["n_labelled"] == 48
    assert list(mdata.mod["rna"].obs) == before


def test_modalities_side_by_side(mdata):
    both = {"rna": "X_mine", "prot": "X_prot"}
    result = sd.tl.benchmark(mdata, models={"both": both, "rna": "X_mine"}, n_folds=2, **QUICK)
    joined = np.hstack([mdata.mod["rna"].obsm["X_mine"], mdata.mod["prot"].obsm["X_prot"]])
    plain = sd.tl.benchmark(mdata, models={"both": joined}, n_folds=2, **QUICK)
    scores = [
        r.predictions[r.predictions["unit"].isin(r.units["unit"][r.units["model"] == "both"])] for r in (result, plain)
    ]
    np.testing.assert_array_equal(scores[0]["score"], scores[1]["score"])


def test_few_shots_of_several_modalities(mdata):
    query = mdata[24:].copy()
    arguments = {"reference": mdata[:24].copy(), "n_shots": 2, "head": "logistic", "rng": 0}
    sd.tl.predict_response(query, use_rep={"rna": "X_mine", "prot": "X_prot"}, **arguments)
    assert len(query.mod["rna"].uns["response"]["shots"]) == 4
    assert query.mod["rna"].obs["response_score"].notna().all()
    sd.tl.predict_response(query, model="pca", n_components=3, **arguments)
