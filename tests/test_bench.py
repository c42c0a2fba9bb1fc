"""``sd.testing.bench`` and ``scdrugmap bench``: what is measured, in which unit, and how a failure is told."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import scdrugmap as sd
from scdrugmap._device import Engine
from scdrugmap._errors import InputError, UnknownNameError
from scdrugmap.cli._app import app
from scdrugmap.models import registry
from scdrugmap.testing import speed as module


def row(key="tgpt", **values):
    return {"cells": 2, "cells_per_second": 3.0, "note": ""} | values


@pytest.mark.parametrize("key", ["tgpt", "cellplm"])
def test_a_model_is_measured_in_this_process(key):
    found = module.measure(key, 6, 0.5, "tiny", device="cpu")
    assert 1 <= found["cells"] <= 6 * 16
    assert found["cells_per_second"] > 0
    assert found["matmul_gflops"] > 0
    assert found["feed_per_second"] > 0
    assert 0 < found["network_share"] <= 1
    assert 0 <= found["waiting_share"] < 1
    assert found["network_share"] + found["waiting_share"] <= 1
    assert (found["device"], found["precision"]) == ("cpu", "float32")
    assert np.isnan(found["gflops"]), "the work of a toy network is not that of the official one"


def test_feeding_leaves_the_model_as_it_was():
    genes, X = module.bench_genes(200), module.bench_cells(8, 200)
    model = registry.get("scgpt").random(genes)
    before = model.network.forward
    calls = []
    model.network.register_forward_hook(lambda *a: calls.append(a[2].shape))
    assert module.feed_rate(model, X, genes, Engine("cpu", progress=False)) > 0
    assert sum(shape[0] for shape in calls) == 8, "every cell came to the network that takes no time"
    assert model.network.forward == before
    assert "forward" not in vars(model.network)


@pytest.mark.parametrize(("each", "expected"), [(0.001, 100), (1.0, 10), (100.0, 1)])
def test_the_number_of_cells_fits_the_time(each, expected):
    spent = []

    def time_of(n):
        spent.append(n * each)
        return n * each

    assert module._fitting(time_of, 100, 10.0) == expected
    assert sum(spent) <= 2 * max(10.0, each)


def test_made_cells_are_like_real_ones():
    X = module.bench_cells(20)
    expressed = np.diff(X.indptr)
    assert X.shape == (20, module.N_GENES)
    assert 1_000 < expressed.mean() < 3_000
    assert (X.data == np.round(X.data)).all()
    assert len(module.bench_genes()) == module.N_GENES


def test_a_process_of_its_own_and_the_table(capfd):
    table = sd.testing.bench("tGPT", cells=2, seconds=0.2, size="tiny", device="cpu")
    assert table["model"].tolist() == ["tgpt"]
    assert table["note"].tolist() == [""]
    assert table["cells_per_second"].iloc[0] > 0


def test_a_model_that_fails_says_why():
    assert "TypeError" in module._elsewhere({"key": "tgpt"})["note"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"cells": 0}, InputError), ({"seconds": 0}, InputError), ({"models": "pca"}, InputError),
        ({"models": "scgtp"}, UnknownNameError), ({"size": "huge"}, UnknownNameError), ({"precision": "int3"}, InputError),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_measured_is_refused_before_anything_is(arguments, error, monkeypatch):
    monkeypatch.setattr(module, "_elsewhere", lambda asked: pytest.fail("measured"))
    with pytest.raises(error):
        sd.testing.bench(**arguments)


@pytest.mark.parametrize(
    ("fails", "code"), [((), 0), (("scgpt",), 4), (("scgpt", "tgpt"), 1)], ids=["all", "one of two", "none"]
)
def test_exit_codes_and_json(fails, code, monkeypatch, tmp_path):
    monkeypatch.setattr(
        module, "_elsewhere", lambda asked: {"note": "no memory"} if asked["key"] in fails else row(asked["key"])
    )
    out = tmp_path / "speed.csv"
    done = CliRunner().invoke(app, ["bench", "--models", "scgpt,tgpt", "--json", "-o", str(out)])
    assert done.exit_code == code, done.output
    said = json.loads(done.stdout)
    assert [r["model"] for r in said["table"]] == ["scgpt", "tgpt"]
    assert [r["model"] for r in said["table"] if r["cells_per_second"] is None] == list(fails)
    assert out.read_text().startswith("model,cells,tokens,cells_per_second")


@pytest.mark.parametrize(
    "given",
    [["--models", "scgpt", "tgpt"], ["--models", "scgpt,tgpt"], ["-m", "scgpt", "-m", "tgpt"], ["scgpt", "tgpt"]],
)
def test_models_are_named_as_one_likes(given, monkeypatch):
    monkeypatch.setattr(module, "_elsewhere", lambda asked: row(asked["key"]))
    done = CliRunner().invoke(app, ["bench", *given, "--cells", "2", "--json"])
    assert done.exit_code == 0, done.output
    assert [r["model"] for r in json.loads(done.stdout)["table"]] == ["scgpt", "tgpt"]


def test_a_name_that_is_none_is_wrong_usage():
    done = CliRunner().invoke(app, ["bench", "--models", "scgtp"])
    assert done.exit_code == 2
