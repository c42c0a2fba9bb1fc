"""Attributions that are killed and go on: the numbers of a call that was not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import scdrugmap as sd
from scdrugmap._anndata import gene_ids
from scdrugmap._errors import InputError
from scdrugmap.interpret import attribution
from scdrugmap.interpret.attribution import Explainer
from scdrugmap.models import registry


class Killed(BaseException):
    """What no handler catches."""


@pytest.fixture(autouse=True)
def blocks_of_four(monkeypatch):
    monkeypatch.setattr(attribution, "BLOCK", 4)


@pytest.fixture(scope="module")
def cells():
    return sd.datasets.simulate(n_studies=1, n_patients=2, n_cells=24, n_genes=60, rng=0)


@pytest.fixture(scope="module")
def predictors(cells):
    made = {
        n: sd.tl.train(cells, registry.get(n).random(gene_ids(cells)), head="logistic", rng=0)
        for n in ("tGPT", "CellPLM")
    }
    return made | {"pca": sd.tl.train(cells, "pca", head="mlp", head_options={"hidden": (4,), "epochs": 2}, rng=0)}


def counted(monkeypatch, dies_at=None):
    """Count the blocks that are computed, and die before one of them."""
    seen = []
    for name in ("explain", "_explain_group"):
        plain = getattr(Explainer, name)

        def counting(self, *args, plain=plain):
            if len(seen) == dies_at:
                raise Killed
            seen.append(1)
            return plain(self, *args)

        monkeypatch.setattr(Explainer, name, counting)
    return seen


def run(cells, predictor, **options):
    return sd.tl.attribute(cells, predictor, store="cells", n_steps=4, rng=0, copy=True, **options)


@pytest.mark.parametrize("name", ["tGPT", "CellPLM", "pca"])
def test_a_killed_call_goes_on(cells, predictors, name, tmp_path, monkeypatch):
    options = {"max_cells_per_sample": 2} if name == "CellPLM" else {}
    whole = run(cells, predictors[name], **options)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        counted(patch, dies_at=1)
        run(cells, predictors[name], folder=tmp_path / "kept", **options)
    seen = counted(monkeypatch)
    again = run(cells, predictors[name], folder=tmp_path / "kept", **options)
    n_blocks = cells.obs["sample"].nunique() if name == "CellPLM" else 6
    assert len(seen) == n_blocks - 1
    pd.testing.assert_frame_equal(again.uns["attribution"], whole.uns["attribution"])
    pd.testing.assert_frame_equal(again.obs, whole.obs)
    assert (again.layers["attribution"] != whole.layers["attribution"]).nnz == 0
    assert again.uns["attribution_record"]["most_steps"] == whole.uns["attribution_record"]["most_steps"]


def test_only_the_blocks_of_changed_cells_are_explained_again(cells, predictors, tmp_path, monkeypatch):
    run(cells, predictors["tGPT"], folder=tmp_path / "kept")
    other = cells.copy()
    other.X[5, other.X[5].nonzero()[1][:3]] = 0
    seen = counted(monkeypatch)
    found = run(other, predictors["tGPT"], folder=tmp_path / "kept")
    assert len(seen) == 1
    expected = run(other, predictors["tGPT"])
    np.testing.assert_array_equal(found.varm["attribution"], expected.varm["attribution"])


@pytest.mark.parametrize("other", ["steps", "method", "predictor", "cells", "baseline"])
def test_the_folder_of_another_call_is_refused(cells, predictors, other, tmp_path):
    predictor = predictors["pca"]
    run(cells, predictor, folder=tmp_path / "kept")
    given = {
        "steps": lambda: sd.tl.attribute(cells, predictor, n_steps=5, rng=0, copy=True, folder=tmp_path / "kept"),
        "method": lambda: run(cells, predictor, folder=tmp_path / "kept", method="occlusion"),
        "predictor": lambda: run(
            cells, sd.tl.train(cells, "pca", head="logistic", rng=0), method="ig", folder=tmp_path / "kept"
        ),
        "cells": lambda: run(cells, predictor, max_cells_per_sample=1, folder=tmp_path / "kept"),
        "baseline": lambda: run(cells, predictor, baseline="empty", folder=tmp_path / "kept"),
    }
    with pytest.raises(InputError, match="attributions of another"):
        given[other]()
    assert run(cells, predictor, folder=tmp_path / "kept") is not None
