"""Llama as an embedder: sentences, tokens, states, checkpoint files."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from scdrugmap._device import Engine
from scdrugmap._errors import CheckpointError, InputError, ScDrugMapWarning
from scdrugmap.embedding.embed import embed_counts
from scdrugmap.embedding.source import CountSource
from scdrugmap.genes import Genes
from scdrugmap.models.kit.counts import Counts
from scdrugmap.models.llama import Llama, LlamaNetwork

N_GENES = 40
GENES = Genes.from_names([f"GENE{i}" for i in range(N_GENES)])


def small_counts(n=5, k=N_GENES):
    i, j = np.arange(n)[:, None], np.arange(k)[None, :]
    return sparse.csr_matrix(np.clip((7 * i + 13 * j + i * j) % 19 - 8 - i, 0, None).astype(np.float32))


def tokens_of(model, X, genes):
    matched = model.align(genes)
    return model.tokenize(
        Counts(matched.apply(sparse.csr_matrix(X)), matched.ids, matched.genes, np.arange(X.shape[0]))
    )


def embed(model, X, genes):
    return embed_counts(model, CountSource(X), genes, Engine("cpu", "float32", progress=False)).values


def rows_of(tokens):
    return [part.tolist() for part in np.split(tokens.ids, tokens.offsets[1:-1])]


@pytest.fixture(scope="module")
def model():
    return Llama.random(GENES)


@pytest.fixture
def folder(model, tmp_path):
    model.network.decoder.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    return tmp_path


# The official implementation


@pytest.fixture(scope="module")
def recorded(shared):
    return np.load(shared / "parity" / "llama" / "expected.npz")


@pytest.fixture(scope="module")
def official(shared):
    return Llama.from_checkpoint(shared / "parity" / "llama" / "checkpoint", recipe="official")


def test_tokens_are_the_official_ones(shared, recorded, official):
    cells = ad.read_h5ad(shared / "parity" / "input.h5ad")
    tokens = tokens_of(official, cells.X, Genes.from_names(cells.var_names))
    np.testing.assert_array_equal(tokens.ids, recorded["input_ids"])
    np.testing.assert_array_equal(tokens.offsets, recorded["input_ids_indptr"])
    for cell in range(3):
        text = official.tokenizer.decode(rows_of(tokens)[cell], skip_special_tokens=True)
        assert text == str(recorded[f"sentence_{cell}"])


def test_tokens_of_the_published_code_are_the_official_ones(shared, recorded):
    cells = ad.read_h5ad(shared / "parity" / "input.h5ad")
    model = Llama.from_checkpoint(shared / "parity" / "llama" / "checkpoint", recipe="scdrugmap")
    tokens = tokens_of(model, cells.X[:4], Genes.from_names(cells.var_names))
    np.testing.assert_array_equal(tokens.padded(), recorded["code_input_ids"])


@pytest.mark.parametrize("which", [0, 1])
def test_hidden_states_are_the_official_ones(recorded, official, which):
    cell, starts = recorded["debug_cells"][which], recorded["input_ids_indptr"]
    ids = torch.from_numpy(recorded["input_ids"][None, starts[cell] : starts[cell + 1]].astype(np.int64))
    with torch.inference_mode():
        states = official.network.decoder(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    for layer, state in enumerate(states):
        expected = recorded[f"debug{which}_hidden{layer}"]
        np.testing.assert_allclose(state[0, : len(expected)].numpy(), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("pooling", ["mean", "mean_no_bos", "last"])
def test_batches_equal_single_cells(model, pooling):
    chosen = Llama(model.network.decoder, model.tokenizer, pooling=pooling)
    found = embed(chosen, small_counts(), GENES)
    for i, ids in enumerate(rows_of(tokens_of(chosen, small_counts(), GENES))):
        with torch.no_grad():
            last = model.network.decoder(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
        expected = {"mean": last.mean(0), "mean_no_bos": last[1:].mean(0), "last": last[-1]}[pooling]
        np.testing.assert_allclose(found[i], expected.numpy(), rtol=1e-4, atol=1e-5)


# Sentences

SYMBOLS = ["TP53", "HLA-DRB1", "MT-CO1", "5S_rRNA", "7SK", "C1orf112", "AC119396.1", "A'S", "gene/b", "Å", "T"]


@settings(max_examples=80, deadline=None)
@given(
    names=st.lists(
        st.one_of(st.sampled_from(SYMBOLS), st.text("AB1.-_'sé/", min_size=1, max_size=6)),
        min_size=1,
        max_size=12,
        unique=True,
    ),
    seed=st.integers(0, 2**32 - 1),
    max_tokens=st.integers(2, 60),
    max_genes=st.integers(1, 12),
)
def test_sentences_are_cut_as_the_whole_text_is(names, seed, max_tokens, max_genes):
    array = np.array(names, dtype=object)
    genes = Genes(array, array.astype(str), np.full(len(names), "", dtype=object))
    X = np.random.default_rng(seed).poisson(0.8, (4, len(names))).astype(np.float32)
    model = Llama.random(genes, max_tokens=max_tokens, max_genes=max_genes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = rows_of(tokens_of(model, X, genes))
    for i in range(len(X)):
        order = sorted(np.flatnonzero(X[i]), key=lambda j: (-X[i, j], names[j]))[:max_genes]
        text = " ".join(names[j] for j in order)
        assert found[i] == model.tokenizer(text)["input_ids"][:max_tokens]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), max_tokens=st.integers(2, 80), k=st.integers(1, 12))
def test_the_code_writes_every_column_with_its_value(seed, max_tokens, k):
    names = [f"G{chr(65 + i)}{i * 37}" for i in range(k)]
    X = np.random.default_rng(seed).choice([0, 0, 1, 12, 1234], (3, k)).astype(np.float32)
    model = Llama.random(GENES, recipe="scdrugmap", max_tokens=max_tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = rows_of(tokens_of(model, X, Genes.from_names(names)))
    for i in range(len(X)):
        text = "".join(f"{n}{int(v)} " for n, v in zip(names, X[i], strict=True))
        assert found[i] == model.tokenizer(text)["input_ids"][:max_tokens]


def test_a_tokenizer_that_merges_across_spaces_reads_whole_sentences(model):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    space = "Ġ"
    raw = Tokenizer(models.BPE(vocab={**alphabet, f"0{space}": 256}, merges=[("0", space)]))
    raw.add_special_tokens(["<b>"])
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    merging = Llama(model.network.decoder, PreTrainedTokenizerFast(tokenizer_object=raw), ties="column")
    merging.begin = [257]
    X = np.ones((2, 3), dtype=np.float32)
    genes = Genes.from_names(["A0", "B0", "C"])
    assert rows_of(tokens_of(merging, X, genes)) == [[257, *raw.encode("A0 B0 C", add_special_tokens=False).ids]] * 2
    assert 256 in tokens_of(merging, X, genes).ids


def test_default_ignores_the_column_order_and_the_recipe_does_not(model):
    order = np.random.default_rng(0).permutation(N_GENES)
    X, shuffled = small_counts(), Genes.from_names(GENES.names[order])
    np.testing.assert_allclose(embed(model, X[:, order], shuffled), embed(model, X, GENES), rtol=1e-5, atol=1e-6)
    literal = Llama.random(GENES, recipe="official")
    assert np.abs(embed(literal, X[:, order], shuffled) - embed(literal, X, GENES)).max() > 1e-3


def test_an_empty_cell_is_nan_or_the_begin_token(model):
    X = small_counts().tolil()
    X[1] = 0
    X = X.tocsr()
    assert np.isnan(embed(model, X, GENES)[1]).all()
    literal = Llama.random(GENES, empty="bos")
    with pytest.warns(ScDrugMapWarning, match="1 cells without counts"):
        found = embed(literal, X, GENES)
    begin = torch.tensor([model.begin])
    with torch.no_grad():
        expected = model.network.decoder(input_ids=begin, use_cache=False).last_hidden_state[0, 0]
    np.testing.assert_allclose(found[1], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_cut_sentences_and_ensembl_names_are_reported():
    with pytest.warns(ScDrugMapWarning, match="5 of 5 sentences are longer than max_tokens=10"):
        tokens_of(Llama.random(GENES, max_tokens=10), small_counts(), GENES)
    ensembl = Genes.from_names([f"ENSG{i:011d}" for i in range(N_GENES)])
    with pytest.warns(ScDrugMapWarning, match="100% of the names are Ensembl ids"):
        tokens_of(Llama.random(GENES, names="var_names"), small_counts(), ensembl)
    with pytest.raises(InputError, match="harmonize_genes"):
        tokens_of(Llama.random(GENES), small_counts(), ensembl)


def test_longer_than_the_context_raises():
    with pytest.raises(InputError, match=r"max_tokens.*at most 8192"):
        Llama.random(GENES, max_tokens=8193)


def test_golden_numbers(model):
    stored = json.loads(Path(__file__).with_name("golden").joinpath("llama.json").read_text())
    np.testing.assert_allclose(embed(model, small_counts(), GENES), stored["embedding"], rtol=1e-4, atol=1e-6)


# Checkpoint files


@pytest.mark.parametrize("shard", [None, "20KB"])
def test_reads_one_file_and_shards(model, folder, shard):
    if shard:
        (folder / "model.safetensors").unlink()
        model.network.decoder.save_pretrained(folder, max_shard_size=shard)
        assert len(list(folder.glob("model-*.safetensors"))) > 1
    loaded = Llama.from_checkpoint(folder)
    np.testing.assert_array_equal(embed(loaded, small_counts(), GENES), embed(model, small_counts(), GENES))
    assert not loaded.network.training and "tokenizer.json" in loaded.digests


def test_reads_the_weights_as_float32_unless_asked(model, folder):
    loaded = Llama.from_checkpoint(folder, weights="bfloat16")
    assert next(loaded.network.parameters()).dtype == torch.bfloat16
    half, full = embed(loaded, small_counts(), GENES), embed(model, small_counts(), GENES)
    assert half.dtype == np.float32
    cosine = (half * full).sum(1) / np.linalg.norm(half, axis=1) / np.linalg.norm(full, axis=1)
    assert cosine.min() > 0.999
    loaded.network.decoder.save_pretrained(folder)
    assert next(Llama.from_checkpoint(folder).network.parameters()).dtype == torch.float32


def test_the_head_is_left_out_and_other_tensors_raise(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    # A causal language model holds its decoder under ``model.``.
    causal = {f"model.{k}": v for k, v in tensors.items()} | {"lm_head.weight": torch.zeros(320, 32)}
    save_file(causal, folder / "model.safetensors", metadata={"format": "pt"})
    assert Llama.from_checkpoint(folder).dim == 32
    save_file(
        causal | {"model.layers.0.extra": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(CheckpointError, match=r"unexpected.*extra"):
        Llama.from_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layers.1.self_attn.k_proj.weight"), r"lacks.*layers\.1\.self_attn\.k_proj\.weight"),
        (lambda t: t.update({"embed_tokens.weight": torch.zeros(7, 32)}), r"mis-shaped.*embed_tokens"),
    ],
)
def test_every_tensor_is_accounted_for(folder, change, message):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        Llama.from_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("how", ["missing", "truncated"])
def test_missing_and_truncated_files_raise(folder, name, how):
    whole = (folder / name).read_bytes()
    (folder / name).unlink()
    if how == "truncated":
        (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.") if how == "missing" else "Fix"):
        Llama.from_checkpoint(folder)


def test_a_missing_shard_is_named(model, folder):
    (folder / "model.safetensors").unlink()
    model.network.decoder.save_pretrained(folder, max_shard_size="20KB")
    shard = max(folder.glob("model-*.safetensors"))
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        Llama.from_checkpoint(folder)


def test_another_architecture_raises(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(CheckpointError, match="model_type"):
        Llama.from_checkpoint(folder)


def test_official_size():
    from transformers import AutoModel, LlamaConfig

    from scdrugmap.models.llama import _OFFICIAL

    with torch.device("meta"):
        network = LlamaNetwork(AutoModel.from_config(LlamaConfig(**_OFFICIAL)))
    assert sum(p.numel() for p in network.parameters()) == Llama.card.n_parameters
