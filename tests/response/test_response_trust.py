from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from scdrugmap._cohort import both_classes, encode
from scdrugmap._errors import InputError, ScDrugMapWarning, UnknownNameError
from scdrugmap.heads.crossfit import grouped_folds, held_out_margins, margins
from scdrugmap.heads.mlp import MLPHead
from scdrugmap.trust.calibration import Calibrator
from scdrugmap.trust.conformal import ConformalSets
from scdrugmap.trust.domain import OutOfDomain
from scdrugmap.trust.samples import sample_calls


def scores(n, seed=0, factor=1.0):
    rng = np.random.default_rng(seed)
    margin = rng.normal(scale=2, size=n)
    y = (rng.random(n) < 1 / (1 + np.exp(-margin))).astype(int)
    return margin * factor, y


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
def test_calibration_repairs_overconfidence(method):
    margin, y = scores(4000, factor=5.0)
    new, truth = scores(20_000, seed=1, factor=5.0)
    p = Calibrator.fit(margin, y, method)(new)
    raw = 1 / (1 + np.exp(-new))
    assert np.mean((p - truth) ** 2) < np.mean((raw - truth) ** 2) - 0.01
    bins = np.digitize(p, np.linspace(0, 1, 11)[1:-1])
    gaps = [abs(p[bins == b].mean() - truth[bins == b].mean()) for b in np.unique(bins) if (bins == b).sum() > 200]
    assert max(gaps) < 0.06


def test_calibration_is_that_of_scikit_learn():
    margin, y = scores(500)
    column = margin[:, None]
    model = LogisticRegression().fit(column, y)
    from sklearn.frozen import FrozenEstimator

    theirs = CalibratedClassifierCV(FrozenEstimator(model), method="sigmoid").fit(column, y)
    ours = Calibrator.fit(model.decision_function(column), y, "sigmoid")
    grid = np.linspace(-3, 3, 7)
    np.testing.assert_allclose(
        ours(model.decision_function(grid[:, None])), theirs.predict_proba(grid[:, None])[:, 1], rtol=1e-6
    )
    isotonic = IsotonicRegression(out_of_bounds="clip").fit(margin, y)
    np.testing.assert_allclose(Calibrator.fit(margin, y, "isotonic")(grid), isotonic.predict(grid), atol=1e-9)


def test_calibrator_round_trip_and_unknown_method():
    margin, y = scores(100)
    for method in ("sigmoid", "isotonic"):
        made = Calibrator.fit(margin, y, method)
        again = Calibrator.from_state(method, made.state())
        np.testing.assert_array_equal(made(margin), again(margin))
    with pytest.raises(UnknownNameError, match="isotonic"):
        Calibrator.fit(margin, y, "isotonik")


@pytest.mark.parametrize("coverage", [0.8, 0.95])
def test_conformal_coverage_holds_in_each_class(coverage):
    margin, y = scores(12_000)
    y = np.where(np.random.default_rng(5).random(12_000) < 0.2, y, 0)  # few sensitive cells
    sets = ConformalSets.fit(margin[:6000], y[:6000], coverage=coverage).predict(margin[6000:])
    for c, name in enumerate(("resistant", "sensitive")):
        mine = y[6000:] == c
        covered = np.mean([name in s.split("|") for s in sets[mine]])
        assert covered == pytest.approx(coverage, abs=3 * np.sqrt(coverage * (1 - coverage) * 2 / mine.sum()))


def test_conformal_p_values_by_hand():
    margin, y = np.array([-2.0, -1.0, 0.0, 1.0, 2.0]), np.array([0, 0, 0, 1, 1])
    p = ConformalSets.fit(margin, y).p_values(np.array([-1.5, 3.0]))
    # resistant cells -2, -1, 0: two are at least as strange as -1.5, none as strange as 3
    np.testing.assert_allclose(p[:, 0], [3 / 4, 1 / 4])
    # sensitive cells 1, 2: none is as strange as -1.5; both are as strange as 3
    np.testing.assert_allclose(p[:, 1], [1 / 3, 1.0])


def test_mondrian_categories_have_their_own_coverage():
    easy, y_easy = scores(2000, factor=1.0)
    rng = np.random.default_rng(3)
    hard, y_hard = rng.normal(size=2000), rng.integers(0, 2, 2000)
    margin, y = np.concatenate([easy, hard]), np.concatenate([y_easy, y_hard])
    tissue = np.repeat(["blood", "lung"], 2000)
    train = np.arange(4000) % 2 == 0
    sets = ConformalSets.fit(margin[train], y[train], coverage=0.9, category=tissue[train])
    again = ConformalSets.from_state({"categories": sets.categories, "coverage": sets.coverage}, sets.state())
    text = sets.predict(margin[~train], tissue[~train])
    np.testing.assert_array_equal(text, again.predict(margin[~train], tissue[~train]))
    names = np.array(["resistant", "sensitive"])[y[~train]]
    hit = np.array([n in t.split("|") for n, t in zip(names, text, strict=True)])
    for t in ("blood", "lung"):
        assert hit[tissue[~train] == t].mean() == pytest.approx(0.9, abs=0.03)
    with pytest.raises(InputError, match="conformal_by"):
        sets.predict(margin)
    with pytest.warns(ScDrugMapWarning, match="kidney"):
        sets.predict(margin[:2], np.array(["kidney", "lung"]))


def test_conformal_refuses_nonsense():
    with pytest.raises(InputError, match="coverage"):
        ConformalSets.fit(np.zeros(4), np.array([0, 1, 0, 1]), coverage=90)
    with pytest.raises(InputError, match="one class"):
        ConformalSets.fit(np.zeros(4), np.zeros(4))


def test_out_of_domain_flag():
    rng = np.random.default_rng(0)
    centres = rng.normal(scale=8, size=(3, 40))
    groups = np.repeat(np.arange(12), 100)
    X = centres[groups % 3] + rng.normal(size=(1200, 40))
    flag = OutOfDomain.fit(X[groups < 9], groups=groups[groups < 9], rng=0)
    assert flag.flag(X[groups >= 9]).mean() < 0.05
    assert flag.flag(np.full((5, 40), 30.0)).all()
    between = centres.mean(0) + rng.normal(size=(50, 40))
    assert flag.flag(between).mean() > 0.9  # the mean of all cells is where no cell is
    again = OutOfDomain.from_state({"threshold": flag.threshold, "n_neighbors": flag.n_neighbors}, flag.state())
    np.testing.assert_array_equal(flag.distance(X), again.distance(X))


@pytest.mark.parametrize("grouped", [True, False])
def test_out_of_domain_threshold_by_brute_force(grouped):
    """With groups, a training cell's neighbours are those of other groups: its own lie far closer."""
    from scipy.spatial.distance import cdist

    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(8), 15)
    X = rng.normal(scale=5, size=(8, 4))[groups] + rng.normal(size=(120, 4))
    standard = (X - X.mean(0)) / X.std(0)
    distances = cdist(standard, standard)
    own = groups if grouped else np.arange(120)
    distances[own[:, None] == own] = np.inf
    nearest = np.sort(distances, axis=1)[:, :10].mean(1)
    flag = OutOfDomain.fit(X, groups=groups if grouped else None, rng=0)
    assert flag.threshold == pytest.approx(np.quantile(nearest, 0.99), rel=1e-6)


def test_cells_off_the_training_plane_are_seen():
    rng = np.random.default_rng(1)
    plane = np.linalg.qr(rng.normal(size=(60, 5)))[0]
    X = rng.normal(size=(500, 5)) @ plane.T + rng.normal(scale=1e-2, size=(500, 60))
    flag = OutOfDomain.fit(X, n_components=5, rng=0)
    off = np.linalg.svd(plane.T)[2][5:].sum(0)
    assert flag.flag(X[:20] + off).all()
    assert not flag.flag(X[:20]).any()


def test_many_cells_are_thinned():
    X = np.random.default_rng(0).normal(size=(700, 3))
    assert len(OutOfDomain.fit(X, max_anchors=200, rng=0).anchors) == 200


def test_sample_calls_against_drawn_bootstrap():
    rng = np.random.default_rng(0)
    score = np.concatenate([rng.random(200) * 0.7, rng.random(40), [np.nan]])
    sample = np.array(["b"] * 200 + ["a"] * 41)
    table = sample_calls(score, sample)
    assert table.index.tolist() == ["a", "b"]
    assert table.loc["a", "n_cells"] == 40 and table.loc["a", "n_missing"] == 1
    resistant = score[:200] <= 0.5
    drawn = [resistant[rng.integers(0, 200, 200)].mean() for _ in range(4000)]
    assert table.loc["b", "fraction_resistant"] == resistant.mean()
    assert table.loc["b", ["lower", "upper"]].tolist() == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)
    assert table.loc["b", "call"] == "resistant"
    assert sample_calls(np.array([0.9] * 30 + [0.1]), ["x"] * 31)["call"].item() == "sensitive"
    assert sample_calls([0.9, 0.1], ["x", "x"])["call"].item() == "undecided"
    with pytest.raises(InputError):
        sample_calls([0.5], ["a", "b"])


def test_a_tie_is_called_resistant_everywhere():
    """A score of exactly one half is no evidence; the head, the predictor and the samples agree about it."""
    from scdrugmap.predictor.predictor import ResponsePredictor
    from scdrugmap.predictor.representation import ObsmRepresentation

    state = {"layers.0.weight": np.array([[1.0], [0.0]], np.float32), "layers.0.bias": np.zeros(1, np.float32)}
    head = MLPHead.from_state(state, ["resistant", "sensitive"])
    adata = ad.AnnData(np.zeros((3, 1), np.float32))
    adata.obsm["X_mine"] = np.array([[-1.0, 1], [0, 1], [1, 1]], np.float32)
    frame = ResponsePredictor(head, ObsmRepresentation.open(adata, "X_mine", "rna")).predict(adata)
    assert frame["score"].iloc[1] == 0.5
    assert frame["pred"].astype(str).tolist() == ["resistant", "resistant", "sensitive"]
    assert head.predict(adata.obsm["X_mine"]).tolist() == ["resistant", "resistant", "sensitive"]
    table = sample_calls(frame["score"], ["a", "b", "c"])
    assert table["fraction_resistant"].tolist() == [1.0, 1.0, 0.0]
    assert sample_calls([0.3] * 9, ["a"] * 9, threshold=0.3)["call"].item() == "resistant"


def test_labels_are_read_as_people_write_them():
    assert encode(["Sensitive", "RESISTANT", None, "", np.nan, "unknown"]).tolist() == [1, 0, -1, -1, -1, -1]
    for numbers, mapping in (
        (np.array([True, False]), "{True: '...', False: '...'}"),
        (np.array([1.0, 0.0, np.nan]), "{1.0: '...', 0.0: '...'}"),
        (np.array([1, 0]), "{1: '...', 0: '...'}"),
    ):
        with pytest.raises(InputError) as caught:
            encode(pd.Series(numbers, name="status"))
        assert f"sd.pp.harmonize_response(adata, 'status', mapping={mapping})" in str(caught.value)
    with pytest.raises(InputError, match=r"'responder' \(2 cells\).*mapping=") as caught:
        encode(["responder", "responder", "sensitive"])
    assert "label_key" in str(caught.value)
    with pytest.raises(InputError, match="3 resistant, 0 sensitive and 1 unlabelled"):
        both_classes(np.array([0, 0, 0, -1]))


def test_folds_keep_groups_whole_and_hold_every_cell_out_once():
    y = np.tile([0, 0, 0, 1, 1], 20)
    groups = np.repeat(np.arange(20), 5)
    folds = grouped_folds(y, groups, 5, 0)
    assert sorted(np.concatenate([t for _, t in folds]).tolist()) == list(range(100))
    for train, test in folds:
        assert not set(groups[train]) & set(groups[test])
        assert set(y[train]) == {0, 1}
    few = np.where(y == 1, "s1", "r")
    with pytest.raises(InputError, match="1 group"):
        grouped_folds(y, few, 5, 0)
    # two groups per class is two folds
    assert len(grouped_folds(np.repeat([0, 0, 1, 1], 10), np.repeat(list("abcd"), 10), 5, 0)) == 2


@pytest.mark.parametrize("head", [MLPHead((8,), lr=1e-2, random_state=0), LogisticRegression()])
def test_held_out_margins_come_from_heads_that_saw_nothing(head):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 6)).astype(np.float32)
    y = np.where(X[:, 0] > 0, "sensitive", "resistant")
    groups = np.repeat(np.arange(12), 10)
    codes = (y == "sensitive").astype(int)
    folds = grouped_folds(codes, groups, 4, 0)
    out = held_out_margins(head, X, y, folds, groups)
    from sklearn.base import clone

    train, test = folds[0]
    alone = clone(head).fit(X[train], y[train])
    np.testing.assert_allclose(out[test], margins(alone, X[test]), atol=1e-3)
    p = alone.predict_proba(X)[:, 1]
    np.testing.assert_allclose(margins(alone, X), np.log(p / (1 - p)), rtol=1e-3, atol=1e-3)
