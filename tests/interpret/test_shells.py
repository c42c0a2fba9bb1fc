"""MuData, backed files, MuData mirrors and the command line."""

from __future__ import annotations

import json

import anndata as ad
import matplotlib
import mudata
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import scdrugmap as sd
from scdrugmap._errors import InputError
from scdrugmap.cli._app import app
from scdrugmap.study.explain import read_explained

matplotlib.use("agg")
pytestmark = pytest.mark.filterwarnings("ignore")

TOOLS = {
    "biomarkers": lambda x, p, **mod: sd.tl.biomarkers(x, min_cells=1, rng=0, **mod),
    "attribute": lambda x, p, **mod: sd.tl.attribute(x, p, rng=0, **mod),
    "perturb": lambda x, p, **mod: sd.tl.perturb(x, p, genes=["EGFR"], n_null=3, rng=0, **mod),
    "pathways": lambda x, p, **mod: sd.tl.pathways(x, source="resistance", of="cells", min_genes=1, **mod),
}
TABLE = {"biomarkers": "biomarkers", "attribute": "attribution", "perturb": "perturbation", "pathways": "pathways"}


@pytest.fixture(scope="module")
def simulated():
    return sd.datasets.simulate(n_studies=1, n_patients=3, n_cells=90, n_genes=120, protein=True, rng=0)


@pytest.fixture(scope="module")
def predictor(simulated):
    return sd.tl.train(simulated.mod["rna"], "pca", head="logistic", rng=0)


@pytest.mark.parametrize("name", TOOLS)
def test_mudata_is_read_and_written(simulated, predictor, name):
    alone, both = simulated.mod["rna"].copy(), simulated.copy()
    with mudata.set_options(pull_on_update=False):
        named = mudata.MuData({"gex": alone.copy(), "prot": simulated.mod["prot"].copy()})
    TOOLS[name](alone, predictor)
    TOOLS[name](both, predictor)
    TOOLS[name](named, predictor, mod="gex")
    for other in (both.mod["rna"], named.mod["gex"]):
        pd.testing.assert_frame_equal(other.uns[TABLE[name]], alone.uns[TABLE[name]])
    if name == "attribute":
        assert both.obs["rna:attributed"].all()


@pytest.mark.parametrize("name", TOOLS)
def test_backed_files_are_streamed(simulated, predictor, name, tmp_path):
    alone = simulated.mod["rna"].copy()
    alone.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    TOOLS[name](backed, predictor)
    TOOLS[name](alone, predictor)
    pd.testing.assert_frame_equal(backed.uns[TABLE[name]], alone.uns[TABLE[name]])


@pytest.mark.parametrize("name", TOOLS)
def test_counts_in_a_layer(simulated, predictor, name):
    alone = simulated.mod["rna"].copy()
    moved = alone.copy()
    moved.layers["counts"] = moved.X.copy()
    moved.X = np.log1p(moved.X)
    TOOLS[name](alone, predictor)
    TOOLS[name](moved, predictor, layer="counts")
    pd.testing.assert_frame_equal(moved.uns[TABLE[name]], alone.uns[TABLE[name]])


def test_explain_writes_tables_and_a_page(simulated, predictor, tmp_path):
    cells = simulated.mod["rna"]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    predictor.save(tmp_path / "predictor")
    out = CliRunner().invoke(
        app,
        ["explain", str(tmp_path / "cells.h5ad"), "--predictor", str(tmp_path / "predictor"), "-o", str(tmp_path / "out"),
         "--gene", "EGFR", "--n-null", "3", "--json"],
    )  # fmt: skip
    assert out.exit_code == 0, out.output
    said = json.loads(out.stdout)
    assert isinstance(said["ok"], bool)
    for name in ("biomarkers", "attribution", "perturbation", "report"):
        assert len(pd.read_csv(tmp_path / "out" / f"{name}.csv"))
    page = (tmp_path / "out" / "explain.html").read_text()
    assert "data:image/png" in page
    assert "biomarker" in page
    kept = read_explained(tmp_path / "out")
    assert set(kept) == {"biomarkers", "attribution", "perturbation", "perturbation_ranking", "pathways", "report"}
    pd.testing.assert_frame_equal(kept["biomarkers"], pd.read_csv(tmp_path / "out" / "biomarkers.csv"))
    assert "biomarker" in kept["report"]
    with pytest.raises(InputError, match="scdrugmap explain"):
        read_explained(tmp_path)
    again = CliRunner().invoke(app, ["explain", str(tmp_path / "absent.h5ad"), "-p", str(tmp_path), "-o", "x"])
    assert again.exit_code == 3
