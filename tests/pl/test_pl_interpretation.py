"""Figures of interpretation: legible labels, axes in and out, and pictures of known tables."""

from __future__ import annotations

import os
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.testing.compare import compare_images
from matplotlib.text import Text

import scdrugmap as sd
from scdrugmap._errors import InputError, InputTypeError, MissingKeyError, UnknownNameError
from scdrugmap.figures.interpretation import spread
from scdrugmap.interpret.report import AttributionReport

BASELINE = Path(__file__).parent / "baseline"
TOLERANCE = 12.0


@pytest.fixture(scope="module")
def explained() -> ad.AnnData:
    """Cells with made-up results, so that every pixel is known."""
    rng = np.random.default_rng(0)
    genes = [f"GENE{i}" for i in range(120)]
    cells = ad.AnnData(np.ones((30, 120), np.float32), var=pd.DataFrame(index=genes))
    cells.obs["response"] = ["resistant", "sensitive"] * 15
    fc = rng.normal(size=120) * np.where(np.arange(120) < 20, 2.0, 0.3)
    t = fc * 6
    p = np.exp(-np.abs(t))
    cells.uns["biomarkers"] = pd.DataFrame(
        {
            "gene": genes, "log2_fc": fc, "t": t, "p": p, "q": np.minimum(p * 4, 1), "n_resistant": 4, "n_sensitive": 5,
            "detection_resistant": 0.5, "detection_sensitive": 0.4, "confounded": np.arange(120) == 3,
        }
    )  # fmt: skip
    means = rng.normal(size=(120, 6)) * np.linspace(1, 0.01, 120)[:, None]
    mean = means.mean(1)
    order = np.argsort(-np.abs(mean))
    cells.varm["attribution"] = means
    cells.uns["attribution"] = pd.DataFrame(
        {
            "gene": np.array(genes)[order],
            "attribution": mean[order],
            "low": mean[order] - 0.3,
            "high": mean[order] + 0.3,
        }
    )
    cells.uns["attribution_record"] = {
        "samples": np.array([f"sample {i}" for i in range(6)]), "representation": "pca", "params": {"method": "linear"},
    }  # fmt: skip
    from scipy import sparse

    cells.layers["attribution"] = sparse.csr_matrix(rng.normal(size=(30, 120)))
    cells.obs["attributed"] = np.arange(30) < 25
    cells.obsm["X_umap"] = rng.normal(size=(30, 2))
    value = np.sort(rng.normal(size=40))
    cells.uns["perturbation_ranking"] = pd.DataFrame(
        {"gene": genes[:40], "delta_logit": value, "low": value - 0.2, "high": value + 0.2,
         "null_percentile": np.linspace(0, 100, 40)}
    )  # fmt: skip
    cells.uns["perturbation_record"] = {"params": {"kind": "knockout"}}
    score = np.linspace(6, -5, 12)
    cells.uns["pathways"] = pd.DataFrame(
        {"set": [f"HALLMARK_PROGRAMME_{i}" for i in range(12)], "score": score, "low": score - 1, "high": score + 1,
         "q": np.where(np.abs(score) > 3, 0.01, 0.5), "n_genes": np.arange(10, 130, 10)}
    )  # fmt: skip
    return cells


@pytest.fixture(scope="module")
def report() -> AttributionReport:
    rows = [("deletion", g, k, s * np.log(1 + k)) for g, s in
            (("attribution", 1.0), ("matched", 0.2), ("random", 0.1), ("expression", 0.5)) for k in (1, 2, 5, 10, 20, 50)]  # fmt: skip
    return AttributionReport(pd.DataFrame(), pd.DataFrame(rows, columns=["curve", "genes", "k", "change"]))


DRAW = {
    "biomarkers": lambda cells, report: sd.pl.biomarkers(cells),
    "attribution_ranked": lambda cells, report: sd.pl.attribution(cells),
    "attribution_heatmap": lambda cells, report: sd.pl.attribution(cells, kind="heatmap"),
    "attribution_deletion": lambda cells, report: sd.pl.attribution(report, kind="deletion"),
    "attribution_map": lambda cells, report: sd.pl.attribution(cells, kind="map"),
    "perturb": lambda cells, report: sd.pl.perturb(cells),
    "pathways": lambda cells, report: sd.pl.pathways(cells),
}


@pytest.mark.parametrize("name", DRAW)
def test_picture(name, explained, report, tmp_path):
    DRAW[name](explained, report)
    expected = BASELINE / f"{name}.png"
    if os.environ.get("SCDRUGMAP_WRITE_PICTURES"):
        plt.savefig(expected, dpi=50)
    actual = tmp_path / f"{name}.png"
    plt.savefig(actual, dpi=50)
    assert compare_images(str(expected), str(actual), tol=TOLERANCE) is None
    assert expected.stat().st_size < 30_000


def test_labels_of_the_volcano_do_not_overlap(explained):
    ax = sd.pl.biomarkers(explained, n_labels=24)
    ax.figure.canvas.draw()
    boxes = [Text.get_window_extent(t) for t in ax.texts]  # without the line that leads to the point
    assert len(boxes) == 24
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            assert not a.overlaps(b)


def test_places_move_as_little_as_they_must():
    np.testing.assert_allclose(spread(np.array([0.1, 0.9]), 0.2, 0, 1), [0.1, 0.9])
    crowded = spread(np.array([0.5, 0.52, 0.51]), 0.1, 0, 1)
    np.testing.assert_allclose(crowded, [0.41, 0.61, 0.51], atol=1e-9)
    tight = spread(np.random.default_rng(0).random(30), 0.2, 0, 1)
    assert tight.min() >= 0
    assert tight.max() <= 1 + 1e-12


@pytest.mark.parametrize("name", ["biomarkers", "perturb", "pathways"])
def test_axes_go_in_and_come_out(name, explained):
    _, ax = plt.subplots()
    assert getattr(sd.pl, name)(explained, ax=ax) is ax
    with pytest.raises(InputError, match="axes"):
        getattr(sd.pl, name)(explained, ax="here")


@pytest.mark.parametrize("name", ["biomarkers", "attribution", "perturb", "pathways"])
def test_what_was_not_computed_is_not_drawn(name):
    with pytest.raises(MissingKeyError, match=r"sd\.tl\."):
        getattr(sd.pl, name)(ad.AnnData(np.ones((2, 2), np.float32)))


def test_effects_without_p_values_are_drawn(explained):
    cells = explained.copy()
    cells.uns["biomarkers"][["p", "q", "t"]] = np.nan
    ax = sd.pl.biomarkers(cells)
    assert "no p value" in ax.get_ylabel()


def test_what_cannot_be_drawn_is_refused(explained):
    with pytest.raises(UnknownNameError):
        sd.pl.attribution(explained, kind="violin")
    with pytest.raises(InputTypeError):
        sd.pl.attribution(explained, kind="deletion")
    with pytest.raises(UnknownNameError):
        sd.pl.attribution(explained, kind="map", gene="NOT-A-GENE")
    with pytest.raises(InputError):
        sd.pl.biomarkers(explained, q=0)
    with pytest.raises(InputError):
        sd.pl.pathways(explained, n_sets=0)
