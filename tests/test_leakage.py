"""Each leak is built on purpose: without the guard the score rises, with it the score falls to chance.

No cohort here holds any response signal: whatever is above one half is a leak.
"""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline

import scdrugmap as sd
from scdrugmap._errors import InputError
from scdrugmap.evaluation.grid.inputs import FITTED_ON_ALL, GROUP_CONTEXT
from scdrugmap.models import registry
from scdrugmap.models.card import ModelCard

SEEDS = range(3)


def cohort(seed, n_samples=40, cells=10, n_genes=30, sample_effect=0.0, study_effect=0.0, confounded=False):
    """Labels per sample at random; effects of sample and study that know nothing of the label."""
    rng = np.random.default_rng(seed)
    study = np.repeat(np.arange(4), n_samples // 4)
    label = np.arange(n_samples) % 2
    if confounded:
        label = np.where(np.arange(n_samples) % 5 == 0, 1 - study % 2, study % 2)
    else:
        label = np.concatenate([rng.permutation(label[study == s]) for s in range(4)])
    base = sample_effect * rng.normal(size=(n_samples, n_genes))
    base += study_effect * rng.normal(size=(4, n_genes))[study]
    sample = np.repeat(np.arange(n_samples), cells)
    counts = rng.poisson(np.exp(1.5 + base[sample]))
    obs = pd.DataFrame(
        {
            "sample": [f"s{i}" for i in sample],
            "study": [f"S{i}" for i in study[sample]],
            "response": np.where(label[sample] == 1, "sensitive", "resistant"),
        },
        index=[f"c{i}" for i in range(len(sample))],
    )
    adata = ad.AnnData(counts.astype(np.float32), obs=obs)
    adata.obsm["X_log"] = np.log1p(adata.X)
    return adata


def auroc(adata, models="X_log", head="logistic", **kwargs):
    result = sd.tl.benchmark(adata, models=models, head=head, baselines=[], n_folds=5, rng=0, metrics="auroc", **kwargs)
    return result.summary(metrics="auroc", n_resamples=0)["value"].item()


def mean(values):
    return float(np.mean(list(values)))


def test_cells_of_one_sample_on_both_sides():
    data = [cohort(s, sample_effect=0.6) for s in SEEDS]
    nearest = KNeighborsClassifier(5)
    assert mean(auroc(a, head=nearest, split="cell") for a in data) > 0.9
    assert abs(mean(auroc(a, head=nearest) for a in data) - 0.5) < 0.1


def test_copied_cells_on_both_sides():
    def shared_controls(seed):
        adata = cohort(seed, n_samples=20)
        copies = adata.copy()
        copies.obs["sample"] += "_again"
        copies.obs_names += "_again"
        return ad.concat([adata, copies])

    data = [shared_controls(s) for s in SEEDS]
    nearest = KNeighborsClassifier(1)
    assert mean(auroc(a, head=nearest, duplicates="ignore") for a in data) > 0.8
    assert abs(mean(auroc(a, head=nearest) for a in data) - 0.5) < 0.1
    assert abs(mean(auroc(a, head=nearest, split="cell") for a in data) - 0.5) < 0.1
    assert "copied cells" in sd.tl.leakage_report(data[0]).leaks


def test_copied_cells_in_two_studies():
    def deposited_twice(seed):
        adata = cohort(seed, n_samples=40)
        twin = {"S0": "S2", "S1": "S3"}
        first = adata[adata.obs["study"].isin(list(twin))].copy()
        second = first.copy()
        second.obs["study"] = second.obs["study"].map(twin)
        second.obs_names += "_again"
        return ad.concat([first, second])

    data = [deposited_twice(s) for s in SEEDS]
    nearest = KNeighborsClassifier(1)
    assert mean(auroc(a, head=nearest, setting="cross", duplicates="ignore") for a in data) > 0.8
    guarded = sd.tl.benchmark(data[0], models="X_log", setting="cross", head="logistic", baselines=[], metrics="auroc")
    assert [f.name for f in guarded.partitions[0].folds] == ["S0 + S2", "S1 + S3"]
    assert abs(mean(auroc(a, head=nearest, setting="cross") for a in data) - 0.5) < 0.1


def test_study_stands_in_for_response():
    data = [cohort(s, study_effect=0.5, confounded=True) for s in range(6)]
    assert mean(auroc(a) for a in data) > 0.65
    # Ranked inside a left-out study, cells differ by nothing that the training studies could have taught.
    assert abs(mean(auroc(a, setting="cross") for a in data) - 0.5) < 0.1


def test_genes_chosen_on_all_cells():
    data = [cohort(s, n_samples=20, n_genes=1500, sample_effect=0.5) for s in SEEDS]

    def chosen_before(adata):
        y = (adata.obs["response"] == "sensitive").to_numpy()
        return SelectKBest(k=20).fit_transform(adata.obsm["X_log"], y)

    inside = make_pipeline(SelectKBest(k=20), LogisticRegression(max_iter=1000))
    assert mean(auroc(a, models=chosen_before(a)) for a in data) > 0.85
    assert abs(mean(auroc(a, head=inside) for a in data) - 0.5) < 0.2


def test_early_stopping_watches_training_cells_only(monkeypatch):
    from scdrugmap.heads import tasks

    adata = cohort(0, sample_effect=0.3)
    seen = []
    split = tasks.inner_split

    def spy(y, groups, at, fraction, rng):
        fit, held = split(y, groups, at, fraction, rng)
        seen.append((at, fit, held, groups))
        return fit, held

    monkeypatch.setattr(tasks, "inner_split", spy)
    options = {"early_stopping": True, "epochs": 2, "hidden": (8,)}
    result = sd.tl.benchmark(
        adata, models="X_log", head="mlp", head_options=options, baselines=[], n_folds=4, metrics="auroc"
    )
    assert len(seen) == 4
    for fold, (at, fit, held, groups) in zip(result.partitions[0].folds, seen, strict=True):
        np.testing.assert_array_equal(np.sort(at), fold.train)
        assert not set(groups[fit]) & set(groups[held])


@pytest.fixture
def group_model(monkeypatch):
    class Neighbours:
        card = ModelCard(
            name="Neighbours", kind="network", architecture="test", year=2024, citation="none", context="group"
        )

    monkeypatch.setitem(registry._REGISTERED, "neighbours", Neighbours)
    return "Neighbours"


def test_embedding_in_which_cells_see_each_other(group_model):
    def with_context(seed):
        adata = cohort(seed)
        codes = pd.factorize(adata.obs["sample"])[0]
        # Every cell carries a fingerprint of its group, as attention over the group leaves one.
        adata.obsm["X_ctx"] = np.random.default_rng(seed).normal(size=(40, 20))[codes]
        adata.uns["ctx"] = {
            "params": {"groups": "sample"},
            "provenance": {"model": group_model, "groups": "40 groups"},
        }
        return adata

    data = [with_context(s) for s in SEEDS]
    nearest = KNeighborsClassifier(1)
    leaked = mean(auroc(a, "X_ctx", nearest, split="cell", group_context="mark") for a in data)
    assert leaked > 0.95
    with pytest.raises(InputError, match="group_context"):
        auroc(data[0], "X_ctx", nearest, split="cell")
    assert abs(mean(auroc(a, "X_ctx", nearest) for a in data) - 0.5) < 0.15
    marked = sd.tl.benchmark(
        data[0], models="X_ctx", head="logistic", split="cell", group_context="mark", baselines=[], metrics="f1"
    )
    assert marked.table["note"].str.contains(GROUP_CONTEXT).all()
    data[0].uns["ctx"]["provenance"]["groups"] = "one group"
    with pytest.raises(InputError, match="other cells of its group"):
        auroc(data[0], "X_ctx", nearest)
    assert "representation X_ctx" in sd.tl.leakage_report(data[0]).leaks


def test_a_baseline_fitted_on_all_cells_is_marked():
    adata = cohort(0)
    sd.tl.embed(adata, "pca", n_components=5)
    given = sd.tl.benchmark(adata, models=["X_scdrugmap_pca"], head="logistic", baselines=[], metrics="f1")
    fitted = sd.tl.benchmark(adata, models=["pca"], head="logistic", baselines=[], metrics="f1")
    assert given.table["note"].str.contains(FITTED_ON_ALL).all()
    assert not fitted.table["note"].str.contains(FITTED_ON_ALL).any()
    assert "representation X_scdrugmap_pca" in sd.tl.leakage_report(adata).leaks


def test_a_torn_sample_is_refused():
    adata = cohort(0)
    adata.obs["lane"] = np.tile(["a", "b"], adata.n_obs // 2)
    with pytest.raises(InputError, match="split='cell'"):
        auroc(adata, split="lane")


def test_end_to_end_models_never_see_the_labels_of_test_cells(monkeypatch):
    adata = cohort(0)
    seen = []

    class Trained:
        def __init__(self, names):
            self.names = names

        def features(self, query, **kwargs):
            seen.append((set(query.obs_names), "response" in query.obs, self.names))
            return np.zeros((query.n_obs, 1), np.float32)

        def predict_features(self, X, **kwargs):
            return pd.DataFrame({"score": np.full(len(X), 0.7, np.float32)})

    def train(reference, **kwargs):
        assert kwargs["groups"] == "sample"
        return Trained(set(reference.obs_names))

    monkeypatch.setattr(sd.tl, "train", train, raising=False)

    class Tuned:
        card = ModelCard(name="Tuned", kind="network", architecture="test", year=2024, citation="none")

    monkeypatch.setitem(registry._REGISTERED, "tuned", Tuned)
    result = sd.tl.benchmark(adata, models="Tuned", strategy="lora", baselines=[], n_folds=4, metrics="f1")
    assert set(result.table["strategy"]) == {"lora"}
    assert len(seen) == 4
    for query, labelled, trained_on in seen:
        assert not labelled
        assert not query & trained_on
        assert len(query | trained_on) == adata.n_obs


def test_report_finds_every_planted_leak():
    adata = cohort(0)
    adata.obs["batch"] = adata.obs["response"].map({"sensitive": "b1", "resistant": "b2"})
    adata.obs.loc[adata.obs["study"] == "S0", "response"] = "resistant"
    adata.X[5] = adata.X[200]
    report = sd.tl.leakage_report(adata)
    assert set(report.leaks) == {"labels of samples", "studies", "copied cells"}
    assert report.studies.set_index("study").loc["S0", "n_sensitive"] == 0
    text = str(report)
    assert "1 of 4 studies hold one class" in text
    assert "1 extra copies" in text
    clean = cohort(1)
    clean.obs["response"] = np.tile(["sensitive", "resistant"], clean.n_obs // 2)
    assert sd.tl.leakage_report(clean).leaks == []
    clean.obs["batch"] = clean.obs["response"].map({"sensitive": "b1", "resistant": "b2"})
    assert "obs['batch']" in sd.tl.leakage_report(clean).findings.query("level == 'note'")["check"].tolist()
