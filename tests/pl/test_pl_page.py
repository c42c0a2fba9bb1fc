"""Figures in the width of one column of a page: nothing is cut off, and no words lie on others."""

from __future__ import annotations

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.text import Text

import scdrugmap as sd

#: Inches: one column, and both.
COLUMN, PAGE = 3.5, 7.2
PRINT = {"font.size": 7}
SCORES = ["benchmark", "violin", "heatmap", "radar", "radar_bar", "circular"]
CURVES = ["roc", "precision_recall", "calibration", "critical_difference"]
TABLES = ["sample_calls", "prediction_sets", "few_shot_curve", "gene_coverage", "leakage"]


def out_of_view(figure) -> set[int]:
    """Labels of ticks that lie outside their axis, which matplotlib keeps and does not draw."""
    out = set()
    for ax in figure.findobj(plt.Axes):
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            span = 1e-6 * (high - low)
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not low - span <= tick.get_loc() <= high + span:
                    out |= {id(tick.label1), id(tick.label2)}
    return out


def problems(figure) -> list[str]:
    """Words that are cut off at the edge, and words that lie on other words."""
    # A layout engine needs several turns to settle on axes of fixed aspect, as round ones are.
    for _ in range(3 if any(ax.name == "polar" for ax in figure.axes) else 1):
        figure.canvas.draw()
    hidden, page = out_of_view(figure), figure.bbox
    shown = [
        (text.get_text(), text.get_window_extent(), np.abs(np.sin(2 * np.radians(text.get_rotation()))) > 0.1)
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and id(text) not in hidden
    ]
    out = [
        f"cut off: {name!r}"
        for name, box, _ in shown
        if min(box.x0 - page.x0, box.y0 - page.y0, page.x1 - box.x1, page.y1 - box.y1) < -1
    ]
    for (name, box, turned), (other, around, also) in itertools.combinations(shown, 2):
        # The box of a slanting word is mostly empty.
        across = min(box.x1, around.x1) - max(box.x0, around.x0)
        up = min(box.y1, around.y1) - max(box.y0, around.y0)
        if across > 1.5 and up > 1.5 and not (turned or also):
            out.append(f"{name!r} on {other!r}")
    return out


def draw(name, result, table, width, rows=0):
    """Draw one figure of the package into axes of a given width."""
    polar = name.split("_")[0] in ("radar", "circular")
    height = 1.2 * width if polar and width == COLUMN else max(0.75 * width if width == COLUMN else 4, 1 + 0.15 * rows)
    look = {"projection": "polar"} if polar else {}
    figure, ax = plt.subplots(figsize=(width, height), layout="constrained", subplot_kw=look)
    if name == "radar_bar":
        assert sd.pl.radar(result, kind="bar", ax=ax) is ax
    else:
        assert getattr(sd.pl, name)(result if table is None else table, ax=ax) is ax
    return figure


@pytest.mark.parametrize("name", SCORES)
def test_many_categories_in_one_column(name, fifteen):
    with plt.rc_context(PRINT):
        assert not problems(draw(name, fifteen, None, COLUMN, rows=15))


@pytest.mark.parametrize("name", [*SCORES, *CURVES])
def test_few_categories_in_one_column(name, result):
    with plt.rc_context(PRINT):
        assert not problems(draw(name, result, None, COLUMN))


@pytest.mark.parametrize("name", TABLES)
def test_tables_in_one_column(name, tables):
    with plt.rc_context(PRINT):
        assert not problems(draw(name, None, tables[name], COLUMN))


@pytest.mark.parametrize("name", ["radar", "circular"])
def test_round_figures_have_room_for_their_names(name, result, fifteen):
    for given in (result, fifteen):
        assert not problems(getattr(sd.pl, name)(given).figure)


def test_words_on_words_are_noticed(result):
    figure = draw("benchmark", result, None, COLUMN)
    figure.axes[0].text(0.5, 0.5, "one", transform=figure.axes[0].transAxes)
    figure.axes[0].text(0.5, 0.5, "two", transform=figure.axes[0].transAxes)
    figure.text(0.95, 0.5, "beyond the edge of the page")
    found = problems(figure)
    assert "'one' on 'two'" in found and "cut off: 'beyond the edge of the page'" in found


def test_models_differ_without_colours(result):
    from scdrugmap.figures.axes import styles

    looks = [style for label, style in styles(result).items() if label in ("scGPT", "UCE", "tGPT")]
    assert len({style.marker for style in looks}) == len({str(style.line) for style in looks}) == 3
