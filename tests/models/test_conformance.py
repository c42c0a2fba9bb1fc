"""The conformance suite itself: a sound model passes, and a model that breaks a rule fails by that rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import scdrugmap as sd
from scdrugmap.models import ModelCard, NetworkModel
from scdrugmap.models.base import ModelOptions
from scdrugmap.models.kit.tokens import Tokens
from scdrugmap.models.kit.weights import randomize
from scdrugmap.testing import conformance


class BagOptions(ModelOptions):
    empty: str = "nan"


class Bag(NetworkModel):
    """The weighted mean of gene vectors."""

    card = ModelCard(
        name="Bag", kind="network", architecture="mean of gene vectors", year=2026, citation="none", gene_id="symbol",
        dim=8, n_parameters=0, lora_targets=("out",), checkpoints=("bag",), weights_licence="BSD-3-Clause",
    )  # fmt: skip
    Options = BagOptions

    def __init__(self, genes, **options):
        super().__init__(**options)
        self._vocabulary = {str(g): i for i, g in enumerate(genes)}
        self.network, self.digests = BagNetwork(len(self._vocabulary)), {}
        randomize(self.network, 0)

    @property
    def dim(self):
        return 8

    @property
    def vocabulary(self):
        return self._vocabulary

    @property
    def embeds_empty_cells(self):
        return self.options.empty == "zero"

    @classmethod
    def random(cls, genes, *, size="tiny", rng=0, **options):
        return cls(genes.symbols, **options).prepared()

    @classmethod
    def from_checkpoint(cls, path, **options):
        raise NotImplementedError

    def tokenize(self, counts):
        offsets = counts.X.indptr.astype(np.int64)
        values = np.log1p(counts.X.data).astype(np.float32)
        usable = (np.diff(offsets) > 0) | self.embeds_empty_cells
        return Tokens(offsets, counts.ids[counts.X.indices], values, usable)

    def collate(self, tokens):
        return {"ids": torch.from_numpy(tokens.padded()), "values": torch.from_numpy(tokens.padded(0, of="values"))}


class BagNetwork(nn.Module):
    def __init__(self, n_genes):
        super().__init__()
        self.genes, self.out = nn.Embedding(n_genes, 8), nn.Linear(8, 8)

    def forward(self, batch):
        weights = batch["values"] / batch["values"].sum(1, keepdim=True).clamp(min=1e-6)
        return self.out((weights.unsqueeze(-1) * self.genes(batch["ids"])).sum(1))


class Invents(Bag):
    """Gives an embedding to cells about which it knows nothing."""

    def tokenize(self, counts):
        tokens = super().tokenize(counts)
        return replace(tokens, usable=np.ones(len(tokens), dtype=bool))


class Withholds(Bag):
    """Says that it embeds empty cells, and does not."""

    def tokenize(self, counts):
        tokens = super().tokenize(counts)
        return replace(tokens, usable=tokens.lengths > 0)


class CountsForeignGenes(Bag):
    """Takes every name, so that a cell of unknown genes alone has tokens."""

    def align(self, genes):
        known = np.where([g in self.vocabulary for g in genes.symbols], genes.symbols, next(iter(self.vocabulary)))
        return super().align(replace(genes, symbols=known))


@pytest.fixture(scope="module")
def cells():
    return sd.testing.example_cells(8, 40)


@pytest.mark.parametrize("empty", ["nan", "zero"])
def test_a_sound_model_passes_whatever_it_says_about_empty_cells(cells, empty):
    conformance.empty_cell(Bag.random(cells[1], empty=empty), *cells)


@pytest.mark.parametrize(
    ("broken", "empty", "message"),
    [
        (Invents, "nan", "no counts has values instead of NaN"),
        (CountsForeignGenes, "nan", "unknown genes only has values instead of NaN"),
        (Withholds, "zero", "no counts is not finite"),
    ],
)
def test_the_row_of_an_empty_cell_is_checked(cells, broken, empty, message):
    with pytest.raises(AssertionError, match=message):
        conformance.empty_cell(broken.random(cells[1], empty=empty), *cells)


@pytest.mark.parametrize(
    ("name", "options"),
    [("scgpt", {"empty": "cls"}), ("llama38b", {"empty": "bos"}), ("cellplm", {"empty_cells": "keep"})],
)
@pytest.mark.filterwarnings("ignore::scdrugmap._errors.ScDrugMapWarning")
def test_models_whose_option_embeds_empty_cells_say_so(cells, name, options):
    model = sd.models.registry.get(name).random(cells[1], **options)
    assert model.embeds_empty_cells
    conformance.empty_cell(model, *cells)


def test_every_check_is_reported_as_it_begins(cells, capsys):
    names = [check.__name__ for check in sd.testing.checks(Bag)]
    sd.testing.check_model(Bag, *cells)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(names)
    assert all(f"of {len(names)}  {name}: " in line for name, line in zip(names, printed, strict=True))
    lines: list[str] = []
    with pytest.raises(AssertionError, match="instead of NaN"):
        sd.testing.check_model(Invents, *cells, report=lines.append)
    # The last line names the rule that did not hold.
    assert "empty_cell" in lines[-1] and len(lines) == names.index("empty_cell") + 1
    sd.testing.check_model(sd.models.registry.get("pca")(n_components=4), *cells, report=None)
    assert not capsys.readouterr().out
