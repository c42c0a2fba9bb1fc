"""Attributions: exact where all is linear, complete along paths, and about genes whatever their order."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse, stats
from sklearn.ensemble import RandomForestClassifier

import scdrugmap as sd
from scdrugmap._anndata import gene_ids
from scdrugmap._errors import InputError, UnknownNameError
from scdrugmap.interpret.attribution import chosen_cells
from scdrugmap.interpret.explained import summarise
from scdrugmap.interpret.heads import linear_weights, torch_logit
from scdrugmap.interpret.paths import complete, nodes
from scdrugmap.models import registry

NETWORKS = ("tGPT", "Geneformer", "scGPT", "scBERT", "scFoundation")


def log_odds(predictor, cells):
    p = predictor.predict(cells)["score"].to_numpy(dtype=float)
    return np.log1p(-p) - np.log(p)


@pytest.fixture(scope="module")
def predictors(small):
    made = {}
    for name in NETWORKS:
        made[name] = sd.tl.train(small, registry.get(name).random(gene_ids(small)), head="logistic", rng=0)
    return made


@pytest.mark.parametrize("model", ["hvg", "pca"])
@pytest.mark.parametrize("baseline", ["empty", "mean"])
def test_linear_attributions_add_up_exactly(small, model, baseline):
    predictor = sd.tl.train(small, model, head="logistic", rng=0)
    cells = sd.tl.attribute(small, predictor, store="cells", baseline=baseline, copy=True)
    assert cells.uns["attribution_record"]["params"]["method"] == "linear"
    assert cells.obs["attribution_gap"].abs().max() < 1e-3
    values = cells.layers["attribution"]
    assert sparse.isspmatrix_csr(values)
    assert values.shape == cells.shape
    total, score = values.sum(1).A1, log_odds(predictor, small)
    # Whatever the path begins at, it is the same for all cells.
    np.testing.assert_allclose(total - total.mean(), score - score.mean(), atol=1e-3)


def test_linear_and_integrated_gradients_and_occlusion_agree(small):
    predictor = sd.tl.train(small, "hvg", head="logistic", rng=0)
    found = {
        m: sd.tl.attribute(small, predictor, method=m, baseline="empty", store="cells", copy=True).layers["attribution"]
        for m in ("linear", "ig", "occlusion")
    }
    np.testing.assert_allclose(found["linear"].toarray(), found["ig"].toarray(), atol=1e-5)
    flat = {k: v.toarray().ravel() for k, v in found.items()}
    assert stats.spearmanr(flat["linear"], flat["occlusion"]).statistic > 0.95


def test_weights_of_linear_heads(rng):
    from sklearn.linear_model import LogisticRegression

    X, y = rng.normal(3, 2, size=(80, 4)), np.arange(80) % 2
    for head in (sd.response.make_head("logistic").fit(X, y), LogisticRegression().fit(X, y)):
        weights, intercept = linear_weights(head)
        np.testing.assert_allclose(X @ weights + intercept, -head.decision_function(X), atol=1e-10)


def test_heads_in_torch_are_the_heads(rng):
    X, y = rng.normal(size=(60, 5)).astype(np.float32), np.arange(60) % 2
    for options in ({}, {"standardize": True}):
        head = sd.response.MLPHead(hidden=(8, 8), epochs=2, random_state=0, **options).fit(X, y)
        found = torch_logit(head, torch.device("cpu"))(torch.from_numpy(X)).detach().numpy()
        np.testing.assert_allclose(found, -head.decision_function(X), atol=1e-5)
    assert torch_logit(RandomForestClassifier(3).fit(X, y), torch.device("cpu")) is None


def test_quadrature_is_exact_for_polynomials():
    assert sum(w * a**5 for a, w in nodes(3)) == pytest.approx(1 / 6)


def test_steps_double_until_it_adds_up():
    """A kink near the end of the path: few steps miss it, and only the cells that it concerns are refined."""
    x, start = torch.tensor([[1.0], [0.5]]), torch.zeros(2, 1)
    seen = []

    def value(z, rows):
        seen.append(rows.tolist())
        return torch.relu(z[:, 0] - 0.9) * 10

    path = complete(value, x, start, n_steps=2)
    assert path.n_steps[0] in (4, 8, 16)
    assert path.n_steps[1] == 2
    assert abs(path.gap[0]) <= 0.05
    assert path.gap[1] == 0
    assert seen[:2] == [[0, 1], [0, 1]]
    assert set(seen[-1]) == {0}


def test_further_steps_go_where_something_is_missing():
    """A narrow bump: halved pieces see it with 256 steps, of which as many in even order miss a third."""
    places = []

    def value(z, rows):
        if z.requires_grad:
            places.extend(z[:, 0].tolist())
        return torch.sigmoid((z[:, 0] - 0.3) * 1000)

    double = {"dtype": torch.float64}
    path = complete(value, torch.ones(1, 1, **double), torch.zeros(1, 1, **double), n_steps=20)
    assert abs(path.gap[0]) <= 0.05
    assert len(places) <= path.n_steps[0] <= 256
    slopes = [(w, 1 / (1 + np.exp(-np.clip((a - 0.3) * 1000, -500, 500)))) for a, w in nodes(256)]
    assert abs(1 - sum(w * 1000 * s * (1 - s) for w, s in slopes)) > 0.3
    assert path.gradient.item() == pytest.approx(1, rel=0.05)


def test_a_jump_is_named_and_not_hidden():
    path = complete(
        lambda z, rows: z[:, 0] * 0 + (z[:, 0] > 0.5).float(), torch.ones(1, 1), torch.zeros(1, 1), n_steps=20
    )
    assert path.n_steps[0] == 256
    assert abs(path.gap[0]) == pytest.approx(1)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_add_up_within_five_percent(small, predictors, name):
    cells = sd.tl.attribute(
        small, predictors[name], store="cells", max_cells_per_sample=2, baseline="mean", rng=0, copy=True
    )  # fmt: skip
    gap, drawn = cells.obs["attribution_gap"], cells.obs["attributed"]
    assert drawn.sum() == 2 * small.obs["sample"].nunique()
    assert gap[~drawn].isna().all()
    assert gap[drawn].abs().max() <= 0.05
    values = cells.layers["attribution"]
    assert (np.diff(values.indptr)[~drawn.to_numpy()] == 0).all()
    score, total = log_odds(predictors[name], small)[drawn], values.sum(1).A1[drawn]
    if name != "scBERT":  # where the path begins depends on the cell's own tokens, elsewhere on none
        assert np.corrcoef(score, total)[0, 1] > 0.5
    assert cells.uns["attribution_record"]["unit"] == "token"


def test_the_network_is_left_as_it_was(small, predictors):
    network = predictors["tGPT"].representation.load().network
    before = predictors["tGPT"].predict(small)["score"]
    sd.tl.attribute(small.copy(), predictors["tGPT"], max_cells_per_sample=1, rng=0)
    assert "embed" not in vars(network)
    pd.testing.assert_series_equal(predictors["tGPT"].predict(small)["score"], before)


@pytest.mark.parametrize("name", ["tGPT", "scGPT"])
def test_the_order_of_the_genes_only_permutes(small, predictors, name):
    turned = small[:, np.random.default_rng(0).permutation(small.n_vars)].copy()
    tables = []
    for cells in (small.copy(), turned):
        sd.tl.attribute(cells, predictors[name], max_cells_per_sample=2, rng=0)
        tables.append(cells.uns["attribution"].set_index("gene")["attribution"].sort_index())
    np.testing.assert_allclose(*tables, atol=1e-5)


def test_adapters_are_explained(small):
    model = registry.get("Geneformer").random(gene_ids(small))
    predictor = sd.tl.train(
        small, model, strategy="lora", lora_options={"epochs": 1, "lr": 1e-2, "early_stopping": False}, rng=0
    )  # fmt: skip
    cells = sd.tl.attribute(small, predictor, max_cells_per_sample=2, copy=True, rng=0)
    assert cells.obs["attribution_gap"].abs().max() <= 0.05
    assert cells.uns["attribution"]["attribution"].abs().max() > 0


def test_cells_in_context_are_explained_with_the_others_fixed(small):
    predictor = sd.tl.train(small, registry.get("CellPLM").random(gene_ids(small)), head="logistic", rng=0)
    cells = sd.tl.attribute(
        small, predictor, max_cells_per_sample=1, n_steps=4, store="cells", method="gradient_x_input", copy=True, rng=0
    )  # fmt: skip
    drawn = cells.obs["attributed"].to_numpy()
    assert drawn.sum() == small.obs["sample"].nunique()
    assert (np.diff(cells.layers["attribution"].indptr)[drawn] > 0).all()
    assert np.isfinite(cells.obs["attribution_gap"][drawn]).all()


def test_scvi_is_explained_through_its_encoder(small):
    predictor = sd.tl.train(small, "scvi", max_epochs=1, n_latent=3, head="logistic", rng=0)
    cells = sd.tl.attribute(small, predictor, max_cells_per_sample=5, copy=True, rng=0)
    assert cells.uns["attribution_record"]["params"]["method"] == "ig"
    assert cells.obs["attribution_gap"].abs().max() <= 0.05


def test_integrated_gradients_are_those_of_captum(small):
    captum = pytest.importorskip("captum.attr")
    predictor = sd.tl.train(small, "pca", head="mlp", head_options={"hidden": (8,), "lr": 1e-2}, rng=0)
    from scdrugmap.interpret.dense import FittedInput

    read = FittedInput(predictor.representation.model, predictor.head, gene_ids(small))
    x = torch.from_numpy(read.values(sparse.csr_matrix(small.X[:6])).toarray())
    expected = captum.IntegratedGradients(read.logit()).attribute(x, n_steps=256)
    found = sd.tl.attribute(
        small[:6].copy(), predictor, baseline="empty", n_steps=256, store="cells", copy=True
    ).layers["attribution"]  # fmt: skip
    np.testing.assert_allclose(found.toarray()[:, read.columns], expected.detach().numpy(), atol=2e-3)


def test_driver_genes_come_first(planted, linear):
    cells = sd.tl.attribute(planted, linear, copy=True, rng=0)
    from scdrugmap.tl._attribution_report import planted_genes

    table = cells.uns["attribution"]
    assert table.columns.tolist() == ["gene", "attribution", "low", "high", "sign_consistency"]
    true = set(planted.var_names[planted_genes(planted)])
    assert table.head(20)["gene"].isin(true).mean() > 2 * len(true) / planted.n_vars
    assert (table["attribution"].abs().diff().dropna() <= 1e-12).all()


def test_signs_point_towards_resistance(planted, linear):
    cells = sd.tl.attribute(planted, linear, store="cells", copy=True, rng=0)
    total = pd.Series(cells.layers["attribution"].sum(1).A1).groupby(planted.obs["response"].to_numpy()).mean()
    assert total["resistant"] > total["sensitive"]


def test_summary_over_samples():
    means = np.array([[1.0, 2.0, 3.0], [-1.0, 1.0, -3.0]])
    table = summarise(means, np.array(["a", "b"])).set_index("gene")
    assert table.loc["a", "attribution"] == 2
    assert table.loc["b", "sign_consistency"] == pytest.approx(2 / 3)
    low, high = stats.t.interval(0.95, 2, loc=2, scale=stats.sem(means[0]))
    assert table.loc["a", ["low", "high"]].tolist() == pytest.approx([low, high])


def test_cells_are_drawn_evenly(rng):
    samples = np.array(["a"] * 50 + ["b"] * 3)
    rows = chosen_cells(samples, 10, rng)
    assert (np.diff(rows) > 0).all()
    assert (samples[rows] == "a").sum() == 10
    assert (samples[rows] == "b").sum() == 3
    np.testing.assert_array_equal(rows, chosen_cells(samples, 10, np.random.default_rng(0)))


def test_trees_are_explained_by_occlusion(small):
    predictor = sd.tl.train(small, "hvg", head=RandomForestClassifier(5, max_depth=2), rng=0)
    cells = sd.tl.attribute(small, predictor, max_cells_per_sample=2, copy=True, rng=0)
    assert cells.uns["attribution_record"]["params"]["method"] == "occlusion"
    with pytest.raises(InputError, match="occlusion"):
        sd.tl.attribute(small, predictor, method="ig")


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"method": "attention"}, UnknownNameError),
        ({"store": "disk"}, UnknownNameError),
        ({"n_steps": 0}, InputError),
        ({"max_cells_per_sample": 0}, InputError),
        ({"baseline": "no such cell"}, InputError),
        ({"baseline": np.ones(3)}, InputError),
        ({"by": "nothing"}, InputError),
    ],
)
def test_what_cannot_be_used_is_refused(small, options, kind):
    predictor = sd.tl.train(small, "pca", head="logistic", rng=0)
    cells = small.copy()
    with pytest.raises(kind):
        sd.tl.attribute(cells, predictor, **options)
    assert "attributed" not in cells.obs
    assert not len(cells.varm)


@pytest.mark.parametrize("baseline", ["sensitive", "a cell", "counts"])
def test_baselines(small, baseline):
    predictor = sd.tl.train(small, "pca", head="logistic", rng=0)
    given = {"a cell": small.obs_names[0], "counts": small.X[0]}.get(baseline, baseline)
    cells = sd.tl.attribute(small, predictor, baseline=given, store="cells", copy=True)
    assert cells.obs["attribution_gap"].abs().max() < 1e-3
    if baseline != "sensitive":
        assert abs(cells.layers["attribution"][0]).max() < 1e-6, "a cell has nothing to explain against itself"
