"""What holds for every figure: axes, show, save, errors, the floor, the split."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes

import scdrugmap as sd
from scdrugmap._errors import InputError, UnknownNameError
from scdrugmap.figures import axes as _axes

CURVES = ["roc", "precision_recall", "calibration"]
SCORES = ["benchmark", "violin", "heatmap", "radar"]
FIGURES = [*SCORES, *CURVES, "critical_difference"]


def texts(figure) -> str:
    """All words of a figure."""
    ax = figure.axes[0]
    legends = [t for legend in [ax.get_legend(), *figure.legends] if legend for t in legend.get_texts()]
    parts = [ax.get_title(), *(t.get_text() for t in [*legends, *ax.get_yticklabels(), *ax.get_xticklabels()])]
    return " ".join(parts).replace("\n", " ")


@pytest.mark.parametrize("name", FIGURES)
def test_new_axes_or_given_ones(name, result):
    ax = getattr(sd.pl, name)(result)
    assert isinstance(ax, Axes) and len(plt.get_fignums()) == 1
    _, mine = plt.subplots(subplot_kw={"projection": "polar"} if name == "radar" else {})
    assert getattr(sd.pl, name)(result, ax=mine) is mine
    assert len(plt.get_fignums()) == 2
    assert mine.has_data()


@pytest.mark.parametrize("name", FIGURES)
def test_show_and_save(name, result, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    path = tmp_path / "figure.png"
    assert getattr(sd.pl, name)(result, show=True, save=str(path)) is None
    assert shown == [1] and plt.imread(path).std() > 0


def test_no_show_returns_axes_and_the_suffix_says_the_format(result, tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: pytest.fail("shown"))
    assert sd.pl.roc(result, show=False, save=tmp_path / "figure.pdf") is not None
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_shows_the_floor(name, result):
    assert "all sensitive" in texts(getattr(sd.pl, name)(result).figure)


@pytest.mark.parametrize("name", FIGURES)
def test_split_of_cells_says_so(name, leaky):
    part = leaky.select(split="cell", by="cancer_type")
    title = texts(getattr(sd.pl, name)(part).figure)
    assert "split by cell (cells of one sample on both sides)" in title
    assert "both sides" not in texts(getattr(sd.pl, name)(leaky.select(split="sample", by="cancer_type")).figure)


@pytest.mark.parametrize("name", [*CURVES, "critical_difference"])
def test_curves_do_not_mix_splits(name, leaky):
    with pytest.raises(InputError, match=r"select\(setting='pooled', split='sample'\)"):
        getattr(sd.pl, name)(leaky)


@pytest.mark.parametrize("name", [*SCORES, *CURVES])
def test_unknown_model(name, result):
    with pytest.raises(UnknownNameError, match="scGPT"):
        getattr(sd.pl, name)(result, models=["scGTP"])


@pytest.mark.parametrize("name", [*SCORES, "critical_difference"])
def test_unknown_metric_and_level(name, result):
    with pytest.raises(UnknownNameError, match="f1_macro"):
        getattr(sd.pl, name)(result, metric="f1_makro")
    if name != "critical_difference":
        with pytest.raises(UnknownNameError, match="level"):
            getattr(sd.pl, name)(result, level="patient")


@pytest.mark.parametrize("name", CURVES)
def test_unknown_or_empty_category(name, result):
    with pytest.raises(UnknownNameError, match="melanoma"):
        getattr(sd.pl, name)(result, category="melanom")
    with pytest.raises(InputError, match="liver"):
        getattr(sd.pl, name)(result, category="liver")
    assert plt.get_fignums() == []


@pytest.mark.parametrize("name", FIGURES)
def test_axes_must_be_axes(name, result):
    with pytest.raises(InputError, match="axes"):
        getattr(sd.pl, name)(result, ax=plt.figure())


@pytest.mark.parametrize(("path", "match"), [("none/figure.png", "folder that exists"), ("figure.docx", "png")])
def test_file_must_be_usable(result, tmp_path, path, match):
    with pytest.raises(InputError, match=match):
        sd.pl.calibration(result, save=tmp_path / path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["heatmap", "violin", "roc", "calibration", "critical_difference"])
def test_nothing_to_draw(name, result):
    with pytest.raises(InputError, match="result"):
        getattr(sd.pl, name)(result.select(category="liver"))


def test_only_bars_and_radar_of_an_empty_category_say_why(result):
    ax = sd.pl.benchmark(result.select(category="liver"))
    reason = result.table.query("category == 'liver'")["reason"].iloc[0]
    assert reason and reason in " ".join(t.get_text().replace("\n", " ") for t in ax.texts)


def test_a_result_is_not_changed(result):
    before = result.table.copy(), result.units.copy(), result.predictions.copy()
    for name in FIGURES:
        getattr(sd.pl, name)(result)
    for a, b in zip(before, (result.table, result.units, result.predictions), strict=True):
        assert a.equals(b)


def test_floor_without_the_baseline_equals_the_baseline(cells, result):
    without = result.select(model="UCE")
    for metric in ("f1", "f1_macro", "mcc", "brier"):
        a = _axes.scores(without, metric, "cell", None, n_resamples=0)
        b = _axes.scores(result, metric, "cell", ["UCE"], n_resamples=0)
        np.testing.assert_allclose(a["floor"], b["floor"])
    p = (cells.obs["response"] == "sensitive").groupby(cells.obs["cancer_type"]).mean()
    f1 = _axes.scores(without, "f1", "cell", None, n_resamples=0).set_index("place")["floor"]
    for kind in ("breast", "lung"):
        np.testing.assert_allclose(f1[kind], 2 * p[kind] / (1 + p[kind]))
    assert np.isnan(f1["liver"])


def test_a_model_keeps_its_look(result):
    whole = sd.pl.benchmark(result).containers
    part = sd.pl.benchmark(result, models=["tGPT"]).containers
    colour = {c.get_label(): c.patches[0].get_facecolor() for c in whole if hasattr(c, "patches")}
    alone = {c.get_label(): c.patches[0].get_facecolor() for c in part if hasattr(c, "patches")}
    assert alone["tGPT"] == colour["tGPT"] != colour["UCE"]


# Machado, Oliveira and Fernandes 2009, severity 1.
BLINDNESS = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


def lab(hex_colours, matrix) -> np.ndarray:
    from matplotlib.colors import to_rgb

    rgb = np.array([to_rgb(c) for c in hex_colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.asarray(matrix).T, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = linear @ np.array(to_xyz).T / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.c_[116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])]


@pytest.mark.parametrize("kind", BLINDNESS)
@pytest.mark.parametrize("colours", [_axes.PALETTE, (_axes.SENSITIVE, _axes.RESISTANT)])
def test_colours_differ_for_colour_blind_readers(kind, colours):
    points = lab(colours, BLINDNESS[kind])
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    assert distance[np.triu_indices(len(points), 1)].min() > 9
