"""Curves, calibration and ranks against scikit-learn and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_curve

import scdrugmap as sd
from scdrugmap._errors import InputError, UnknownNameError
from scdrugmap.figures.curves import GRID


def folds(result, model, category=None):
    units = result.units[result.units["model"] == model]
    if category is not None:
        units = units[units["category"] == category]
    parts = [p for u, p in result.predictions.groupby("unit") if u in set(units["unit"])]
    return [(p["y"].to_numpy(), p["score"].to_numpy(dtype=float)) for p in parts]


def both(parts):
    return [(y, s) for y, s in parts if 0 < y.mean() < 1]


def line(ax, label):
    return next(line for line in ax.lines if line.get_label() == label)


@pytest.mark.parametrize("category", [None, "lung"])
def test_roc_band(result, category):
    ax = sd.pl.roc(result, category=category)
    parts = both(folds(result, "UCE", category))
    curves = []
    for y, score in parts:
        false, true, _ = roc_curve(y, score, drop_intermediate=False)
        # The highest recall that a threshold reaches without more false alarms; between thresholds, a straight line.
        curves.append([np.interp(x, false, true) for x in GRID])
    mean, spread = np.mean(curves, axis=0), np.std(curves, axis=0)
    drawn = line(ax, "UCE")
    np.testing.assert_allclose(drawn.get_xdata()[1:], GRID)
    np.testing.assert_allclose(drawn.get_ydata()[1:], mean, atol=1e-9)
    assert drawn.get_ydata()[0] == 0
    band = ax.collections[1].get_paths()[0].vertices
    top, bottom = np.clip(mean + spread, 0, 1), np.clip(mean - spread, 0, 1)
    np.testing.assert_allclose(band[:, 1].max(), top.max())
    for x, low, high in zip(GRID[::20], bottom[::20], top[::20], strict=True):
        at = band[np.isclose(band[:, 0], x), 1]
        np.testing.assert_allclose([at.min(), at.max()], [low, high], atol=1e-9)
    assert "majority" not in [t.get_text() for t in ax.get_legend().get_texts()]


def test_area_under_precision_recall_is_average_precision(result):
    ax = sd.pl.precision_recall(result, category="breast")
    parts = both(folds(result, "scGPT", "breast"))
    expected = np.mean([average_precision_score(y, s) for y, s in parts])
    np.testing.assert_allclose(line(ax, "scGPT").get_ydata()[1:].mean(), expected, atol=0.01)
    share = np.mean([y.mean() for y, _ in parts])
    floor = [entry for entry in ax.lines if entry.get_linestyle() == "--" and "all sensitive" in entry.get_label()]
    np.testing.assert_allclose(floor[0].get_ydata(), share)


def test_precision_at_each_recall_by_hand(cross):
    ax = sd.pl.precision_recall(cross, models=["tGPT"])
    curves = []
    for y, score in folds(cross, "tGPT"):
        order = np.argsort(-score)
        recall, precision = np.cumsum(y[order]) / y.sum(), np.cumsum(y[order]) / np.arange(1, len(y) + 1)
        curves.append([precision[np.flatnonzero(recall >= r - 1e-12)[0]] for r in GRID])
    np.testing.assert_allclose(line(ax, "tGPT").get_ydata(), np.mean(curves, axis=0), atol=1e-9)


def test_folds_of_one_class_are_counted(result):
    units = result.units[(result.units["model"] == "UCE") & (result.units["category"] == "lung")]
    rows = result.predictions["unit"] == units["unit"].iloc[0]
    from dataclasses import replace

    predictions = result.predictions.copy()
    predictions.loc[rows, "y"] = 1
    changed = replace(result, predictions=predictions)
    title = sd.pl.roc(changed, models=["UCE"], category="lung").get_title().replace("\n", " ")
    assert f"{len(units) - 1} of {len(units)} folds (the others test one class)" in title


@pytest.mark.parametrize("n_bins", [4, 10])
def test_calibration_bins(result, n_bins):
    ax = sd.pl.calibration(result, n_bins=n_bins, models=["UCE"])
    y, score = (np.concatenate(v) for v in zip(*folds(result, "UCE"), strict=True))
    expected = []
    for b in range(n_bins):
        inside = (score >= b / n_bins) & ((score < (b + 1) / n_bins) if b < n_bins - 1 else (score <= 1))
        if inside.any():
            expected.append((score[inside].mean(), y[inside].mean()))
    np.testing.assert_allclose(ax.collections[0].get_offsets(), expected, atol=1e-9)
    share = next(entry for entry in ax.lines if "all sensitive" in str(entry.get_label()))
    np.testing.assert_allclose(share.get_ydata(), y.mean())


def test_calibration_pales_small_bins(result):
    ax = sd.pl.calibration(result, n_bins=40, models=["UCE"], category="lung")
    size = np.bincount((np.concatenate([s for _, s in folds(result, "UCE", "lung")]) * 40).astype(int), minlength=40)
    alpha = np.asarray(ax.collections[0].get_alpha())
    np.testing.assert_array_equal(alpha < 1, size[size > 0] < 10)
    assert len(ax.lines[0].get_xdata()) == np.sum(size >= 10)


@pytest.mark.parametrize("n_bins", [1, 0, 2.5, "ten"])
def test_calibration_needs_bins(result, n_bins):
    with pytest.raises(InputError, match="n_bins"):
        sd.pl.calibration(result, n_bins=n_bins)


@pytest.mark.parametrize("test", ["conover", "nemenyi"])
def test_critical_difference_shows_the_ranks(result, test):
    ax = sd.pl.critical_difference(result, test=test)
    ranks = result.rank("f1_macro", test=test).ranks
    text = " ".join(t.get_text() for t in ax.texts)
    for name, rank in ranks.items():
        assert f"{name} ({rank:.1f})" in text
    dashed = next(entry for entry in ax.lines if entry.get_linestyle() == "--")
    np.testing.assert_allclose(dashed.get_xdata(), ranks["all_sensitive"])
    assert "4 categories" in ax.get_title().replace("\n", " ")


def test_critical_difference_needs_categories(cross, result):
    with pytest.raises(InputError, match="categories"):
        sd.pl.critical_difference(cross)
    with pytest.raises(UnknownNameError, match="conover"):
        sd.pl.critical_difference(result, test="dunn")


@pytest.mark.parametrize("draw", ["roc", "precision_recall", "calibration", "violin", "critical_difference"])
def test_no_cell_counts_twice(twice, draw):
    """Two columns that hold the same cells under two names are not twice as much evidence."""
    with pytest.raises(InputError, match=r"select\(by='cancer_type'\)"):
        getattr(sd.pl, draw)(twice)
    assert getattr(sd.pl, draw)(twice.select(by="organ")) is not None
    if draw in ("roc", "precision_recall", "calibration"):
        assert getattr(sd.pl, draw)(twice, category="breast") is not None


def test_ranks_of_one_column(twice):
    with pytest.raises(InputError, match="by='cancer_type'"):
        twice.rank()
    assert twice.rank(by="organ").n == 4
    assert len(twice.pivot()) == 11
