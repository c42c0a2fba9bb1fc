"""CellLM: tokens, states, checkpoint files."""

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
from scdrugmap.models import celllm
from scdrugmap.models.celllm import CellLM
from scdrugmap.models.kit.counts import Counts

N_GENES = 80
GENES = Genes.from_names([f"GENE{i:02d}" for i in range(N_GENES)])
PARTS = {
    "norm1": "0.norm",
    "attention.q_proj": "0.fn.to_q",
    "attention.k_proj": "0.fn.to_k",
    "attention.v_proj": "0.fn.to_v",
    "attention.out_proj": "0.fn.to_out",
    "norm2": "1.norm",
    "linear1": "1.fn.fn.w1",
    "linear2": "1.fn.fn.w2",
}
STRUCTURE = {
    "name": "celllm",
    "num_tokens": 8,
    "dim": 16,
    "depth": 2,
    "max_seq_len": 256,
    "gene_num": N_GENES,
    "heads": 2,
    "dim_head": 8,
    "ckpt_path": "checkpoint4_fixed.pth",
    "param_key": "model_state_dict",
}


def small_counts(n=6, k=N_GENES):
    i, j = np.arange(n)[:, None], np.arange(k)[None, :]
    return sparse.csr_matrix(np.clip((7 * i + 13 * j + i * j) % 17 - 5 - i, 0, None).astype(np.float32))


def tokens_of(model, X, genes):
    matched = model.align(genes)
    return model.tokenize(
        Counts(matched.apply(sparse.csr_matrix(X)), matched.ids, matched.genes, np.arange(X.shape[0]))
    )


def embed(model, X, genes, **options):
    source = CountSource(X)
    engine = Engine("cpu", "float32", options.pop("batch_size", None), progress=False)
    return embed_counts(model, source, genes, engine, **options).values


def official_tensors(model):
    """The weights under the names of the official file, with its head and counter."""
    out = {}
    for key, tensor in model.network.state_dict().items():
        block, _, rest = key.removeprefix("blocks.").partition(".")
        part, _, kind = rest.rpartition(".")
        if part in PARTS:
            key = f"performer.net.layers.{block}.{PARTS[part]}.{kind}"
        elif rest == "attention.projection":
            key = f"performer.net.layers.{block}.0.fn.fast_attention.projection_matrix"
        out[{"token.weight": "token_emb.weight", "position.weight": "pos_emb.emb.weight"}.get(key, key)] = tensor
    out["pos_emb.emb.weight"] = out["pos_emb.emb.weight"].double()
    out["performer.calls_since_last_redraw"] = torch.tensor(3)
    out["to_out.weight"], out["to_out.bias"] = torch.zeros(8, 16), torch.zeros(8)
    return {k: v.clone() for k, v in out.items()}


def write(folder, tensors, genes, **changes):
    torch.save({"epoch": 1, "model_state_dict": tensors}, folder / "checkpoint4_fixed.pth")
    (folder / "gene_order.txt").write_text("\n".join(genes) + "\n")
    config = {"model": "celllm", "network": {"structure": STRUCTURE | changes}}
    (folder / "cellLM.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def model():
    return CellLM.random(GENES)


@pytest.fixture
def folder(model, tmp_path):
    write(tmp_path, official_tensors(model), model.vocabulary)
    return tmp_path


# The official implementation


@pytest.fixture(scope="module")
def recorded(shared):
    return np.load(shared / "parity" / "celllm" / "expected.npz")


@pytest.fixture(scope="module")
def cells(shared):
    adata = ad.read_h5ad(shared / "parity" / "input.h5ad")
    return adata.X, Genes.from_names(adata.var_names)


def official(shared, **options):
    return CellLM.from_checkpoint(shared / "parity" / "celllm" / "checkpoint", **options)


@pytest.mark.parametrize(("array", "options"), [("tokens", {}), ("tokens_ln", {"log_base": "e"})])
def test_tokens_are_the_official_ones(shared, recorded, cells, array, options):
    tokens = tokens_of(official(shared, **options), *cells)
    np.testing.assert_array_equal(tokens.offsets, recorded["offsets"])
    np.testing.assert_array_equal(tokens.ids, recorded["gene_ids"])
    np.testing.assert_array_equal(tokens.values, recorded[array])


@pytest.mark.parametrize("cell", [0, 4])
def test_states_are_the_official_ones(shared, recorded, cells, cell):
    network = (loaded := official(shared)).network
    batch = loaded.collate(tokens_of(loaded, *cells).take(np.array([cell])))

    def compare(x, name):
        np.testing.assert_allclose(x, recorded[f"dbg_cell{cell}_{name}"], rtol=0, atol=2e-5)

    with torch.no_grad():
        keys, values = network.weights(batch)
        x = network.embed(batch)
        compare(x[0, 1:], "embedding_sum")
        first = network.blocks[0]
        compare((x + first.attention(first.norm1(x), keys, values))[0, 1:], "after_attention_layer0")
        x = first(x, keys, values)
        compare(x[0, 1:], "after_layer0")
        compare(x[0, 0], "pad_row_after_layer0")
        compare(network.norm(network.blocks[1](x, keys, values))[0, 1:], "encoder_output")


@pytest.mark.parametrize(
    ("array", "options"),
    [
        ("cell_embedding", {"pooling": "mean_padded"}),
        ("cell_embedding", {"recipe": "scdrugmap", "max_length": 1000}),
        ("cell_embedding_mean_valid", {}),
        ("cell_embedding_mean_valid", {"recipe": "official"}),
        ("cell_embedding_cls", {"pooling": "cls"}),
        ("cell_embedding_ln", {"pooling": "mean_padded", "log_base": "e"}),
        ("cell_embedding_ln_mean_valid", {"log_base": "e"}),
    ],
)
def test_embeddings_are_the_official_ones(shared, recorded, cells, array, options):
    values = embed(official(shared, **options), *cells)
    np.testing.assert_allclose(values, recorded[array], rtol=0, atol=2e-5)


# Tokens


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, N_GENES + 2))
def test_tokens_equal_a_plain_computation(seed, length):
    rng = np.random.default_rng(seed)
    dense = rng.poisson(rng.gamma(0.3, 3.0, (4, N_GENES)))
    model = CellLM.random(GENES, max_length=length, target_sum=500)
    tokens = tokens_of(model, dense, GENES)
    for i, counts in enumerate(dense):
        own = tokens.take(np.array([i]))
        genes = np.flatnonzero(counts)[: length - 1]
        exact = np.log2(1 + 500 * counts[genes] / max(counts.sum(), 1))
        inside = np.abs(exact - np.rint(exact)) > 1e-5
        assert own.ids.tolist() == [N_GENES, *genes]
        assert own.values[0] == 6
        np.testing.assert_array_equal(own.values[1:][inside], np.minimum(np.trunc(exact), 5)[inside])
        assert own.usable[0] == (counts.sum() > 0)


@pytest.mark.parametrize("pooling", ["mean", "mean_padded", "cls"])
def test_the_row_of_pads_equals_written_out_pads(model, pooling):
    """Every pad as a row of its own, without weights and tricks."""
    X, length = small_counts(), 100
    chosen = CellLM.random(GENES, max_length=length, pooling=pooling)
    tokens = tokens_of(chosen, X, GENES)
    n = len(tokens)
    genes, bins = np.full((n, length), chosen.pad), np.full((n, length), chosen.pad_bin)
    genes[tokens.positions()], bins[tokens.positions()] = tokens.ids, tokens.values
    real = torch.from_numpy(np.arange(length) < tokens.lengths[:, None]).float()
    with torch.no_grad():
        x = chosen.network.token(torch.from_numpy(bins)) + chosen.network.position(torch.from_numpy(genes))
        for block in chosen.network.blocks:
            x = block(x, torch.ones(n, length), real)
        x = chosen.network.norm(x) * real[..., None]
    expected = {"mean": x.sum(1) / real.sum(1, keepdim=True), "mean_padded": x.mean(1), "cls": x[:, 0]}[pooling]
    np.testing.assert_allclose(embed(chosen, X, GENES), expected, rtol=0, atol=3e-6)


def test_the_length_is_part_of_the_model():
    X = small_counts()
    short, long = (embed(CellLM.random(GENES, max_length=m), X, GENES) for m in (100, 1000))
    assert np.abs(short - long).max() > 1e-3


def test_truncated_cells_have_no_pads():
    model = CellLM.random(GENES, max_length=10)
    batch = model.collate(tokens_of(model, np.ones((2, N_GENES)), GENES))
    assert batch["genes"].shape == (2, 11)
    assert (batch["keys"][:, 0] == 0).all() and (batch["keys"][:, 1:] == 1).all()


def test_training_mode_gives_the_same_embedding(model):
    batch = model.collate(tokens_of(model, small_counts(), GENES))
    with torch.no_grad():
        quick = model.network(batch)
    torch.testing.assert_close(model.network(batch).detach(), quick, rtol=0, atol=3e-6)


def test_half_precision_stays_close(model):
    batch = model.collate(tokens_of(model, small_counts(), GENES))
    with torch.inference_mode():
        exact = model.network(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model.network(batch)
    assert rough.dtype == torch.float32
    assert torch.cosine_similarity(exact, rough).min() > 0.999


# Checkpoint files


def test_a_checkpoint_gives_the_model_back(model, folder):
    X = small_counts()
    for path in (folder, folder / "checkpoint4_fixed.pth", folder / "cellLM.json"):
        loaded = CellLM.from_checkpoint(path)
        np.testing.assert_array_equal(embed(loaded, X, GENES), embed(model, X, GENES))
        assert set(loaded.digests) == {"checkpoint4_fixed.pth", "gene_order.txt", "cellLM.json"}


def test_without_a_configuration_the_official_length_holds(folder):
    (folder / "cellLM.json").unlink()
    assert CellLM.from_checkpoint(folder).max_length == 6000


def test_the_configured_path_may_name_another_place(model, folder):
    write(folder, official_tensors(model), model.vocabulary, ckpt_path="./ckpts/cell_ckpts/celllm/ckpt.pth")
    with pytest.raises(CheckpointError, match=r"ckpt\.pth"):
        CellLM.from_checkpoint(folder)
    (folder / "checkpoint4_fixed.pth").rename(folder / "ckpt.pth")
    assert "ckpt.pth" in CellLM.from_checkpoint(folder).digests


@pytest.mark.parametrize("name", ["checkpoint4_fixed.pth", "gene_order.txt"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name.split(".")[0]):
        CellLM.from_checkpoint(folder)


def test_a_truncated_file_is_refused(folder):
    file = folder / "checkpoint4_fixed.pth"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"checkpoint4_fixed\.pth"):
        CellLM.from_checkpoint(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("norm.bias", None, r"lacks norm\.bias"),
        ("performer.net.layers.0.0.fn.fast_attention.projection_matrix", None, "projection"),
        ("surprise", torch.zeros(16), "unexpected surprise"),
        ("norm.weight", torch.zeros(3), "mis-shaped"),
    ],
)
def test_every_tensor_is_accounted_for(model, folder, key, value, message):
    tensors = official_tensors(model)
    tensors.pop(key, None)
    if value is not None:
        tensors[key] = value
    write(folder, tensors, model.vocabulary)
    with pytest.raises(CheckpointError, match=message):
        CellLM.from_checkpoint(folder)


def test_a_gene_order_of_another_model_is_refused(model, folder):
    write(folder, official_tensors(model), list(model.vocabulary)[:-1])
    with pytest.raises(CheckpointError, match=f"exactly the {N_GENES} genes"):
        CellLM.from_checkpoint(folder)


def test_a_configuration_of_another_model_is_refused(model, folder):
    write(folder, official_tensors(model), model.vocabulary, heads=4)
    with pytest.raises(CheckpointError, match="heads 4"):
        CellLM.from_checkpoint(folder)
    (folder / "cellLM.json").write_text("{}")
    with pytest.raises(CheckpointError, match="structure"):
        CellLM.from_checkpoint(folder)


def test_a_base_that_the_model_does_not_know_is_refused():
    with pytest.raises(InputError, match="log_base"):
        CellLM.random(GENES, log_base=10)


def test_the_card_states_the_official_sizes():
    with torch.device("meta"):
        network = celllm.CellLMNetwork(celllm._OFFICIAL, 6000)
    assert sum(p.numel() for p in network.parameters()) == CellLM.card.n_parameters


def test_golden_numbers(model):
    stored = json.loads((Path(__file__).parent / "golden" / "celllm.json").read_text())
    np.testing.assert_allclose(embed(model, small_counts(), GENES), stored["embedding"], rtol=1e-4, atol=1e-5)
