"""scBERT: tokens, states, checkpoint files."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from scdrugmap._device import Engine
from scdrugmap._errors import CheckpointError
from scdrugmap.embedding.embed import embed_counts
from scdrugmap.embedding.source import CountSource
from scdrugmap.genes import Genes
from scdrugmap.models import scbert
from scdrugmap.models.kit.counts import Counts
from scdrugmap.models.scbert import ScBERT

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


def sequences(model, tokens):
    out = np.zeros((len(tokens), model.network.length), dtype=np.int8)
    out[tokens.positions()[0], tokens.ids] = tokens.values
    return out


def official_tensors(model):
    """The weights under the names of the official file, with its heads and counter."""
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
    out["to_out.weight"], out["to_out.bias"] = torch.zeros(7, 16), torch.zeros(7)
    return {k: v.clone() for k, v in out.items()}


def write(folder, tensors, genes):
    torch.save({"epoch": 1, "model_state_dict": tensors, "losses": [0.1]}, folder / "panglao_pretrain.pth")
    (folder / "genes.txt").write_text("\n".join(genes) + "\n")


@pytest.fixture(scope="module")
def model():
    return ScBERT.random(GENES)


@pytest.fixture
def folder(model, tmp_path):
    write(tmp_path, official_tensors(model), model.vocabulary)
    return tmp_path


# The official implementation


@pytest.fixture(scope="module")
def recorded(shared):
    return np.load(shared / "parity" / "scbert" / "expected.npz")


@pytest.fixture(scope="module")
def cells(shared):
    adata = ad.read_h5ad(shared / "parity" / "input.h5ad")
    return adata.X, Genes.from_names(adata.var_names)


def official(shared, **options):
    return ScBERT.from_checkpoint(shared / "parity" / "scbert" / "checkpoint", **options)


def test_tokens_are_the_official_ones(shared, recorded, cells):
    loaded = official(shared)
    assert list(loaded.vocabulary) == recorded["genes"].tolist()
    np.testing.assert_array_equal(sequences(loaded, tokens_of(loaded, *cells)), recorded["tokens"])


@pytest.mark.parametrize("cell", [0, 1])
def test_states_are_the_official_ones(shared, recorded, cells, cell):
    loaded = official(shared, recipe="scdrugmap")
    batch = loaded.collate(tokens_of(loaded, *cells).take(np.array([cell])))
    rows = torch.from_numpy(recorded[f"hidden_cell{cell}_positions"].astype(np.int64))

    def compare(x, name):
        # Values reach 8 and the official float32 sums over 8,001 positions are themselves 1e-5 off.
        np.testing.assert_allclose(x[0, rows], recorded[f"hidden_cell{cell}_{name}"], rtol=0, atol=2e-5)

    with torch.no_grad():
        x = loaded.network.embed(batch)
        compare(x, "embedding")
        for i, block in enumerate(loaded.network.blocks):
            attended = block.attention(block.norm1(x))
            compare(attended, f"attn{i}_out")
            y = block.feed_forward(x + attended)
            compare(y - (x + attended), f"ff{i}_out")
            x = block(x)
            torch.testing.assert_close(x, y, rtol=0, atol=1e-5)
        compare(loaded.network.norm(x), "encodings")


@pytest.mark.parametrize(
    ("array", "options"),
    [
        ("cell_embedding", {"recipe": "scdrugmap"}),
        ("cell_embedding_6000", {"max_length": 6000}),
        ("cell_embedding_full", {}),
        ("cell_embedding_full", {"recipe": "official"}),
    ],
)
def test_embeddings_are_the_official_ones(shared, recorded, cells, array, options):
    values = embed(official(shared, **options), *cells)
    np.testing.assert_allclose(values, recorded[array], rtol=0, atol=1e-5)


# Tokens


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, N_GENES))
def test_tokens_equal_a_dense_computation(seed, length):
    rng = np.random.default_rng(seed)
    dense = rng.poisson(rng.gamma(0.3, 3.0, (4, N_GENES)))
    model = ScBERT.random(GENES, max_length=length)
    tokens = tokens_of(model, dense, GENES)
    totals = np.maximum(dense.sum(1, keepdims=True), 1)
    exact = np.log2(1 + dense / totals * 1e4)[:, :length]
    found = sequences(model, tokens)
    # At the edge of a bin float32 decides.
    inside = np.abs(exact - np.rint(exact)) > 1e-5
    np.testing.assert_array_equal(found[:, :length][inside], np.minimum(np.trunc(exact), 5)[inside])
    assert (found[:, length] == 0).all()
    np.testing.assert_array_equal(tokens.usable, (dense[:, :length] > 0).any(1))


def test_cells_share_the_first_layer(model):
    wide = Genes.from_names([f"GENE{i:03d}" for i in range(400)])
    model = ScBERT.random(wide)
    X = np.zeros((4, 400))
    X[:, :80] = small_counts(4).toarray()
    X[3, 3:] = 0
    batch = model.collate(tokens_of(model, X, wide))
    with torch.no_grad():
        shared_rows = model.network.first_shared(batch)
        plain = model.network.blocks[0](model.network.embed(batch))
        torch.testing.assert_close(shared_rows, plain, rtol=0, atol=3e-6)
    together, alone = embed(model, X, wide), embed(model, X, wide, batch_size=1)
    np.testing.assert_allclose(together, alone, rtol=0, atol=3e-6)


def test_batches_hold_cells_of_like_sparsity(model):
    X = np.ones((40, N_GENES))
    for i in range(40):
        X[i, : (i * 7) % 40] = 0
    tokens = tokens_of(model, X, GENES)
    plan = model.plan(tokens, 5 * (N_GENES + 1), None)
    assert sorted(np.concatenate(plan).tolist()) == list(range(40)) and max(map(len, plan)) == 5
    lengths = [tokens.lengths[b] for b in plan]
    assert all(a.min() >= b.max() for a, b in pairwise(lengths))


def test_the_position_after_the_genes_moves_with_the_length():
    """Cut to 50 genes, the last position has bin 0 and the row of gene 50, whatever the cell expresses there."""
    model, X = ScBERT.random(GENES, max_length=50), small_counts().toarray() + 1
    batch = model.collate(tokens_of(model, X, GENES))
    last = model.network.embed(batch)[:, -1]
    expected = model.network.token.weight[0] + model.network.position.weight[50]
    torch.testing.assert_close(last, expected.expand(len(X), -1))


def test_pooling_over_expressed_genes(model):
    X, pooled = small_counts(), ScBERT.random(GENES, pooling="expressed")
    tokens = tokens_of(pooled, X, GENES)
    with torch.no_grad():
        x = model.network.embed(model.collate(tokens))
        for block in model.network.blocks:
            x = block(x)
        states = model.network.norm(x).numpy()
    expected = [states[i, t.ids].mean(0) for i in range(len(tokens)) for t in [tokens.take(np.array([i]))]]
    np.testing.assert_allclose(embed(pooled, X, GENES), expected, rtol=0, atol=1e-5)


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
    for path in (folder, folder / "panglao_pretrain.pth"):
        loaded = ScBERT.from_checkpoint(path)
        np.testing.assert_array_equal(embed(loaded, X, GENES), embed(model, X, GENES))
        assert set(loaded.digests) == {"panglao_pretrain.pth", "genes.txt"}


@pytest.mark.parametrize("layout", ["group", "compound"])
def test_the_gene_order_may_come_from_an_h5ad_file(model, folder, layout):
    (folder / "genes.txt").unlink()
    names = np.array(list(model.vocabulary), dtype="S8")
    with h5py.File(folder / "panglao_10000.h5ad", "w") as file:
        if layout == "compound":
            file["var"] = np.array([(n, 1) for n in names], dtype=[("index", "S8"), ("n_cells", "i4")])
        else:
            var = file.create_group("var")
            var.attrs["_index"] = "gene"
            var["gene"] = names
    loaded = ScBERT.from_checkpoint(folder)
    assert loaded.vocabulary == model.vocabulary


@pytest.mark.parametrize("name", ["panglao_pretrain.pth", "genes.txt"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name.split(".")[0]):
        ScBERT.from_checkpoint(folder)


def test_a_truncated_file_is_refused(folder):
    file = folder / "panglao_pretrain.pth"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"panglao_pretrain\.pth"):
        ScBERT.from_checkpoint(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("norm.bias", None, r"lacks norm\.bias"),
        ("token_emb.weight", None, r"lacks token\.weight"),
        ("performer.net.layers.1.0.fn.fast_attention.projection_matrix", None, "projection"),
        ("performer.net.layers.1.0.fn.to_q.bias", torch.zeros(16), "unexpected"),
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
        ScBERT.from_checkpoint(folder)


@pytest.mark.parametrize("change", ["short", "repeated"])
def test_a_gene_order_of_another_model_is_refused(model, folder, change):
    genes = list(model.vocabulary)
    write(folder, official_tensors(model), genes[:-1] if change == "short" else [*genes[:-1], genes[0]])
    with pytest.raises(CheckpointError, match=f"exactly the {N_GENES} genes"):
        ScBERT.from_checkpoint(folder)


def test_a_file_without_weights_is_refused(folder):
    torch.save({"epoch": 1}, folder / "panglao_pretrain.pth")
    with pytest.raises(CheckpointError, match="model_state_dict"):
        ScBERT.from_checkpoint(folder)


def test_fine_tuned_checkpoints_of_other_savers_load(model, folder):
    tensors = {f"module.{k}": v for k, v in official_tensors(model).items() if not k.startswith("to_out")}
    tensors |= {"module.to_out.conv1.weight": torch.zeros(1, 1, 1, 16), "module.to_out.fc1.bias": torch.zeros(4)}
    write(folder, tensors, model.vocabulary)
    np.testing.assert_array_equal(
        embed(ScBERT.from_checkpoint(folder), small_counts(), GENES), embed(model, small_counts(), GENES)
    )


def test_the_card_states_the_official_sizes():
    with torch.device("meta"):
        network = scbert.ScBERTNetwork(scbert._OFFICIAL, 16_907)
    assert sum(p.numel() for p in network.parameters()) == ScBERT.card.n_parameters


def test_golden_numbers(model):
    stored = json.loads((Path(__file__).parent / "golden" / "scbert.json").read_text())
    np.testing.assert_allclose(embed(model, small_counts(), GENES), stored["embedding"], rtol=1e-4, atol=1e-5)
