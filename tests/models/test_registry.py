"""Names, registration, loading by name."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

import scdrugmap as sd
from scdrugmap import download
from scdrugmap._errors import CheckpointError, InputError, InputTypeError, ScDrugMapWarning, UnknownNameError
from scdrugmap.models import registry
from scdrugmap.models.hvg import HVG
from scdrugmap.models.kit.checkpoint import check_words, load_json, load_pickle, load_strict, load_tensors, require_file

KEYS = registry.keys()
NETWORKS = [key for key in KEYS if registry.get(key).card.kind == "network"]


@pytest.mark.parametrize("name", ["scGPT", "scgpt", "SC-GPT", "sc_gpt"])
def test_names_ignore_case_and_punctuation(name):
    assert sd.models.info(name).key == "scgpt"


def test_list_shows_every_model_and_its_licence():
    table = sd.models.list()
    assert list(table.index) == registry.keys()
    assert table["weights_licence"].str.len().min() > 0


@pytest.mark.parametrize("key", NETWORKS)
def test_checkpoints_of_the_cards_are_in_the_registry(key):
    for variant in registry.get(key).card.checkpoints:
        assert download.find("checkpoints", variant)


def test_wrong_names_suggest_the_nearest():
    with pytest.raises(UnknownNameError, match="Geneformer"):
        sd.models.info("genformer")
    with pytest.raises(CheckpointError, match="variants"):
        sd.models.load("scGPT", checkpoint="no/such/folder")
    with pytest.raises(InputError, match="fitted"):
        sd.models.load("pca")
    with pytest.raises(UnknownNameError, match="max_length"):
        sd.models.load("scGPT", maximum_length=3)


def test_register_and_forget(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {})
    card = HVG.card.__class__(**{**HVG.card.__dict__, "name": "My-HVG"})
    mine = type("Mine", (HVG,), {"card": card})
    assert sd.models.register(mine) is mine
    assert registry.get("my hvg") is mine
    with pytest.raises(InputError, match="built in"):
        sd.models.register(HVG)
    with pytest.raises(InputTypeError, match="ModelCard"):
        sd.models.register(int)


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


def test_pickles_run_no_code(tmp_path, capsys):
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match=r"evil\.pkl"):
        load_pickle(tmp_path / "evil.pkl")
    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"evil\.pt"):
        load_tensors(tmp_path / "evil.pt")
    assert "code ran" not in capsys.readouterr().out


def test_pickles_of_plain_values_load(tmp_path):
    plain = {"a": 1, "b": [2.5, "x"], "c": np.float64(3.0), "d": np.arange(3)}
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(plain))
    loaded = load_pickle(tmp_path / "plain.pkl")
    assert loaded["a"] == 1 and loaded["c"] == 3.0
    np.testing.assert_array_equal(loaded["d"], np.arange(3))


def test_short_and_missing_files_are_named(tmp_path):
    torch.save({"w": torch.zeros(1000)}, tmp_path / "short.pt")
    content = (tmp_path / "short.pt").read_bytes()
    (tmp_path / "short.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"short\.pt"):
        load_tensors(tmp_path / "short.pt")
    with pytest.raises(CheckpointError, match=r"vocab\.json.*scGPT"):
        require_file(tmp_path, ["vocab.json"], "scGPT")
    with pytest.raises(CheckpointError, match="existing"):
        require_file(tmp_path / "absent", ["vocab.json"], "scGPT")


def test_strict_loading():
    network = torch.nn.Linear(2, 3)
    good = {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}
    load_strict(network, {**good, "head.weight": torch.ones(1)}, ignore=[r"head\..*"])
    assert (network.weight == 1).all()
    for bad, word in (
        ({"weight": good["weight"]}, "lacks bias"),
        ({**good, "other": torch.ones(1)}, "unexpected other"),
        ({**good, "weight": torch.ones(2, 2)}, r"\(2, 2\) instead of \(3, 2\)"),
    ):
        with pytest.raises(CheckpointError, match=word):
            load_strict(network, bad)


class Point:
    """An entry point of another package."""

    dist = None

    def __init__(self, name, made):
        self.name, self.value, self.made = name, f"other.{name}:Model", made

    def load(self):
        if isinstance(self.made, Exception):
            raise self.made
        return self.made


@pytest.mark.parametrize("made", [ImportError("no module named other"), RuntimeError("boom"), SystemError("x"), int])
def test_broken_plugin_does_not_stand_in_the_way(monkeypatch, made):
    points = {"broken": Point("broken", made), "fine": Point("fine", HVG)}
    monkeypatch.setattr(registry, "_plugins", lambda: points)
    registry._works.cache_clear()
    try:
        with pytest.warns(ScDrugMapWarning, match="'broken'"):
            table = sd.models.list()
        assert "fine" in table.index and "broken" not in table.index
        with pytest.raises(UnknownNameError, match="Geneformer"):
            sd.models.info("genformer")
        with pytest.raises(InputError, match="update or uninstall"):
            sd.models.info("broken")
    finally:
        registry._works.cache_clear()


def test_weights_are_finite_numbers():
    network = torch.nn.Linear(2, 2)
    good = {k: v.detach().clone() for k, v in network.state_dict().items()}
    for name, bad, words in (
        ("weight", torch.full((2, 2), float("nan")), "NaN or infinity in weight"),
        ("bias", torch.tensor([0.0, float("inf")]), "NaN or infinity in bias"),
        ("weight", torch.ones(2, 2, dtype=torch.int64), r"whole numbers in weight \(torch.int64\)"),
    ):
        with pytest.raises(CheckpointError, match=words):
            load_strict(network, {**good, name: bad})
    load_strict(network, {k: v.half() for k, v in good.items()})


@pytest.mark.parametrize("name", ["w.bin", "w.safetensors"])
def test_empty_weight_file(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match="complete weight file"):
        load_tensors(tmp_path / name)


@pytest.mark.parametrize("content", ["[1, 2]", "3", '"text"', "null", ""])
def test_json_of_a_checkpoint_has_names(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"a": 0, "b": 0}, "several words on the id 0: a, b"),
        ({"a": 0, "c": 2}, r"none for the ids \[1"),
        ({"a": "0"}, "no whole"),
    ],
)
def test_vocabulary_and_embedding_fit(words, text):
    with pytest.raises(CheckpointError, match=text):
        check_words(words, 3, "words.json")
    check_words({"a": 1, "b": 0, "c": 2}, 3, "words.json")
