"""The main job on real studies reproduces the facts that are known about them."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

import scdrugmap as sd
from scdrugmap._metrics import evaluate

SCDRUG = ("sorafenib", "nvp-tae684")


@pytest.fixture(scope="module")
def studies(shared):
    files = {
        "mixology": "tian2019_lung_mixology",
        "scc47": "kinker2020_scc47",
        "jhu006": "kinker2020_jhu006",
        **{drug: f"scfoundation_scc47_{drug}" for drug in SCDRUG},
    }
    return {name: ad.read_h5ad(shared / "data" / f"{file}.h5ad") for name, file in files.items()}


def auroc(y, score):
    return evaluate(np.asarray(y), np.asarray(score), np.asarray(score) > 0.5, ["auroc"])["auroc"][0]


def fold_values(result, metric="auroc"):
    rows = result.table
    rows = rows[(rows["setting"] != "probe") & (rows["metric"] == metric) & (rows["level"] == "cell")]
    return rows.set_index("fold")["value"]


@pytest.mark.parametrize(
    ("name", "shape", "labels"),
    [
        ("mixology", (992, 22_328), {"resistant": 794, "sensitive": 198}),
        ("scc47", (120, 2_874), {"resistant": 60, "sensitive": 60}),
        ("jhu006", (66, 2_926), {"resistant": 33, "sensitive": 33}),
    ],
)
def test_checks_find_raw_counts_of_human_cells_with_both_labels(studies, name, shape, labels):
    report = sd.pp.check(studies[name])
    assert report.ok
    assert (report.n_cells, report.n_genes) == shape
    text = str(report)
    assert "raw counts" in text
    assert "human" in text
    assert studies[name].obs["response"].value_counts().to_dict() == labels


def test_leaks_of_the_mixology_are_named(studies):
    report = sd.tl.leakage_report(studies["mixology"])
    assert "labels of samples" in report.leaks
    assert "obs['cell_line']: its 5 values determine the label completely" in str(report)
    assert not sd.tl.leakage_report(studies["scc47"]).leaks


@pytest.mark.parametrize(("name", "reference"), [("scc47", 0.998), ("jhu006", 0.999)])
def test_logistic_regression_on_log_counts_inside_a_line(studies, name, reference):
    adata = studies[name]
    X = np.log1p(adata.X.toarray())
    result = sd.tl.benchmark(
        adata, models={"log counts": X}, head="logistic", split="cell", n_folds=5, baselines=[], metrics="auroc", rng=0
    )
    assert fold_values(result).mean() == pytest.approx(reference, abs=0.01)


@pytest.fixture(scope="module")
def batches(studies):
    """Leave one batch of the mixology out."""
    return sd.tl.benchmark(
        studies["mixology"], models="hvg", head="logistic", setting="cross", sample_key="cell_line", study_key="batch",
        baselines=["all_sensitive"], metrics=["auroc", "f1"], rng=0,
    )  # fmt: skip


def test_a_new_batch_of_known_lines_is_no_challenge(batches):
    values = fold_values(batches.select(model="hvg"))
    assert sorted(values.index) == [
        "CEL-seq2_3cl",
        "CEL-seq2_5cl_p1",
        "CEL-seq2_5cl_p2",
        "CEL-seq2_5cl_p3",
        "Drop-seq_3cl",
    ]
    assert values.min() > 0.999


def test_the_floor_of_the_mixology_is_that_of_its_share_of_sensitive_cells(studies, batches):
    sensitive = studies["mixology"].obs["response"] == "sensitive"
    share = sensitive.groupby(studies["mixology"].obs["batch"], observed=True).mean()
    summary = batches.summary(metrics="f1", n_resamples=0)
    assert summary["floor"].to_numpy() == pytest.approx((2 * share / (1 + share)).mean())


def test_one_sensitive_line_cannot_be_held_out(studies):
    result = sd.tl.benchmark(
        studies["mixology"], models="hvg", head="logistic", split="cell_line", baselines=[], metrics="auroc", rng=0
    )
    assert len(result.units) == 0
    assert result.table["reason"].unique().tolist() == [
        "too few cell_lines: cell_lines with resistant cells: 4, with sensitive cells: 1; "
        "training and test cells both need both classes"
    ]


def transfer(source, target):
    pair = sd.pp.concat_studies({"source": source, "target": target})
    source, target = (pair[pair.obs["study"] == name].copy() for name in ("source", "target"))
    predictor = sd.tl.train(source, "hvg", head="logistic", rng=0)
    y = (target.obs["response"] == "sensitive").astype(int)
    return auroc(y, predictor.predict(target)["score"])


def test_the_two_lines_of_one_study_predict_each_other(studies):
    assert transfer(studies["scc47"], studies["jhu006"]) > 0.999
    assert transfer(studies["jhu006"], studies["scc47"]) > 0.999


@pytest.mark.parametrize("line", ["scc47", "jhu006"])
def test_another_study_is_not_predicted(studies, line):
    # A head-and-neck line ranks the lung lines the wrong way round; the other way it knows little more than nothing.
    assert transfer(studies[line], studies["mixology"]) == pytest.approx(0.31, abs=0.06)
    assert 0.3 < transfer(studies["mixology"], studies[line]) < 0.65


@pytest.mark.parametrize(
    ("drug", "expression", "embedding"), [("sorafenib", 0.558, 0.839), ("nvp-tae684", 0.624, 0.839)]
)
def test_published_scores_have_their_published_auroc(studies, drug, expression, embedding):
    obs = studies[drug].obs
    y = (obs["response"] == "sensitive").astype(int)
    for column, value in (("author_score_expression", expression), ("author_score_scfoundation", embedding)):
        folds = [auroc(y[rows], obs.loc[rows, column]) for rows in obs.groupby("author_fold").groups.values()]
        assert np.mean(folds) == pytest.approx(value, abs=0.001)


@pytest.mark.parametrize("drug", SCDRUG)
def test_a_plain_head_on_the_published_embeddings_is_perfect_and_falls_to_chance(studies, drug):
    adata = studies[drug].copy()
    adata.obs["cell"] = adata.obs_names
    rng = np.random.default_rng(0)
    adata.obs["shuffled"] = rng.permutation(adata.obs["response"].to_numpy())
    arguments = {
        "models": "X_scfoundation", "head": "logistic", "setting": "cross", "split": "author_fold", "sample_key": "cell",
        "baselines": [], "metrics": "auroc", "rng": 0,
    }  # fmt: skip
    values = fold_values(sd.tl.benchmark(adata, **arguments))
    assert len(values) == 5
    assert values.mean() == pytest.approx(1, abs=0.002)
    assert fold_values(sd.tl.benchmark(adata, label_key="shuffled", **arguments)).mean() < 0.7


def test_prediction_sets_cover_the_cells_of_a_new_batch(studies):
    adata = studies["mixology"][:, ::4].copy()
    new = (adata.obs["batch"] == "Drop-seq_3cl").to_numpy()
    predictor = sd.tl.train(adata[~new].copy(), "pca", head="logistic", groups="sample", conformal=0.9, rng=0)
    query = adata[new].copy()
    known = query.obs["response"].astype(str)
    sd.tl.predict_response(query, predictor, key_added="call")
    assert np.mean([k in s for k, s in zip(known, query.obs["call_set"].astype(str), strict=True)]) >= 0.9
    assert (query.obs["call_pred"].astype(str) == known).mean() > 0.95
