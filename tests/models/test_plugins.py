"""Models of other packages: their checkpoints, their predictors, and one that cannot be imported."""

from __future__ import annotations

import json
import re
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

import scdrugmap as sd
from scdrugmap import _anndata, download
from scdrugmap._errors import CheckpointError, InputError, ScDrugMapWarning, UnknownNameError
from scdrugmap.download import catalog
from scdrugmap.models import registry

PAGE = Path(__file__).parents[2] / "docs" / "developer" / "add_a_model.md"


@pytest.fixture
def bag(monkeypatch):
    """The model of the page for authors, as it is printed there."""
    monkeypatch.setattr(registry, "_REGISTERED", {})
    monkeypatch.setitem(catalog._ADDED, "checkpoints", {})
    code = next(
        c for c in re.findall(r"```\{code-cell\} ipython3\n(.*?)```", PAGE.read_text(), re.S) if "class Bag" in c
    )
    scope: dict = {}
    exec(compile(code, str(PAGE), "exec"), scope)
    return scope["BagOfGenes"]


@pytest.fixture
def adata():
    return sd.datasets.simulate(n_studies=1, n_cells=80, n_genes=60, rng=0)


@pytest.fixture
def folder(bag, adata, tmp_path):
    from safetensors.torch import save_file

    model = bag.random(_anndata.gene_ids(adata))
    save_file(model.network.state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "genes.json").write_text(json.dumps(list(model.vocabulary)))
    return tmp_path


def test_checkpoint_of_a_registered_model(bag, adata, folder):
    with pytest.raises(UnknownNameError):
        sd.models.where("bagofgenes")
    sd.models.register(bag)
    assert sd.models.where("BagOfGenes") is None
    assert "CC0-1.0" in str(download.find("checkpoints", "bagofgenes"))
    download.register_local("checkpoints", "bagofgenes", folder)
    sd.tl.embed(adata, "bagofgenes")
    expected = bag.from_checkpoint(folder).prepared()
    sd.tl.embed(adata, expected, key_added="direct")
    np.testing.assert_array_equal(adata.obsm["X_bagofgenes"], adata.obsm["X_direct"])
    assert set(adata.uns["bagofgenes"]["provenance"]["checkpoint_sha256"]) == {"genes.json", "weights.safetensors"}


def test_predictor_with_adapters(bag, adata, folder, tmp_path):
    sd.models.register(bag)
    options = {"strategy": "lora", "lora_options": {"epochs": 1}, "rng": 0}
    predictor = sd.tl.train(adata, "bagofgenes", checkpoint=folder, **options)
    predictor.save(tmp_path / "predictor")
    again = sd.load_predictor(tmp_path / "predictor", checkpoint=folder)
    np.testing.assert_array_equal(again.predict(adata)["score"], predictor.predict(adata)["score"])


def test_entries_that_cannot_be_added(bag):
    bag.checkpoints = {"scgpt-human": {"title": "x", "licence": "y"}}
    with pytest.raises(InputError, match="scgpt-human"):
        sd.models.register(bag)
    bag.checkpoints = {"own": {"title": "x", "license": "y"}}
    with pytest.raises(InputError, match="own"):
        sd.models.register(bag)


def test_model_that_names_no_checkpoint(bag, adata):
    import dataclasses

    bag.card, bag.checkpoints = dataclasses.replace(bag.card, checkpoints=()), {}
    sd.models.register(bag)
    with pytest.raises(CheckpointError, match="pass checkpoint="):
        sd.tl.embed(adata, "bagofgenes")


def test_a_broken_package_breaks_nothing_else(monkeypatch):
    point = EntryPoint("brokenmodel", "not_a_package_at_all:Model", registry.ENTRY_POINTS)
    monkeypatch.setattr(registry, "_plugins", lambda: {"brokenmodel": point})
    registry._works.cache_clear()
    with pytest.warns(ScDrugMapWarning, match="brokenmodel"):
        table = sd.models.list()
    assert "pca" in table.index and "brokenmodel" not in table.index
    with pytest.raises(UnknownNameError, match="scGPT"):
        sd.models.info("scGTP")
    with pytest.raises(InputError, match=r"not_a_package_at_all.*update or uninstall"):
        sd.models.info("brokenmodel")
