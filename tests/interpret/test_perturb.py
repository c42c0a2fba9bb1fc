"""In-silico perturbation equals predicting on edited counts, for every model, and asks no more than it must."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scdrugmap as sd
from scdrugmap._anndata import gene_ids
from scdrugmap._errors import InputError, MissingKeyError, UnknownNameError
from scdrugmap.interpret.perturb import Expression, Perturbations, evaluate, matched, percentile, survey
from scdrugmap.models import registry

#: One network of each kind of input; the others run the same code, and the slow ones take seconds per gene.
MODELS = ("hvg", "pca", "tGPT", "Geneformer", "scGPT", "scFoundation", "CellPLM")


def log_odds(predictor, cells):
    p = predictor.predict(cells)["score"].to_numpy(dtype=float)
    return np.log1p(-p) - np.log(p)


def edited(cells, genes, kind):
    out = cells.copy()
    X = out.X.toarray()
    for gene in genes:
        j = out.var_names.get_loc(gene)
        level = np.percentile(X[:, j][X[:, j] > 0], 95, method="inverted_cdf")
        X[:, j] = 0 if kind != "overexpress" else np.maximum(X[:, j], level)
    out.X = sparse.csr_matrix(X)
    return out


@pytest.fixture(scope="module")
def predictors(small):
    made = {}
    for name in MODELS:
        kind = registry.get(name)
        model = name if kind.card.kind == "fitted" else kind.random(gene_ids(small))
        made[name] = sd.tl.train(small, model, head="logistic", rng=0)
    return made


def common(cells, n=2):
    return cells.var_names[np.argsort(-(cells.X > 0).mean(0).A1, kind="stable")[5 : 5 + n]].tolist()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["knockout", "overexpress"])
def test_it_equals_predicting_on_edited_counts(small, predictors, name, kind):
    genes = common(small)
    out = sd.tl.perturb(
        small, predictors[name], genes=genes[:1], sets={"both": genes}, kind=kind, n_null=0, copy=True
    )  # fmt: skip
    table = out.uns["perturbation"].set_index(["gene", "sample"])["delta_logit"]
    before = log_odds(predictors[name], small)
    for label, members in ((genes[0], genes[:1]), ("both", genes)):
        change = log_odds(predictors[name], edited(small, members, kind)) - before
        expected = pd.Series(change).groupby(small.obs["sample"].astype(str).to_numpy()).mean()
        np.testing.assert_allclose(table[label][expected.index], expected, atol=1e-3)
        assert expected.abs().max() > 1e-4


def test_intervals_and_counts_are_those_of_all_cells(small, predictors):
    gene = common(small)[0]
    out = sd.tl.perturb(small, predictors["pca"], genes=gene, n_null=0, copy=True)
    change = log_odds(predictors["pca"], edited(small, [gene], "knockout")) - log_odds(predictors["pca"], small)
    own = pd.Series(change).groupby(small.obs["sample"].astype(str).to_numpy())
    table = out.uns["perturbation"].set_index("sample")
    assert (table["n_cells"] == own.size()).all()
    half = (table["high"] - table["low"]) / 2
    from scipy import stats

    np.testing.assert_allclose(half, own.std() / np.sqrt(own.size()) * stats.t.ppf(0.975, own.size() - 1), rtol=1e-3)


def test_unchanged_cells_are_not_asked_about(small):
    asked = []

    def score(X, groups=None):
        asked.append(X.shape[0])
        return np.asarray(X.sum(axis=1)).ravel()

    X = sparse.csr_matrix(small.X)
    rare = np.argsort((X > 0).sum(0).A1)[10:13]
    each = Perturbations.of([np.array([g]) for g in rare], X.shape[1], "knockout", np.zeros(X.shape[1]))
    found = evaluate(score, iter([(X, np.zeros(X.shape[0], dtype=int))]), each, 1)
    expressing = int((X[:, rare] != 0).sum())
    assert sum(asked) == X.shape[0] + expressing == X.shape[0] + found.n_forward
    np.testing.assert_allclose(found.mean[0], -X[:, rare].sum(0).A1 / X.shape[0], rtol=1e-5)


def test_blocks_do_not_change_the_sums(small):
    X, groups = sparse.csr_matrix(small.X), np.arange(small.n_obs) % 3
    each = Perturbations.of([np.array([1]), np.array([2, 3])], X.shape[1], "knockout", np.zeros(X.shape[1]))

    def score(X, groups=None):
        return np.sqrt(np.asarray(X.sum(axis=1)).ravel())

    whole = evaluate(score, iter([(X, groups)]), each, 3)
    parts = evaluate(score, iter([(X[i : i + 7], groups[i : i + 7]) for i in range(0, len(groups), 7)]), each, 3)
    np.testing.assert_allclose(whole.total, parts.total)
    np.testing.assert_array_equal(whole.n, parts.n)


def test_the_level_is_the_95th_percentile_of_the_cells_that_express(small):
    X = sparse.csr_matrix(small.X)
    found = survey(iter([X[:31], X[31:]]), X.shape[1])
    dense = X.toarray()
    for gene in range(0, X.shape[1], 7):
        own = dense[:, gene][dense[:, gene] > 0]
        expected = np.percentile(own, 95, method="inverted_cdf") if len(own) else 0
        assert found.level[gene] == expected
    np.testing.assert_allclose(found.detection, (dense > 0).mean(0))


def test_random_genes_are_like_the_target(rng):
    mean = np.linspace(0, 1, 500)
    expression = Expression(mean, mean, np.ones(500))
    drawn = matched(expression, np.array([100, 400]), 20, rng)
    assert drawn.shape == (2, 20)
    assert (np.abs(drawn - np.array([[100], [400]])) <= 61).all()
    assert not (drawn == np.array([[100], [400]])).any()
    assert all(len(set(row)) == 20 for row in drawn.tolist())


def test_percentile_counts_ties_half():
    assert percentile(np.array([0.0]), np.array([[0.0, 0.0, -1.0, 1.0]]))[0] == 50
    assert np.isnan(percentile(np.array([0.0]), np.empty((1, 0)))[0])


def test_driver_genes_stand_out_of_the_null(planted, linear):
    programmes = planted.uns["simulation"]["programmes"].query("programme == 'shared'")
    seen = planted.var_names[(planted.X > 0).mean(0).A1 > 0.5]
    programmes = programmes[programmes["gene"].isin(seen)]
    strong = programmes.assign(size=programmes["log_fold_change"].abs()).nlargest(6, "size")["gene"].tolist()
    out = sd.tl.perturb(planted, linear, genes=strong, n_null=20, rng=0, copy=True)
    far = (out.uns["perturbation"].groupby("gene")["null_percentile"].mean() - 50).abs()
    assert far.mean() > 35
    ranking = out.uns["perturbation_ranking"]
    assert ranking["delta_logit"].is_monotonic_increasing
    up = programmes.set_index("gene").loc[ranking["gene"].iloc[:2], "log_fold_change"]
    assert (up > 0).all(), "taking away what resistance raises re-sensitises"


def test_seeds_and_copies(small, predictors):
    before = small.copy()
    one, two = (
        sd.tl.perturb(small, predictors["hvg"], genes=common(small), n_null=7, rng=3, copy=True) for _ in range(2)
    )
    pd.testing.assert_frame_equal(one.uns["perturbation"], two.uns["perturbation"])
    assert list(small.uns) == list(before.uns)
    assert sd.tl.perturb(small.copy(), predictors["hvg"], genes=common(small), n_null=0) is None


def test_a_stale_embedding_is_not_used(small, predictors):
    """What lies in obsm belongs to the unedited cells."""
    cells = small.copy()
    sd.tl.embed(cells, predictors["tGPT"].representation.load())
    gene = common(small)[0]
    a = sd.tl.perturb(cells, predictors["tGPT"], genes=gene, n_null=0, copy=True).uns["perturbation"]
    b = sd.tl.perturb(small, predictors["tGPT"], genes=gene, n_null=0, copy=True).uns["perturbation"]
    pd.testing.assert_frame_equal(a, b)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"genes": ["NOT-A-GENE"]}, UnknownNameError, "NOT-A-GENE"),
        ({"sets": {"s": ["NOT-A-GENE"]}}, UnknownNameError, "NOT-A-GENE"),
        ({"genes": []}, InputError, "genes"),
        ({"sets": {"s": []}}, InputError, "sets"),
        ({"kind": "crispr"}, UnknownNameError, "crispr"),
        ({"by": "nothing"}, MissingKeyError, "nothing"),
        ({"n_null": -1}, InputError, "n_null"),
        ({"max_evaluations": 3}, InputError, "max_evaluations"),
    ],
)
def test_what_cannot_be_used_is_refused(small, predictors, options, kind, words):
    with pytest.raises(kind, match=words):
        sd.tl.perturb(small, predictors["pca"], **options)
    assert "perturbation" not in small.uns


def test_counts_cannot_be_edited_behind_an_embedding(small):
    cells = small.copy()
    cells.obsm["X_rep"] = np.random.default_rng(0).normal(size=(cells.n_obs, 3)).astype(np.float32)
    predictor = sd.tl.train(cells, use_rep="X_rep", head="logistic", rng=0)
    with pytest.raises(InputError, match="model="):
        sd.tl.perturb(cells, predictor, genes=common(small))
