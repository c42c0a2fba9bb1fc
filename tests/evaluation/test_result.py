"""Summaries, comparisons, files and the report."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import f1_score, roc_auc_score

import scdrugmap as sd
from scdrugmap._errors import InputError, UnknownNameError
from scdrugmap._keys import SAME_SAMPLE
from scdrugmap._metrics import METRICS, Sums
from scdrugmap.evaluation.result import result as module
from scdrugmap.evaluation.result.result import BenchmarkResult
from scdrugmap.evaluation.result.significance import corrected_t, permutation_pvalue
from scdrugmap.evaluation.result.statistics import interval
from scdrugmap.evaluation.result.summary import summarise


@pytest.fixture(scope="module")
def adata():
    rng = np.random.default_rng(0)
    import anndata as ad

    sample = np.repeat(np.arange(24), 10)
    y = sample % 2
    counts = rng.poisson(
        np.exp(1 + 0.5 * rng.normal(size=(24, 30))[sample] + y[:, None] * np.r_[np.ones(4), np.zeros(26)])
    )
    adata = ad.AnnData(counts.astype("float32"))
    adata.obs["sample"] = [f"p{i}" for i in sample]
    adata.obs["study"] = [f"S{i}" for i in sample // 6]
    adata.obs["response"] = np.where(y, "sensitive", "resistant")
    adata.obs["tissue"] = np.where(sample // 6 == 3, "marrow", "tumor")
    adata.obsm["X_log"], adata.obsm["X_noise"] = np.log1p(counts), rng.normal(size=(240, 5))
    return adata


@pytest.fixture(scope="module")
def result(adata):
    return sd.tl.benchmark(
        adata, models=["X_log", "X_noise"], head="logistic", setting=["pooled", "cross"], split=["auto", "cell"],
        by=[None, "tissue"], n_folds=4, rng=0, baselines=["all_sensitive", "majority", "depth", "sample_probe"],
    )  # fmt: skip


def cells_of(result, model, setting="pooled", split="sample", category="all"):
    where = {"model": model, "setting": setting, "split": split, "category": category}
    units = result.units
    for key, value in where.items():
        units = units[units[key] == value]
    p = result.predictions
    return [p[p["unit"] == u] for u in units["unit"]]


def row_of(frame, **where):
    for key, value in where.items():
        frame = frame[frame[key] == value]
    assert len(frame) == 1
    return frame.iloc[0]


WHERE = {"setting": "pooled", "split": "sample", "category": "all"}


def test_pooled_value_is_that_of_all_test_cells(result):
    summary = result.summary(metrics=["f1", "auroc"])
    parts = cells_of(result, "X_log")
    together = pd.concat(parts)
    row = row_of(summary, model="X_log", metric="f1", **WHERE)
    assert row["value"] == pytest.approx(f1_score(together["y"], together["pred"]))
    assert row["mean_folds"] == pytest.approx(np.mean([f1_score(p["y"], p["pred"]) for p in parts]))
    assert row["n_groups"] == 24
    pairs = [p["y"].sum() * (1 - p["y"]).sum() for p in parts]
    expected = np.average([roc_auc_score(p["y"], p["score"]) for p in parts], weights=pairs)
    assert row_of(summary, model="X_log", metric="auroc", **WHERE)["value"] == pytest.approx(expected)


def test_pooled_interval_leaves_out_samples(result, adata):
    together = pd.concat(cells_of(result, "X_log"))
    samples = pd.factorize("x" + adata.obs["study"].astype(str) + adata.obs["sample"].astype(str))[0][together["row"]]
    y, pred = together["y"].to_numpy(), together["pred"].to_numpy()
    names = np.unique(samples)
    left_out = np.array([f1_score(y[samples != s], pred[samples != s]) for s in names])
    strata = np.array([y[samples == s][0] for s in names])
    row = row_of(result.summary(metrics="f1"), model="X_log", metric="f1", **WHERE)
    expected = interval(f1_score(y, pred), left_out, strata, bounds=(0, 1))
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((expected.low, expected.high))


def test_cross_value_is_the_mean_over_studies_and_studies_are_resampled(result):
    row = row_of(result.summary(metrics="f1"), model="X_log", metric="f1", setting="cross", category="all")
    values = np.array([f1_score(p["y"], p["pred"]) for p in cells_of(result, "X_log", "cross", "study")])
    assert row["value"] == pytest.approx(values.mean())
    assert row["n_groups"] == 4
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert row["ci_low"] < row["value"] < row["ci_high"]
    assert row["ci_high"] - row["ci_low"] > 0.5 * (high - low)


def test_summary_by_model_and_levels(result):
    wide = result.summary("model", metrics="f1")
    assert list(wide["model"]) == ["X_log", "X_noise", "all_sensitive", "majority", "depth"]
    samples = result.summary(metrics="accuracy", level="sample")
    assert row_of(samples, model="X_log", metric="accuracy", **WHERE)["value"] > 0.7
    with pytest.raises(UnknownNameError):
        result.summary("modell")
    with pytest.raises(UnknownNameError):
        result.summary(metrics="f2")


@pytest.mark.parametrize("level", ["cell", "sample"])
def test_floor_is_the_value_of_calling_every_cell_sensitive(result, adata, level):
    summary = result.summary(metrics=None, level=level, n_resamples=0)
    keys = ["setting", "split", "by", "category", "metric"]
    called = summary[summary["model"] == "all_sensitive"].set_index(keys)["value"]
    known = summary[summary["n_folds"] > 0]
    expected = called.loc[pd.MultiIndex.from_frame(known[keys])].to_numpy()
    np.testing.assert_allclose(known["floor"].to_numpy(dtype=float), expected)
    assert summary.loc[summary["n_folds"] == 0, "floor"].isna().all()


def test_floor_needs_no_baseline(adata):
    result = sd.tl.benchmark(adata, models="X_noise", head="logistic", n_folds=4, rng=0, baselines=[])
    floor = result.summary(metrics=["f1", "auroc", "accuracy"]).set_index("metric")["floor"]
    p = (adata.obs["response"] == "sensitive").mean()
    assert floor.to_dict() == pytest.approx({"f1": 2 * p / (1 + p), "auroc": 0.5, "accuracy": p})


def test_categories_without_values_stay_with_their_reason(result):
    summary = result.summary(metrics="f1")
    gone = summary[(summary["setting"] == "cross") & (summary["category"] == "marrow")]
    assert len(gone) == 5
    assert gone["value"].isna().all()
    assert gone["reason"].str.contains("only one study: S3").all()


def test_compare_is_paired_and_antisymmetric(result):
    ab = result.compare("X_log", "X_noise", metrics="accuracy")
    ba = result.compare("X_noise", "X_log", metrics="accuracy")
    np.testing.assert_allclose(ab["difference"], -ba["difference"])
    np.testing.assert_allclose(ab["ci_low"], -ba["ci_high"])
    row = row_of(ab, metric="accuracy", **WHERE)
    folds = [
        (a["y"] == a["pred"]).mean() - (b["y"] == b["pred"]).mean()
        for a, b in zip(cells_of(result, "X_log"), cells_of(result, "X_noise"), strict=True)
    ]
    t, p = corrected_t(np.array(folds), 180, 60)
    assert (row["t"], row["p"]) == pytest.approx((t, p))
    assert row["p_holm"] >= row["p"]
    assert row["ci_low"] > 0
    same = result.compare("X_log", "X_log", metrics="accuracy")
    assert (same["difference"] == 0).all()
    assert (same["p"] == 1).all()
    with pytest.raises(UnknownNameError, match="X_noise"):
        result.compare("X_log", "X_nois")


def test_rank_and_pivot(result):
    table = result.pivot("f1", setting="pooled", split="sample")
    assert list(table.index) == ["all", "tissue: marrow", "tissue: tumor"]
    ranks = result.rank("f1", setting="pooled", split="sample", by="tissue").ranks
    expected = (-table.iloc[1:]).rank(axis=1).mean().sort_values()
    pd.testing.assert_series_equal(ranks.sort_index(), expected.sort_index(), check_names=False)
    with pytest.raises(InputError, match="by='tissue'"):
        result.rank("f1", setting="pooled", split="sample")
    with pytest.raises(InputError, match="several"):
        result.pivot("f1")


def test_files_round_trip(result, tmp_path):
    result.to_parquet(tmp_path / "r")
    again = BenchmarkResult.from_parquet(tmp_path / "r")
    for name in ("table", "predictions", "cells", "data"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(result, name))
    assert [p.hash for p in again.partitions] == [p.hash for p in result.partitions]
    assert [p.reason for p in again.partitions] == [p.reason for p in result.partitions]
    pd.testing.assert_frame_equal(again.summary(metrics="f1"), result.summary(metrics="f1"))
    with pytest.raises(InputError, match="to_parquet"):
        BenchmarkResult.from_parquet(tmp_path)


def test_text_exports(result, tmp_path):
    result.to_csv(tmp_path / "t.csv")
    assert len(pd.read_csv(tmp_path / "t.csv")) == len(result.table)
    markdown = result.to_markdown(metrics="f1").splitlines()
    assert len({line.count("|") for line in markdown}) == 1
    assert len(markdown) == 2 + len(result.summary(metrics="f1"))
    latex = result.to_latex(metrics="f1_macro")
    assert r"X\_log" in latex
    assert latex.count(r"\\") == 1 + len(result.summary(metrics="f1"))


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href")]


def test_values_beside_intervals_are_not_computed_again(result, monkeypatch):
    fresh = result.select(setting="pooled", by="tissue")
    bare = fresh.summary(metrics=["f1", "auroc"], n_resamples=0)
    again = result.select(setting="pooled", by="tissue")
    again.summary(metrics=["f1", "auroc"])
    monkeypatch.setattr(module, "summarise", lambda *args, **options: pytest.fail("computed again"))
    pd.testing.assert_frame_equal(again.summary(metrics=["f1", "auroc"], n_resamples=0), bare)


def test_report_is_one_file_that_says_what_matters(result, tmp_path):
    path = result.report(tmp_path / "report.html", n_resamples=50, title="A <title>")
    html = path.read_text()
    page = _Page()
    page.feed(html)
    assert page.links
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert html.count(SAME_SAMPLE) >= 3
    assert "only one study: S3" in html
    assert "A &lt;title&gt;" in html
    for part in ("Data", "Splits", "Results", "Figures", "Time and memory", "Manifest", "recognise the sample"):
        assert part in html
    f1 = row_of(result.summary(metrics="f1", n_resamples=0), model="X_log", metric="f1", **WHERE)["value"]
    assert f"{f1:.3f}" in html
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_report_sets_the_ways_of_splitting_side_by_side(result, tmp_path):
    page = result.report(tmp_path / "r.html", n_resamples=10, figures=[]).read_text()
    assert "side by side" in page
    row = result.summary(metrics="auroc", n_resamples=0)
    row = row[(row["model"] == "X_log") & (row["category"] == "all")]
    part = page[page.index("<b>AUROC</b>") :]
    cells = re.findall(r"<td[^>]*>([\d.]+)<small>", part[part.index("<td>X_log</td>") :].split("</tr>")[0])
    assert cells == [f"{v:.3f}" for v in row["value"]]
    one = result.select(setting="cross", split="study")
    assert "side by side" not in one.report(tmp_path / "one.html", n_resamples=10, figures=[]).read_text()
    gone = one.select(category="marrow")
    assert "No model could be evaluated." in gone.report(tmp_path / "gone.html", n_resamples=10).read_text()


def test_tables_of_many_categories_are_folded(result, tmp_path):
    page = result.report(tmp_path / "r.html", n_resamples=10, figures=[]).read_text()
    few = result.select(setting="pooled", split="sample", by="").report(tmp_path / "f.html", figures=[]).read_text()
    n = len(result.table[result.table["setting"] != "probe"][["setting", "split", "by", "category"]].drop_duplicates())
    assert n > 6 and page.count("<details") == page.count("</details>") >= n
    assert page.count("<details open") >= 1 and few.count("<details") == 1


def test_report_says_why(result, tmp_path):
    def page(**explained):
        return result.report(tmp_path / "r.html", figures=[], n_resamples=5, **explained).read_text()

    table = pd.DataFrame({"gene": [f"G<{i}>" for i in range(40)], "attribution": np.linspace(1, 0, 40), "low": np.nan})
    assert "<h2>Why</h2>" not in page()
    bare = page(explain={"attribution": table, "neighbors": {}})
    assert "G&lt;14&gt;" in bare
    assert "G&lt;15&gt;" not in bare
    assert "First 15 of 40 rows" in bare
    assert "no gene below may be called a biomarker" in bare
    tested = page(explain={"attribution": table, "report": "No gene & no doubt."})
    assert "No gene &amp; no doubt." in tested
    assert "no gene below may be called" not in tested
    with pytest.raises(InputError, match=r"sd\.tl\.attribute"):
        page(explain={"neighbors": {}})


def test_report_takes_figures(result, tmp_path):
    def draw(ax):
        ax.plot([0, 1])

    path = result.report(tmp_path / "r.html", figures=[("mine", draw)], metrics=["mcc"], n_resamples=10)
    assert len(re.findall("data:image/png", path.read_text())) == 1
    with pytest.raises(InputError, match="folder that exists"):
        result.report(tmp_path / "no" / "r.html")


def test_select(result):
    part = result.select(setting="pooled", split="cell")
    assert set(part.table["split"]) == set(part.units["split"]) == {"cell"}
    assert {(p.setting, p.split) for p in part.partitions} == {("pooled", "cell")}
    assert set(part.predictions["unit"]) == set(part.units["unit"])
    whole = result.summary(metrics="f1").query("setting == 'pooled' and split == 'cell'").reset_index(drop=True)
    pd.testing.assert_frame_equal(part.summary(metrics="f1"), whole)
    one = result.select(model="X_log").summary(metrics="f1")
    assert set(one["model"]) == {"X_log"}
    with pytest.raises(UnknownNameError, match="pooled"):
        result.select(setting="poled")
    with pytest.raises(UnknownNameError, match="category"):
        result.select(categry="all")


def test_permutation_test_tells_signal_from_noise(result):
    p = result.permutation_test("auroc", n_permutations=300)
    assert row_of(p, model="X_log", **WHERE)["p"] == pytest.approx(1 / 301)
    assert row_of(p, model="X_noise", **WHERE)["p"] > 0.05
    assert (p["p_holm"] >= p["p"]).all()
    within = row_of(p, model="X_log", setting="cross", category="all")
    assert within["p"] < 0.05
    assert within["n_samples"] == 24


def test_permutation_compares_cells_of_one_fold_as_the_auroc_does():
    """Two heads without a common scale: every cell is ranked right in its fold, and pooled the order is lost."""
    group = np.repeat(np.arange(12), 5)
    fold, y = group // 6, group % 2
    score = np.where(fold == 0, 0.9, 0.1) + 0.05 * y
    record, options = METRICS["auroc"], {"n_permutations": 400}
    within, _ = permutation_pvalue(y, score, y, group, record, fold=fold, rng=np.random.default_rng(0), **options)
    pooled, _ = permutation_pvalue(y, score, y, group, record, rng=np.random.default_rng(0), **options)
    assert within < 0.02 < 0.1 < pooled
    # A score that is the same for all cells ties with every order of the labels.
    tied, _ = permutation_pvalue(y, np.ones(60), y, group, record, fold=fold, rng=np.random.default_rng(0), **options)
    assert tied == 1


@pytest.mark.parametrize(("setting", "split", "metric"), [("cross", "study", "f1"), ("pooled", "sample", "auroc")])
def test_permutation_tests_the_value_of_the_summary(result, monkeypatch, setting, split, metric):
    seen = []
    values = Sums.values

    def spy(self, metric, w_pos, w_neg):
        out = values(self, metric, w_pos, w_neg)
        seen.append(out[0])
        return out

    part = result.select(setting=setting, split=split, model="X_noise", category="all")
    expected = part.summary(metrics=metric, n_resamples=0)["value"].item()
    monkeypatch.setattr(Sums, "values", spy)
    part.permutation_test(metric, n_permutations=20)
    assert np.mean(seen) == pytest.approx(expected)


@pytest.mark.parametrize("level", ["cell", "sample"])
def test_compare_counts_training_and_test_sets_at_the_level(result, level):
    row = row_of(result.compare("X_log", "X_noise", metrics="accuracy", level=level), metric="accuracy", **WHERE)
    table = result.table[(result.table["metric"] == "accuracy") & (result.table["level"] == level)]
    a, b = (
        table[
            (table["model"] == m) & (table["setting"] == "pooled") & (table["split"] == "sample") & (table["by"] == "")
        ]
        for m in ("X_log", "X_noise")
    )
    sizes = (a["n_train"].mean(), a["n_test"].mean()) if level == "cell" else (18, 6)
    assert (row["t"], row["p"]) == pytest.approx(corrected_t(a["value"].to_numpy() - b["value"].to_numpy(), *sizes))


def test_summaries_are_kept_until_a_frame_is_replaced(result, monkeypatch):
    part = result.select(setting="pooled", split="sample")
    calls = []
    monkeypatch.setattr(module, "summarise", lambda *a, **k: calls.append([m.name for m in a[1]]) or summarise(*a, **k))
    first = part.summary(metrics=["f1", "auroc"], n_resamples=20)
    first["value"] = -1.0
    again = part.summary(metrics="f1", n_resamples=20)
    assert (again["value"] >= 0).all(), "what was handed out is a copy"
    part.summary(metrics=["accuracy", "f1"], n_resamples=20)
    assert calls == [["f1", "auroc"], ["accuracy"]]
    part.summary(metrics="f1", confidence=0.8)
    assert len(calls) == 3
    called = part.predictions.assign(pred=1)
    part.predictions = called
    row = row_of(part.summary(metrics="recall", n_resamples=0), model="X_noise", metric="recall", **WHERE)
    assert row["value"] == 1
