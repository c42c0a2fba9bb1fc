"""Cells of another study are brought to those of the training, by names of studies and without labels."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scdrugmap as sd
from scdrugmap._errors import InputError, ScDrugMapWarning, UnknownNameError
from scdrugmap.heads.adapt import Adaptation
from scdrugmap.heads.make import make_head


def study(name, shift=0.0, scale=1.0, seed=0, n=120):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    X = rng.normal(size=(n, 5)) + 3 * y[:, None] * np.array([1, 0, 0, 0, 0])
    obs = pd.DataFrame(
        {
            "response": np.where(y == 1, "sensitive", "resistant"),
            "study": name,
            "sample": [f"s{i % 12}" for i in range(n)],
        },
        index=[f"{name}{i}" for i in range(n)],
    )
    return ad.AnnData(obs=obs, obsm={"X_a": (scale * X + shift).astype("float32")})


@pytest.mark.parametrize("adapt", ["study", "coral"])
def test_a_shifted_study_is_predicted(adapt, tmp_path):
    query = study("b", shift=10, scale=4, seed=1)
    truth = query.obs["response"].to_numpy()
    plain = sd.tl.train(study("a"), use_rep="X_a", head="logistic", rng=0).predict(query)["pred"]
    assert (plain == truth).mean() < 0.6
    del query.obs["response"]
    predictor = sd.tl.train(study("a"), use_rep="X_a", head="logistic", adapt=adapt, rng=0)
    got = predictor.predict(query)
    assert (got["pred"] == truth).mean() > 0.85
    predictor.save(tmp_path / "p")
    again = sd.load_predictor(tmp_path / "p").predict(query)
    np.testing.assert_array_equal(again["score"], got["score"])
    sd.tl.predict_response(query, use_rep="X_a", reference=study("a"), head="logistic", adapt=adapt, rng=0)
    np.testing.assert_array_equal(query.obs["response_score"], got["score"])


def test_a_study_of_the_training_keeps_its_scale():
    both = ad.concat([study("a"), study("b", shift=5, scale=2, seed=1)])
    predictor = sd.tl.train(both, use_rep="X_a", head="logistic", adapt="study", rng=0)
    few = both[:3].copy()
    np.testing.assert_allclose(predictor.predict(few)["score"], predictor.predict(both)["score"][:3], atol=1e-6)
    new = both[:3].copy()
    new.obs["study"] = "c"
    with pytest.raises(InputError, match="3 cells of study 'c'"):
        predictor.predict(new)


def test_coral_makes_the_covariance_that_of_the_training():
    rng = np.random.default_rng(0)
    A, B = (
        rng.normal(size=(400, 4)) @ rng.normal(size=(4, 4)),
        5 * rng.normal(size=(300, 4)) @ rng.normal(size=(4, 4)) + 7,
    )
    adaptation = Adaptation.fit(A, np.repeat("a", 400), "coral")
    got = adaptation(B, np.repeat("b", 300))
    np.testing.assert_allclose(got.mean(axis=0), A.mean(axis=0), atol=1e-4)
    # Both covariances are shrunken by a tenth, so that they agree about, not exactly.
    assert np.linalg.norm(np.cov(got.T) - np.cov(A.T)) < 0.35 * np.linalg.norm(np.cov(B.T) - np.cov(A.T))
    np.testing.assert_array_equal(adaptation(A, np.repeat("a", 400), training=True), A)


def test_pathways_are_scores_of_programmes():
    adata = sd.datasets.simulate(n_studies=2, n_cells=200, n_genes=600, rng=0)
    predictor = sd.tl.train(adata, "pca", adapt="pathways", head="logistic", rng=0)
    assert predictor.representation.model.card.key == "pathways"
    assert 5 < predictor.features(adata).shape[1] < 60
    np.testing.assert_allclose(
        predictor.features(adata)[adata.obs["study"] == adata.obs["study"].iloc[0]].mean(0), 0, atol=1e-4
    )
    with pytest.raises(UnknownNameError, match="coral"):
        sd.tl.train(adata, "pca", adapt="corral")


def test_shots_weigh_as_much_as_the_reference():
    """Ten labelled cells of a query whose signal is elsewhere are not drowned by 600 cells of the reference."""
    reference, query = study("a", n=600), study("b", seed=1, n=200)
    query.obsm["X_a"] = query.obsm["X_a"][:, [1, 0, 2, 3, 4]] * np.array([1, 1, 1, 1, 1], dtype="float32")
    reference.obsm["X_a"][:, 1] = -reference.obsm["X_a"][:, 0]
    truth = query.obs["response"].to_numpy()
    right = {}
    for weight in (None, 1.0):
        cells = query.copy()
        sd.tl.predict_response(
            cells,
            use_rep="X_a",
            reference=reference,
            n_shots=5,
            shot_weight=weight,
            head="logistic",
            groups=False,
            rng=0,
        )
        right[weight] = (cells.obs["response_pred"] == truth).mean()
    assert right[1.0] > right[None] + 0.1


def test_weights_must_be_numbers():
    adata = study("a")
    adata.obs["w"] = -1.0
    with pytest.raises(InputError, match="numbers of 0 or more"):
        sd.tl.train(adata, use_rep="X_a", weight_key="w")


def test_a_head_that_was_cut_off_says_so():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 20)).astype("float32")
    y = (X[:, 0] > 0).astype(int)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    with pytest.warns(ScDrugMapWarning, match="had not converged after 60 epochs"):
        make_head("published", random_state=0, epochs=60).fit(unit, y)
    head = make_head("mlp", random_state=0).fit(unit, y)
    assert head.n_iter_ < 200
    assert head.score(unit, y) > 0.95
    assert make_head("published").get_params() == type(head)().get_params()
