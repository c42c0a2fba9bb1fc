"""What a user reads: where the counts are, what a model lacks, and what an object is."""

from __future__ import annotations

import numpy as np
import pytest

import scdrugmap as sd
from scdrugmap._errors import InputError, MissingKeyError


@pytest.fixture
def adata():
    return sd.datasets.simulate(n_studies=1, n_cells=80, n_genes=60, rng=0)


@pytest.fixture
def scanpy_habit(adata):
    """Counts of all genes in ``raw``, logged values of a few in ``X``."""
    out = adata.copy()
    out.raw = adata
    out = out[:, 10:40].copy()
    out.X = np.log1p(out.X.toarray())
    return out


def test_raw_is_read_with_its_own_genes(adata, scanpy_habit):
    sd.tl.embed(scanpy_habit, "pca", layer="raw", n_components=3)
    expected = sd.tl.embed(adata, "pca", n_components=3, copy=True).obsm["X_scdrugmap_pca"]
    np.testing.assert_allclose(scanpy_habit.obsm["X_scdrugmap_pca"], expected, rtol=1e-4, atol=1e-5)
    predictor = sd.tl.train(scanpy_habit, "pca", layer="raw", head="logistic", rng=0)
    assert len(predictor.representation.genes) > 40
    options = {"models": ["pca"], "n_folds": 2, "head": "logistic", "baselines": ["depth"], "rng": 0, "progress": False}
    ours = sd.tl.benchmark(scanpy_habit, layer="raw", **options)
    plain = sd.tl.benchmark(adata, **options)
    np.testing.assert_allclose(ours.predictions["score"], plain.predictions["score"], atol=1e-4)


@pytest.mark.parametrize("model", ["pca", "hvg"])
def test_the_model_and_the_place_of_the_counts_are_named(scanpy_habit, model):
    with pytest.raises(InputError, match=f"which {model} needs.*layer='raw'"):
        sd.tl.embed(scanpy_habit, model)
    scanpy_habit.raw = None
    with pytest.raises(InputError, match="go back to the raw counts"):
        sd.tl.embed(scanpy_habit, model)
    scanpy_habit.layers["umis"] = np.rint(np.expm1(scanpy_habit.X))
    with pytest.raises(InputError, match="layer='umis'"):
        sd.tl.embed(scanpy_habit, model)


def test_pca_speaks_for_itself(adata):
    from scdrugmap import _anndata
    from scdrugmap.models.pca import PCA

    with pytest.raises(InputError, match="which pca needs"):
        PCA().fit(adata.X * 0.5, _anndata.gene_ids(adata))


def test_layer_that_is_not_there_names_raw(scanpy_habit):
    with pytest.raises(MissingKeyError, match="'raw'"):
        sd.tl.embed(scanpy_habit, "pca", layer="counts")


def test_check_sees_a_selection_of_genes(adata, scanpy_habit):
    assert str(sd.pp.check(adata)).splitlines()[0].endswith(": ready (0 errors, 0 warnings)")
    assert any("30 genes, a choice of the 60" in f.message for f in sd.pp.check(scanpy_habit).warnings)
    assert not any("a choice" in f.message for f in sd.pp.check(scanpy_habit, layer="raw").findings)
    adata.var["highly_variable"] = True
    report = sd.pp.check(adata)
    assert any("a choice" in f.message for f in report.warnings) and ": ready" not in str(report)


def test_check_sees_a_misspelt_label_column(adata):
    adata.obs["Respons"] = adata.obs.pop("response")
    report = sd.pp.check(adata)
    assert any("label_key='Respons'" in f.fix for f in report.findings) and ": ready" not in str(report)
    assert any("missing" in f.message for f in sd.pp.check(adata, label_key="outcome").errors)


def test_objects_describe_themselves_in_lines(adata):
    card = repr(sd.models.info("scGPT")).splitlines()
    assert card[0].startswith("scGPT: ") and len(card) > 10 and max(map(len, card[:10])) < 120
    predictor = sd.tl.train(adata, "pca", head="logistic", rng=0)
    lines = repr(predictor).splitlines()
    assert lines[0] == "ResponsePredictor on pca" and len(lines) > 5
    assert f"{adata.n_obs:,} cells" in repr(predictor)
