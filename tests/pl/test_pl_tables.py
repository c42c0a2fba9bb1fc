"""Catalogue, profile and maps of cells."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

import scdrugmap as sd
from scdrugmap._errors import InputError, MissingKeyError, ScDrugMapWarning
from scdrugmap.figures import axes as _axes
from scdrugmap.pl._catalogue import cell_counts


@pytest.fixture(scope="module")
def catalogue():
    return sd.datasets.catalogue()


@pytest.fixture
def mapped(cells):
    adata = cells.copy()
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(adata.n_obs, 2))
    return adata


def test_catalogue_counts_data_sets(catalogue):
    left, _ = sd.pl.catalogue(by="tissue")
    widths = np.sum([[p.get_width() for p in c.patches] for c in left.containers], axis=0)
    names = [t.get_text() for t in left.get_yticklabels()]
    assert dict(zip(names, widths, strict=True)) == catalogue["tissue"].value_counts().to_dict()


def test_catalogue_counts_shared_controls_once(catalogue):
    counts = cell_counts(catalogue[catalogue["accession"] == "GSE131984"], "cancer_type")
    row = counts.iloc[0]
    assert (row["sensitive"], row["repeats"], row["without"]) == (1061, 4 * 1061, 0)
    assert row["resistant"] == catalogue.query("accession == 'GSE131984'")["n_resistant"].sum()


def test_catalogue_uses_joint_counts_only_for_whole_groups(catalogue):
    group = catalogue[catalogue["group"] == "E15 E16"]
    whole = cell_counts(group, "tissue").iloc[0]
    assert whole["sensitive"] + whole["resistant"] == 556 and whole["without"] == 0
    half = cell_counts(group.iloc[:1], "tissue").iloc[0]
    assert (half["sensitive"], half["resistant"], half["without"]) == (0, 0, 1)


def test_catalogue_writes_the_floor(catalogue):
    table = catalogue[catalogue["accession"] == "GSE140440"]
    _, right = sd.pl.catalogue(table, by=["drug"])
    p = 134 / 284
    assert [t.get_text() for t in right.texts] == [f"{2 * p / (1 + p):.2f}"]


def test_catalogue_errors(catalogue, tmp_path):
    with pytest.raises(MissingKeyError, match="tissue"):
        sd.pl.catalogue(by="tissues")
    with pytest.raises(InputError, match="table"):
        sd.pl.catalogue(catalogue.iloc[:0])
    with pytest.raises(InputError, match="save"):
        sd.pl.catalogue(by="tissue", save=tmp_path)


def test_profile_points(tmp_path):
    table = pd.DataFrame(
        {"n_parameters": [0, 9e6, 8e9], "cells_per_second": [900.0, np.nan, 3.0], "year": [1901, 2022, 2024]},
        index=["pca", "scBERT", "Llama-3-8B"],
    )
    axes = sd.pl.profile(table, save=tmp_path / "profile.png")
    year, parameters, speed = axes
    assert [t.get_text() for t in year.texts] == ["1901", "2022", "2024"]
    np.testing.assert_allclose(parameters.collections[1].get_offsets(), [[9e6, 1], [8e9, 2]])
    assert [t.get_text() for t in parameters.texts] == ["0", "9 M", "8 G"]
    assert [t.get_text() for t in speed.texts] == ["900", "n/a", "3"]
    base = [line for line in speed.lines if line.get_linestyle() == "--"]
    assert np.allclose(base[0].get_xdata(), 900) and not parameters.lines
    assert "cells per second" in speed.get_title()


def test_profile_errors():
    table = pd.DataFrame({"dim": [1]}, index=["a"])
    with pytest.raises(MissingKeyError, match="dim"):
        sd.pl.profile(table, columns=["size"])
    with pytest.raises(InputError, match="table"):
        sd.pl.profile(table.iloc[:0])
    with pytest.raises(InputError, match="table"):
        sd.pl.profile(pd.DataFrame({"other": [1]}))


def test_response_pair(mapped):
    axes = sd.pl.response(mapped)
    assert [ax.get_title() for ax in axes] == ["cancer type", "response"]
    points = np.concatenate([c.get_offsets() for c in axes[1].collections])
    points = points[np.lexsort(points.T)]
    expected = mapped.obsm["X_umap"]
    np.testing.assert_allclose(points, expected[np.lexsort(expected.T)])
    legend = [t.get_text() for t in axes[1].get_legend().get_texts()]
    assert legend == ["resistant", "sensitive"]


def test_response_colours_each_cell(mapped):
    ax = sd.pl.response(mapped, color="response")[0]
    cloud = max(ax.collections, key=lambda c: len(c.get_offsets()))
    where = {tuple(np.round(xy, 9)): i for i, xy in enumerate(mapped.obsm["X_umap"])}
    for xy, face in zip(cloud.get_offsets(), cloud.get_facecolors(), strict=True):
        label = mapped.obs["response"].iloc[where[tuple(np.round(xy, 9))]]
        wanted = _axes.SENSITIVE if label == "sensitive" else _axes.RESISTANT
        np.testing.assert_allclose(face, to_rgba(wanted))


def test_response_predictions_scores_and_unknown(mapped):
    mapped.obs["response_pred"] = mapped.obs["response"].astype(object)
    mapped.obs.loc[mapped.obs_names[:5], "response_pred"] = None
    mapped.obs["response_score"] = np.linspace(0, 1, mapped.n_obs)
    mapped.obs["depth"] = np.arange(mapped.n_obs)
    axes = sd.pl.response(mapped)
    assert [ax.get_title() for ax in axes] == ["cancer type", "response", "response pred", "response score"]
    assert "unknown" in [t.get_text() for t in axes[2].get_legend().get_texts()]
    assert axes[3].collections[-1].get_clim() == (0, 1)
    assert sd.pl.response(mapped, color=["depth"])[0].collections[-1].get_clim() == (0, mapped.n_obs - 1)


def test_response_many_classes_differ_in_shape_or_colour(mapped):
    ax = sd.pl.response(mapped, color=["sample"])[0]
    handles = ax.get_legend().legend_handles
    looks = {(tuple(h.get_facecolor()[0]), h.get_paths()[0].vertices.tobytes()) for h in handles}
    assert len(looks) == mapped.obs["sample"].nunique() == 36
    mapped.obs["cell"] = [f"c{i % 90}" for i in range(mapped.n_obs)]
    with pytest.warns(ScDrugMapWarning, match="look alike"):
        sd.pl.response(mapped, color=["cell"])


def test_response_errors(mapped):
    with pytest.raises(MissingKeyError, match=r"sc\.tl\.umap"):
        sd.pl.response(mapped, basis="tsne")
    with pytest.raises(MissingKeyError, match="color"):
        sd.pl.response(mapped, color=["respons"])
    with pytest.raises(InputError, match="size"):
        sd.pl.response(mapped, size=0)
    mapped.obsm["X_one"] = np.zeros((mapped.n_obs, 1))
    with pytest.raises(InputError, match="cells x 2"):
        sd.pl.response(mapped, basis="one")
    assert plt.get_fignums() == []
