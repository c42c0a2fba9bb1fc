"""Bars, violins, heat map and radar show the numbers of the summary."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.container import BarContainer

import scdrugmap as sd
from scdrugmap._errors import InputError, UnknownNameError

MODELS = ["scGPT", "UCE", "tGPT", "majority"]


def wide(result, metric, level="cell"):
    return result.pivot(metric, level=level)


def bars_of(ax) -> dict[str, np.ndarray]:
    bars = [c for c in ax.containers if isinstance(c, BarContainer)]
    return {c.get_label(): np.array([p.get_height() for p in c.patches]) for c in bars}


@pytest.mark.parametrize(("metric", "level"), [("f1_macro", "cell"), ("mcc", "cell"), ("brier", "sample")])
def test_bars_equal_the_summary(result, metric, level):
    bars = bars_of(sd.pl.benchmark(result, metric=metric, level=level))
    expected = wide(result, metric, level)
    assert list(bars) == MODELS
    for name, heights in bars.items():
        np.testing.assert_allclose(heights, expected[name].to_numpy())


def test_intervals_equal_the_summary(result):
    ax = sd.pl.benchmark(result, models=["UCE"])
    table = result.summary(metrics="f1_macro").query("model == 'UCE' and value == value")
    drawn = np.concatenate([s for c in ax.collections for s in getattr(c, "get_segments", list)() if len(s) == 2])
    for row in table.itertuples():
        for bound in (row.ci_low, row.ci_high):
            assert np.isclose(drawn[:, 1], bound).any()


def test_points_equal_the_folds(result):
    ax = sd.pl.benchmark(result, models=["UCE"])
    points = np.concatenate([c.get_offsets()[:, 1] for c in ax.collections if hasattr(c, "get_sizes")])
    folds = result.table.query("model == 'UCE' and metric == 'f1_macro' and level == 'cell'")["value"].dropna()
    np.testing.assert_allclose(np.sort(points), np.sort(folds))


def test_floor_of_every_category(result):
    ax = sd.pl.benchmark(result)
    floor = wide(result, "f1_macro")["all_sensitive"]
    lines = [s for c in ax.collections if hasattr(c, "get_segments") for s in c.get_segments() if len(s) == 2]
    flat = {round(float(s[:, 0].mean())): s[0, 1] for s in lines if np.ptp(s[:, 0]) > 0.85}
    np.testing.assert_allclose([flat[i] for i in (0, 2, 3, 4)], floor.dropna())


def test_missing_category_is_named_with_its_reason(result):
    ax = sd.pl.benchmark(result)
    assert [t.get_text() for t in ax.get_xticklabels()][1] == "liver"
    reason = result.table.query("category == 'liver'")["reason"].iloc[0]
    assert [t.get_text().replace("\n", " ") for t in ax.texts] == [f"n/a: {reason}"]
    assert ax.texts[0].xy[0] == 1


def test_bars_across_studies_name_the_unit(cross):
    ax = sd.pl.benchmark(cross)
    legend = [t.get_text() for t in ax.get_legend().get_texts()]
    assert "one left-out group" in legend
    # two left-out studies carry no interval, and none is drawn
    assert not [text for text in legend if "interval" in text]
    assert ax.get_title() == "cross, split by study"


def test_splits_stand_side_by_side(leaky):
    ax = sd.pl.benchmark(leaky)
    names = [t.get_text() for t in ax.get_xticklabels()]
    assert names[:4] == ["all cells\nby sample", "all cells\nby cell", "breast\nby sample", "breast\nby cell"]
    heights = bars_of(ax)["UCE"]
    for at, split in ((2, "sample"), (3, "cell")):
        expected = leaky.select(split=split, by="cancer_type").pivot("f1_macro").loc["cancer_type: breast", "UCE"]
        np.testing.assert_allclose(heights[at], expected)


def test_lower_is_better_is_said_and_a_huge_floor_is_named(result):
    ax = sd.pl.benchmark(result, metric="log_loss", models=["scGPT", "UCE"])
    assert ax.get_ylabel() == "log loss (lower is better)"
    assert ax.get_ylim()[1] < 5
    assert any("off the scale" in t.get_text() for t in ax.get_legend().get_texts())


@pytest.mark.parametrize("over", ["category", "fold"])
def test_violin_points(result, over):
    ax = sd.pl.violin(result, models=["scGPT", "tGPT"], over=over)
    points = [
        np.sort(c.get_offsets()[:, 1]) for c in ax.collections if hasattr(c, "get_sizes") and len(c.get_offsets())
    ]
    points = [p for p in points if len(p) > 1]
    for name, drawn in zip(["scGPT", "tGPT"], points, strict=True):
        folds = result.table.query(f"model == '{name}' and metric == 'f1_macro' and level == 'cell'")["value"]
        expected = wide(result, "f1_macro")[name] if over == "category" else folds
        np.testing.assert_allclose(drawn, np.sort(expected.dropna()))
    floor = wide(result, "f1_macro")["all_sensitive"].mean()
    assert any(np.allclose(line.get_ydata(), floor) and line.get_linestyle() == "--" for line in ax.lines)
    with pytest.raises(UnknownNameError, match="category"):
        sd.pl.violin(result, over="categories")


def test_heatmap_numbers_and_marks(result):
    ax = sd.pl.heatmap(result)
    values = ax.images[0].get_array()
    expected = wide(result, "f1_macro")[[*MODELS, "all_sensitive"]].T.to_numpy()
    np.testing.assert_allclose(values.filled(np.nan), expected)
    text = {(round(t.get_position()[1]), round(t.get_position()[0])): t for t in ax.texts}
    for (i, j), t in text.items():
        value, floor = expected[i, j], expected[-1, j]
        if np.isnan(value):
            assert t.get_text() == "n/a"
        else:
            beaten = i < len(MODELS) and value <= floor
            assert t.get_text() == (f"({value:.2f})" if beaten else f"{value:.2f}")
            best = i < len(MODELS) and value == np.nanmax(expected[:-1, j])
            assert (t.get_weight() == "bold") == best


def test_heatmap_of_a_loss_marks_the_lowest(result):
    ax = sd.pl.heatmap(result, metric="brier")
    expected = wide(result, "brier")[MODELS].T.to_numpy()
    for t in ax.texts:
        j, i = (round(v) for v in t.get_position())
        if t.get_weight() == "bold":
            assert expected[i, j] == np.nanmin(expected[:, j])


@pytest.mark.parametrize("kind", ["radar", "bar"])
def test_radar_numbers(result, kind):
    ax = sd.pl.radar(result, kind=kind)
    expected = wide(result, "f1_macro")
    for name in MODELS:
        if kind == "radar":
            line = next(line for line in ax.lines if line.get_label() == name)
            drawn, angle = line.get_ydata()[:-1], line.get_xdata()[:-1]
            np.testing.assert_allclose(angle, np.arange(5) * 2 * np.pi / 5)
        else:
            drawn = np.insert(bars_of(ax)[name], 1, np.nan)
        np.testing.assert_allclose(drawn, expected[name].to_numpy())
    floor = next(line for line in ax.lines if line.get_label() == "call all sensitive")
    np.testing.assert_allclose(np.asarray(floor.get_ydata())[0], expected["all_sensitive"].iloc[0])
    names = [t.get_text() for t in ax.get_xticklabels()]
    assert names == ["breast", "liver (n/a)", "lung", "melanoma", "myeloma"]


def test_radar_needs_categories_and_polar_axes(result, cross):
    with pytest.raises(InputError, match="kind='bar'"):
        sd.pl.radar(cross)
    assert sd.pl.radar(cross, kind="bar").name == "polar"
    with pytest.raises(UnknownNameError, match="radar"):
        sd.pl.radar(result, kind="spider")
    with pytest.raises(InputError, match="polar"):
        sd.pl.radar(result, ax=plt.subplots()[1])
