"""What print asks of a figure: order, room for many categories, grey, and the reader's own settings."""

from __future__ import annotations

import itertools

import anndata as ad
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb

import scdrugmap as sd
from scdrugmap._errors import InputError, InputTypeError, MissingKeyError
from scdrugmap._keys import CLASS_COLOURS
from scdrugmap.figures import axes as _axes

TABLES = ["sample_calls", "prediction_sets", "few_shot_curve", "gene_coverage", "leakage"]


def test_numbers_in_names_sort_by_value(fifteen):
    names = [f"type{k}" for k in range(1, 16)]
    assert _axes.in_order(_axes.scores(fifteen, "f1_macro", "cell", None), "place") == names
    assert [t.get_text() for t in sd.pl.benchmark(fifteen).get_yticklabels()] == names


def test_many_categories_do_not_become_hairlines(fifteen, result):
    ax = sd.pl.benchmark(fifteen)
    assert not ax.patches or all(type(p).__name__ != "BarContainer" for p in ax.containers)
    ax.figure.canvas.draw()
    boxes = [t.get_window_extent() for t in ax.get_yticklabels()]
    assert all(not a.overlaps(b) for a, b in itertools.pairwise(boxes))
    assert [c for c in sd.pl.benchmark(result).containers if hasattr(c, "patches")]


def test_rows_hold_the_values_of_the_summary(fifteen):
    ax = sd.pl.benchmark(fifteen)
    table = fifteen.summary(metrics="f1_macro")
    for label in ("scGPT", "UCE", "tGPT"):
        line = next(x for x in ax.lines if x.get_label() == label)
        want = table[table["model"] == label].set_index("category")["value"]
        np.testing.assert_allclose(line.get_xdata(), want.reindex([f"type{k}" for k in range(1, 16)]))


def test_circular_bars_are_the_values_best_first(result):
    ax = sd.pl.circular(result, models=["scGPT", "UCE", "tGPT"])
    bars = [c.patches[0] for c in ax.containers]
    table = _axes.scores(result, "f1_macro", "cell", ["scGPT", "UCE", "tGPT"], n_resamples=0)
    want = [
        v for place in _axes.in_order(table, "place")
        for v in sorted(table["value"][table["place"] == place].dropna(), reverse=True)
    ]  # fmt: skip
    np.testing.assert_allclose([b.get_height() for b in bars if np.isfinite(b.get_height())], want)
    with pytest.raises(InputError, match="polar"):
        sd.pl.circular(result, ax=plt.subplots()[1])


def test_floor_is_named_for_what_it_is(result):
    def names(metric):
        return " ".join(t.get_text() for t in sd.pl.benchmark(result, metric=metric).get_legend().get_texts())

    assert "call all sensitive" in names("f1_macro")
    assert "call all sensitive" not in names("auroc") and "one score for all cells" in names("auroc")


def test_panels_wrap(cells):
    adata = cells.copy()
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(adata.n_obs, 2))
    panels = sd.pl.response(adata, color=["study", "response", "cancer_type", "sample", "study"])
    assert len(panels) == 5 and panels[0].get_subplotspec().get_gridspec().ncols == 3
    assert len(panels[0].figure.axes) == 5
    one = plt.subplots()[1]
    assert sd.pl.response(adata, color="study", ax=one) == [one]
    with pytest.raises(InputError, match="one column"):
        sd.pl.response(adata, color=["study", "response"], ax=one)


def test_legend_of_cells_sorts_numbers(cells):
    adata = cells.copy()
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(adata.n_obs, 2))
    adata.obs["study"] = [f"study{i % 11 + 1}" for i in range(adata.n_obs)]
    shown = [t.get_text() for t in sd.pl.response(adata, color="study")[0].get_legend().get_texts()]
    assert shown == [f"study{k}" for k in range(1, 12)]


def test_classes_differ_in_grey():
    grey = [float(np.dot(to_rgb(c), [0.299, 0.587, 0.114])) for c in CLASS_COLOURS]
    assert abs(grey[0] - grey[1]) > 0.18


def test_scanpy_takes_up_the_same_colours():
    adata = sd.datasets.simulate(n_studies=2, n_cells=200, n_genes=100, rng=0)
    known = (adata.obs["study"] == "study1").to_numpy()
    query = adata[~known].copy()
    sd.tl.predict_response(query, model="pca", reference=adata[known].copy(), head="logistic", rng=0)
    of = dict(zip(query.obs["response_pred"].cat.categories, query.uns["response_pred_colors"], strict=True))
    query.obsm["X_umap"] = np.random.default_rng(0).normal(size=(query.n_obs, 2))
    legend = sd.pl.response(query, color="response_pred")[0].get_legend()
    for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True):
        assert to_hex(handle.get_facecolor()[0]) == of[text.get_text()]


def test_sizes_of_letters_follow_the_settings(result):
    small = sd.pl.benchmark(result).get_legend().get_texts()[0].get_fontsize()
    with matplotlib.rc_context({"font.size": 20}):
        assert sd.pl.benchmark(result).get_legend().get_texts()[0].get_fontsize() == pytest.approx(2 * small)


@pytest.mark.parametrize("name", TABLES)
def test_figures_of_tables_take_and_return_axes(name, tables, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: pytest.fail("shown"))
    ax = plt.subplots()[1]
    assert getattr(sd.pl, name)(tables[name], ax=ax) is ax and ax.has_data()


def test_coverage_of_sets_counts_those_that_hold_the_label(tables):
    ax = sd.pl.prediction_sets(tables["prediction_sets"])
    # resistant: 5 right and one called sensitive; sensitive: 2 right, 3 undecided, one empty
    assert "83%" in [t.get_text() for t in ax.texts]


def test_calls_of_samples_stand_where_their_share_is(tables):
    ax = sd.pl.sample_calls(tables["sample_calls"])
    assert [t.get_text().split()[0] for t in ax.get_yticklabels()] == ["s1", "s2", "s10"]
    assert {c.get_label() for c in ax.collections} >= {"called resistant", "called sensitive", "undecided"}


def test_wrong_tables_are_refused(tables):
    with pytest.raises(MissingKeyError, match="sample_key"):
        sd.pl.sample_calls(tables["prediction_sets"])
    with pytest.raises(MissingKeyError, match="conformal"):
        sd.pl.prediction_sets(ad.AnnData(np.ones((2, 1))))
    with pytest.raises(InputError, match="auroc"):
        sd.pl.few_shot_curve(tables["few_shot_curve"], metric="f2")
    with pytest.raises(MissingKeyError, match="gene_coverage"):
        sd.pl.gene_coverage(tables["few_shot_curve"])
    with pytest.raises(InputTypeError, match="leakage_report"):
        sd.pl.leakage(tables["few_shot_curve"])
