"""tGPT: tokens, states, checkpoint files."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from scdrugmap._device import Engine
from scdrugmap._errors import CheckpointError, InputError
from scdrugmap.embedding.embed import embed_counts
from scdrugmap.embedding.source import CountSource
from scdrugmap.genes import Genes
from scdrugmap.models.kit.counts import Counts
from scdrugmap.models.tgpt import TGPT

N_GENES = 90
GENES = Genes.from_names([f"GENE{i}" for i in range(N_GENES)])


def small_counts(n=6, k=N_GENES):
    i, j = np.arange(n)[:, None], np.arange(k)[None, :]
    return sparse.csr_matrix(np.clip((7 * i + 13 * j + i * j) % 17 - 5 - i, 0, None).astype(np.float32))


def tokens_of(model, X, genes):
    matched = model.align(genes)
    return model.tokenize(
        Counts(matched.apply(sparse.csr_matrix(X)), matched.ids, matched.genes, np.arange(X.shape[0]))
    )


def embed(model, X, genes):
    return embed_counts(model, CountSource(X), genes, Engine("cpu", "float32", progress=False)).values


def official_tensors(model):
    """The weights under the names and in the shapes of the official file."""
    own = model.network.state_dict()
    out = {"transformer.wte.weight": own["wte.weight"], "transformer.wpe.weight": own["wpe.weight"]}
    out |= {"transformer.ln_f.weight": own["norm.weight"], "transformer.ln_f.bias": own["norm.bias"]}
    for i in range(len(model.network.blocks)):
        new, old = f"transformer.h.{i}", f"blocks.{i}"
        for kind, turned in (("weight", torch.t), ("bias", torch.clone)):
            qkv = torch.cat([own[f"{old}.attention.{p}_proj.{kind}"] for p in "qkv"])
            out[f"{new}.attn.c_attn.{kind}"] = turned(qkv)
            out[f"{new}.attn.c_proj.{kind}"] = turned(own[f"{old}.attention.out_proj.{kind}"])
            out[f"{new}.mlp.c_fc.{kind}"] = turned(own[f"{old}.linear1.{kind}"])
            out[f"{new}.mlp.c_proj.{kind}"] = turned(own[f"{old}.linear2.{kind}"])
            out[f"{new}.ln_1.{kind}"], out[f"{new}.ln_2.{kind}"] = (
                own[f"{old}.norm1.{kind}"],
                own[f"{old}.norm2.{kind}"],
            )
        out[f"{new}.attn.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.uint8)
        out[f"{new}.attn.masked_bias"] = torch.tensor(-1e4)
    out["lm_head.weight"] = own["wte.weight"]
    return {k: v.clone().contiguous() for k, v in out.items()}


@pytest.fixture(scope="module")
def model():
    return TGPT.random(GENES)


@pytest.fixture
def folder(model, tmp_path):
    words = {"<pad>": 0, "</b>": 1, "</s>": 2, "<unk>": 3, **model.vocabulary}
    sizes = {"vocab_size": len(words), "n_positions": 128, "n_embd": 16, "n_layer": 2, "n_head": 4}
    config = {"model_type": "gpt2", "activation_function": "gelu_new", **sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel", "vocab": words}}))
    torch.save(official_tensors(model), tmp_path / "pytorch_model.bin")
    return tmp_path


# The official implementation


@pytest.fixture(scope="module")
def recorded(shared):
    return np.load(shared / "parity" / "tgpt" / "expected.npz")


@pytest.mark.parametrize(
    ("array", "options"),
    [
        ("input_ids", {}),
        ("input_ids_len128", {"max_length": 128}),
        ("input_ids_keep_unk", {"unknown": "keep"}),
    ],
)
def test_tokens_are_the_official_ones(shared, recorded, array, options):
    cells = ad.read_h5ad(shared / "parity" / "input.h5ad")
    model = TGPT.from_checkpoint(shared / "parity" / "tgpt" / "checkpoint", recipe="official", **options)
    found = tokens_of(model, cells.X, Genes.from_names(cells.var_names)).padded(0)
    expected = recorded[array]
    np.testing.assert_array_equal(found, expected[:, : found.shape[1]])
    assert not expected[:, found.shape[1] :].any()


@pytest.mark.parametrize("token_type", [False, True])
@pytest.mark.parametrize("cell", [0, 5])
def test_hidden_states_are_the_official_ones(shared, recorded, cell, token_type):
    model = TGPT.from_checkpoint(shared / "parity" / "tgpt" / "checkpoint", token_type=token_type)
    ids = torch.from_numpy(recorded["input_ids"][[cell]].astype(np.int64))
    with torch.inference_mode():
        states = model.network.states(ids, every=True)
        found = {"embeddings": states[0], "layer1": states[1], "last": model.network.norm(states[-1])}
    for name, state in found.items():
        expected = recorded[f"hidden_cell{cell}_{name}{'_token_type' if token_type else ''}"]
        np.testing.assert_allclose(state[0].numpy(), expected, rtol=0, atol=1e-5)


def test_network_equals_the_library_model(model):
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(
        vocab_size=len(model.vocabulary) + 4, n_positions=128, n_embd=16, n_layer=2, n_head=4, use_cache=False
    )
    reference = GPT2Model(config).eval()
    tensors = {k.removeprefix("transformer."): v for k, v in official_tensors(model).items()}
    kept = {k: v for k, v in tensors.items() if not k.endswith((".attn.bias", ".masked_bias", "lm_head.weight"))}
    reference.load_state_dict(kept)
    tokens = tokens_of(model, small_counts(), GENES)
    ids = torch.from_numpy(tokens.padded(0).astype(np.int64))
    attended = torch.arange(ids.shape[1]) < torch.from_numpy(tokens.lengths)[:, None]
    with torch.no_grad():
        last = reference(ids, attention_mask=attended.long(), token_type_ids=torch.zeros_like(ids)).last_hidden_state
    expected = [last[i, 1 : n - 1].mean(0).numpy() for i, n in enumerate(tokens.lengths)]
    np.testing.assert_allclose(embed(model, small_counts(), GENES), np.stack(expected), rtol=1e-4, atol=1e-5)


# Tokens


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), max_length=st.integers(3, 40), ties=st.sampled_from(["vocabulary", "column"]))
def test_tokens_are_the_highest_genes(seed, max_length, ties):
    rng = np.random.default_rng(seed)
    names = rng.permutation(N_GENES)
    genes = Genes.from_names([f"GENE{i}" for i in names])
    X = rng.poisson(0.7, (4, N_GENES)).astype(np.float32)
    model = TGPT.random(GENES, max_length=max_length, ties=ties)
    tokens = tokens_of(model, X, genes)
    for i in range(len(X)):
        tie = [model.vocabulary[n] for n in genes.names] if ties == "vocabulary" else list(range(N_GENES))
        order = sorted(np.flatnonzero(X[i]), key=lambda j: (-X[i, j], tie[j]))[: max_length - 2]
        expected = [1, *(model.vocabulary[genes.names[j]] for j in order), 2]
        assert tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]].tolist() == expected


def test_symbols_with_dashes_and_dots_are_found():
    model = TGPT.random(Genes.from_names(["HLA-DRA", "AC119396.1"]))
    assert {"HLA_DRA", "AC119396_1"} == set(model.vocabulary)
    assert model.align(Genes.from_names(["AC119396.1", "HLA-DRA", "OTHER"])).genes.tolist() == ["AC119396_1", "HLA_DRA"]


def test_genes_outside_the_pretraining_can_be_left_out():
    names = ["RPL13A", "RPS4Y1", "RPLP0", "RPSA", "RPL7L1", "RPS27", "MALAT1", "NEAT1", "RPS6KA1", "RPE", "ACTB"]
    genes = Genes.from_names(names)
    kept = TGPT.random(genes, exclude_ribosomal=True).align(genes).genes
    assert set(kept) == {"RPS6KA1", "RPE", "ACTB"}
    assert set(TGPT.random(genes).align(genes).genes) == set(names)


def test_default_ignores_the_column_order_and_the_recipe_does_not(model):
    X, order = small_counts(), np.random.default_rng(0).permutation(N_GENES)
    shuffled = Genes.from_names(GENES.names[order])
    np.testing.assert_allclose(embed(model, X[:, order], shuffled), embed(model, X, GENES), rtol=1e-5, atol=1e-6)
    literal = TGPT.random(GENES, recipe="official", max_length=10)
    assert np.abs(embed(literal, X[:, order], shuffled) - embed(literal, X, GENES)).max() > 1e-3


def test_pads_enter_the_mean_only_in_the_literal_recipe(model):
    X = small_counts()
    literal = TGPT.random(GENES, recipe="scdrugmap")
    ids = tokens_of(literal, X, GENES).padded(0)
    ids = np.pad(ids, ((0, 0), (0, 64 - ids.shape[1])))
    with torch.no_grad():
        expected = literal.network.norm(literal.network.states(torch.from_numpy(ids.astype(np.int64)))[-1]).mean(1)
    np.testing.assert_allclose(embed(literal, X, GENES), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_more_tokens_than_positions_raise():
    with pytest.raises(InputError, match=r"max_length.*at most 128"):
        TGPT.random(GENES, max_length=129)


def test_golden_numbers(model):
    stored = json.loads(Path(__file__).with_name("golden").joinpath("tgpt.json").read_text())
    np.testing.assert_allclose(embed(model, small_counts(), GENES), stored["embedding"], rtol=1e-4, atol=1e-6)


# Checkpoint files


@pytest.mark.parametrize("form", ["bin", "safetensors", "no prefix", "file"])
def test_reads_the_official_layout(model, folder, form):
    if form == "safetensors":
        from safetensors.torch import save_file

        save_file(official_tensors(model), folder / "model.safetensors")
        (folder / "pytorch_model.bin").unlink()
    elif form == "no prefix":
        bare = {k.removeprefix("transformer."): v for k, v in official_tensors(model).items() if "lm_head" not in k}
        torch.save(bare, folder / "pytorch_model.bin")
    loaded = TGPT.from_checkpoint(folder / "pytorch_model.bin" if form == "file" else folder)
    np.testing.assert_array_equal(embed(loaded, small_counts(), GENES), embed(model, small_counts(), GENES))
    assert len(loaded.digests) == 3 and not loaded.network.training


def rewrite(folder, change):
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    change(tensors)
    torch.save(tensors, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("transformer.h.1.attn.c_attn.bias"), r"lacks blocks\.1\.attention\.k_proj\.bias"),
        (lambda t: t.update({"transformer.extra": torch.zeros(1)}), "unexpected extra"),
        (lambda t: t.update({"transformer.wte.weight": torch.zeros(5, 16)}), r"mis-shaped wte\.weight \(5, 16\)"),
    ],
)
def test_every_tensor_is_accounted_for(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=message):
        TGPT.from_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "pytorch_model.bin"])
def test_missing_files_are_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        TGPT.from_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "pytorch_model.bin"])
def test_truncated_files_are_named(folder, name):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        TGPT.from_checkpoint(folder)


def test_another_vocabulary_raises(folder):
    words = json.loads((folder / "tokenizer.json").read_text())
    words["model"]["vocab"]["ONEMORE"] = len(words["model"]["vocab"])
    (folder / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(CheckpointError, match="vocab_size"):
        TGPT.from_checkpoint(folder)


@pytest.mark.parametrize("change", [{"activation_function": "relu"}, {"scale_attn_by_inverse_layer_idx": True}])
def test_another_architecture_raises(folder, change):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=next(iter(change))):
        TGPT.from_checkpoint(folder)


def test_official_size():
    with torch.device("meta"):
        from scdrugmap.models.tgpt import _OFFICIAL

        words = {w: i for i, w in enumerate(["<pad>", "</b>", "</s>", "<unk>"])}
        network = TGPT(_OFFICIAL, words).network
    assert sum(p.numel() for p in network.parameters()) == TGPT.card.n_parameters
