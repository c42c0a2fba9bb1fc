"""CellPLM: tokens, states and embeddings of the recorded run, groupings, draws, checkpoint files."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats

from scdrugmap._device import Engine
from scdrugmap._errors import CheckpointError, InputError
from scdrugmap.embedding.embed import embed_counts
from scdrugmap.embedding.source import CountSource
from scdrugmap.genes import Genes
from scdrugmap.models.cellplm import CellPLM, CellPLMNetwork, _log1p
from scdrugmap.models.kit.counts import Counts, uniforms
from scdrugmap.models.kit.flowformer import Projected

IDS = [f"ENSG{i:011d}" for i in range(60)]
GENES = Genes.from_names(IDS)
PREFIX = "20230926_85M"


def small_counts(n=9, k=60):
    i, j = np.arange(n)[:, None], np.arange(k)[None, :]
    return sparse.csr_matrix(np.clip((7 * i + 13 * j + i * j) % 17 - 9 - i % 3, 0, None).astype(np.float32))


def counts_of(model, X, genes=GENES, rows=None):
    matched = model.align(genes)
    rows = np.arange(X.shape[0]) if rows is None else rows
    return Counts(matched.apply(sparse.csr_matrix(X)), matched.ids, matched.genes, rows)


def embed(model, X, genes=GENES, **options):
    engine = Engine("cpu", "float32", options.pop("batch_size", None), progress=False)
    return embed_counts(model, CountSource(X), genes, engine, **options).values


def official_tensors(model):
    """The weights under the names of the official file, with everything that a loader has to leave aside."""
    own = model.network.state_dict()
    out = {"embedder.feat_enc.emb": torch.cat([v for k, v in own.items() if k.startswith("genes.")], dim=1)}
    qyx, qzyx = (f"latent.layers.1.inference.inference_{n}" for n in ("qyx", "qzyx"))
    pairs = {
        "embedder.extra_linear.0": "linear",
        "embedder.extra_linear.3": "norm",
        "pre_latent_norm.norm": "latent_norm",
    }
    pairs |= {f"{qyx}.0.logits": "latent.cluster", f"{qzyx}.0": "latent.hidden", f"{qzyx}.2.mu": "latent.mean"}
    for i in range(len(model.network.blocks)):
        new, old = f"encoder.layers.{i}", f"blocks.{i}"
        for word in ("query", "key", "value", "out"):
            short = word if word == "out" else word[0]
            pairs[f"{new}.self_attn.{word}_projection"] = f"{old}.attention.{short}_proj"
        pairs |= {f"{new}._ff_block.0": f"{old}.linear1", f"{new}._ff_block.3": f"{old}.linear2"}
        pairs |= {f"{new}.norm1": f"{old}.norm1", f"{new}.norm2": f"{old}.norm2"}
    for theirs, ours in pairs.items():
        out |= {f"{theirs}.{kind}": own[f"{ours}.{kind}"] for kind in ("weight", "bias")}
    unused = [f"{qzyx}.2.var.weight", "latent.layers.1.inference.y_mu.bias", "decoder.layers.0.0.weight"]
    unused += ["embedder.norm0.weight", "embedder.pe_enc.missing_pe", "embedder.pe_enc.pe_enc.weight"]
    return {k: v.clone() for k, v in out.items()} | {k: torch.zeros(3) for k in unused}


CONFIG = {
    "enc_mod": "flowformer", "enc_hid": 32, "enc_layers": 2, "latent_mod": "gmvae", "post_latent_dim": 24,
    "num_clusters": 16, "norm": "groupnorm", "model_dropout": 0.2, "dsbn": False, "input_covariate": False,
    "gene_list": IDS,
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return CellPLM.random(GENES)


@pytest.fixture
def folder(model, tmp_path):
    (tmp_path / f"{PREFIX}.config.json").write_text(json.dumps(CONFIG))
    torch.save({"model_state_dict": official_tensors(model), "epoch": 3}, tmp_path / f"{PREFIX}.best.ckpt")
    return tmp_path


# The recorded run of the official code


@pytest.fixture(scope="module")
def recorded(shared):
    cells = ad.read_h5ad(shared / "parity" / "input.h5ad")
    genes = Genes.from_names(cells.var_names, ensembl=cells.var["ensembl_id"])
    return cells.X, genes, shared / "parity/cellplm/checkpoint", np.load(shared / "parity/cellplm/expected.npz")


def test_recorded_tokens(recorded):
    X, genes, checkpoint, expected = recorded
    model = CellPLM.from_checkpoint(checkpoint)
    counts = counts_of(model, X, genes)
    tokens = model.tokenize(counts)
    # The recording keeps the columns of the input in their order, this package orders genes by vocabulary.
    theirs = sparse.csr_matrix(
        (expected["log1p_data"], expected["gene_rows"][expected["log1p_indices"]], expected["log1p_indptr"])
    )
    theirs.sort_indices()
    assert np.array_equal(tokens.offsets, theirs.indptr)
    assert np.array_equal(tokens.ids, theirs.indices)
    np.testing.assert_allclose(tokens.values, theirs.data, rtol=2e-7)


def test_recorded_states(recorded):
    X, genes, checkpoint, expected = recorded
    model = CellPLM.from_checkpoint(checkpoint)
    network, batch = model.network, model.collate(model.tokenize(counts_of(model, X, genes)))
    found = {}
    with torch.inference_mode():
        found["gene_sum"] = network.genes(batch["ids"], batch["values"], batch["offsets"])
        x = found["embedder_out"] = network.embed_genes(batch)
        attention = network.blocks[0].attention
        part = Projected(attention, network.blocks[0].norm1(x))
        flow = attention.gather(lambda: [part])
        source = attention.conserved_source(part.k, flow.sinks)
        sink = attention.conserved_sink(part.q, flow.sources)
        found["layer0_sink_incoming"] = attention.incoming(part.q, flow.keys)
        found["layer0_source_outgoing"] = attention.outgoing(part.k, flow.queries)
        found["layer0_conserved_sink"], found["layer0_conserved_source"] = sink, source
        found["layer0_sink_allocation"] = torch.sigmoid(sink)
        found["layer0_source_competition"] = source.clamp(-1, 1).exp() / flow.weight
        found["layer0_attn"] = attention.attend(part.q, flow)
        for i, block in enumerate(network.blocks):
            x = found[f"layer{i}_out"] = block(x)
        x = found["pre_latent"] = network.latent_norm(x)
        found["cluster_logits"] = network.latent.cluster(x)
        component = network.latent.component(x)
        hidden = torch.relu(network.latent.hidden(torch.cat([x, component.float()], 1)))
        found["q_hidden"] = hidden[:2]
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=0, atol=2e-4, err_msg=name)
    assert np.array_equal(component.argmax(1), expected["cluster"])


@pytest.mark.parametrize(
    ("array", "groups", "options"),
    [
        ("cell_embedding", None, {}),
        ("cell_embedding_two_batches", "batch_labels", {}),
        ("cell_embedding_chunk20", None, {"group_size": 20}),
        ("cell_embedding_single", None, {"group_size": 1}),
        ("cell_embedding_seed0", None, {"recipe": "official"}),
        ("cell_embedding_seed0", None, {"cluster": "sample", "uniforms": "gumbel_uniform_seed0"}),
    ],
)
@pytest.mark.parametrize("block_size", [2048, 9])
def test_recorded_embeddings(recorded, array, groups, options, block_size):
    X, genes, checkpoint, expected = recorded
    options = {k: expected[v] if k == "uniforms" else v for k, v in options.items()}
    labels = None if groups is None else expected[groups]
    found = embed(CellPLM.from_checkpoint(checkpoint, **options), X, genes, context=labels, block_size=block_size)
    np.testing.assert_allclose(found, expected[array], rtol=0, atol=5e-5)


def test_recorded_uniforms_are_the_stream(recorded):
    X, genes, checkpoint, expected = recorded
    model = CellPLM.from_checkpoint(checkpoint, recipe="official")
    batch = model.collate(model.tokenize(counts_of(model, X, genes)))
    assert np.array_equal(batch["uniforms"], expected["gumbel_uniform_seed0"])


# Tokens and groups


@settings(max_examples=30, deadline=None)
@given(
    data=st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=6),
    sample=st.booleans(),
    empty=st.sampled_from(["drop", "keep"]),
)
def test_batch_holds_the_logarithms_of_the_counts(data, sample, empty):
    X = np.asarray(data, dtype=np.float32)
    genes = Genes.from_names(IDS[:5])
    model = CellPLM.random(genes, cluster="sample" if sample else "argmax", empty_cells=empty)
    tokens = model.tokenize(counts_of(model, X, genes))
    assert np.array_equal(tokens.usable, X.any(axis=1) | (empty == "keep"))
    order = np.arange(len(X))[::-1]
    batch = model.collate(tokens.take(order))
    ends = np.append(batch["offsets"].numpy()[1:], len(batch["ids"]))
    dense = np.zeros_like(X)
    for row, start, end in zip(order, batch["offsets"].tolist(), ends, strict=True):
        dense[row, batch["ids"][start:end]] = batch["values"][start:end]
    np.testing.assert_allclose(dense, np.log1p(X), rtol=2e-7)
    assert ("uniforms" in batch) == sample
    if sample:
        assert batch["uniforms"].shape == (len(X), 16)
        assert ((batch["uniforms"] >= 0) & (batch["uniforms"] <= 1)).all()


@pytest.mark.parametrize(
    "counts", [[3, 1, 0, 2, 1], [1.5, 1, 0, 2, 1], [2.0**40, 1, 1, 1, 1], [-1, 1, 2, 1, 1], []],
    ids=["whole", "fractions", "large", "negative", "none"],
)  # fmt: skip
def test_logarithms_are_those_of_each_value(counts):
    counts = np.array(counts, dtype=np.float64)
    with np.errstate(divide="ignore"):
        found, expected = _log1p(counts), np.log1p(counts).astype(np.float32)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_stream_equals_one_forward_pass(model):
    X = small_counts(30)
    whole = model.network(model.collate(model.tokenize(counts_of(model, X)))).detach()
    for size in (1, 7, 30):
        np.testing.assert_allclose(embed(model, X, block_size=size), whole, atol=2e-6)


def test_group_size_cuts_across_blocks():
    X = small_counts(11)
    X[4] = 0
    cut = CellPLM.random(GENES, group_size=3)
    kept = np.delete(np.arange(11), 4)
    parts = [kept[i : i + 3] for i in range(0, 10, 3)]
    expected = np.full((11, 24), np.nan, dtype=np.float32)
    whole = CellPLM.random(GENES)
    for part in parts:
        expected[part] = embed(whole, X[part])
    for block_size in (1, 4, 100):
        np.testing.assert_allclose(embed(cut, X, block_size=block_size), expected, atol=2e-6)


def test_an_empty_cell_stays_out_of_its_group_or_takes_part(model):
    X = small_counts()
    beside = sparse.vstack([X, sparse.csr_matrix((1, 60))], format="csr")
    alone = embed(model, X)
    found = embed(model, beside)
    assert np.isnan(found[-1]).all()
    assert np.array_equal(found[:-1], alone)
    kept = embed(CellPLM.random(GENES, empty_cells="keep"), beside)
    assert np.isfinite(kept).all()
    assert np.abs(kept[:-1] - alone).max() > 1e-3


def test_a_group_of_empty_cells_has_nan_rows(model):
    assert np.isnan(embed(model, sparse.csr_matrix((3, 60)))).all()


def test_published_recipes_read_columns_as_they_come():
    twice = Genes.from_names([*IDS, IDS[0]])
    X = sparse.hstack([small_counts(), np.full((9, 1), 5.0)], format="csr")
    first = CellPLM.random(GENES, duplicates="first")
    assert np.array_equal(embed(first, X, twice), embed(first, X[:, :60]))
    assert not np.allclose(embed(CellPLM.random(GENES), X, twice), embed(first, X[:, :60]))
    leading = CellPLM.random(GENES, first_columns=20)
    assert np.array_equal(embed(leading, X, twice), embed(first, X[:, :20], Genes.from_names(IDS[:20])))
    assert CellPLM.random(GENES, recipe="scdrugmap-lora").options.group_size == 1


# Draws


def test_drawn_clusters_follow_the_posterior():
    model = CellPLM.random(GENES, cluster="sample")
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 32)).astype(np.float32))
    n = 20_000
    keys = np.arange(n, dtype=np.uint64)
    draws = torch.from_numpy(uniforms(keys[:, None], np.arange(16), 0).astype(np.float32))
    with torch.inference_mode():
        seen = model.network.latent.component(x.expand(n, -1), draws).sum(0).numpy()
        posterior = torch.softmax(model.network.latent.cluster(x)[0].double(), 0).numpy()
    assert stats.chisquare(seen, posterior * n).pvalue > 1e-3


def test_content_draws_stay_with_their_cell():
    X = small_counts(30)
    model = CellPLM.random(GENES, cluster="sample")
    order = np.random.default_rng(0).permutation(30)
    np.testing.assert_allclose(embed(model, X[order], block_size=7), embed(model, X)[order], atol=2e-6)
    assert np.abs(embed(CellPLM.random(GENES, cluster="sample", seed=1), X) - embed(model, X)).max() > 1e-3


def test_uniforms_need_a_row_per_cell():
    model = CellPLM.random(GENES, cluster="sample", uniforms=np.full((3, 16), 0.5))
    with pytest.raises(InputError, match="uniforms"):
        embed(model, small_counts(4))
    assert np.isfinite(embed(model, small_counts(3))).all()


# Checkpoint files


def test_checkpoint_round_trip(model, folder):
    for path in (folder, folder / f"{PREFIX}.best.ckpt", folder / f"{PREFIX}.config.json"):
        loaded = CellPLM.from_checkpoint(path)
        assert np.array_equal(embed(loaded, small_counts()), embed(model, small_counts()))
        assert set(loaded.digests) == {f"{PREFIX}.best.ckpt", f"{PREFIX}.config.json"}


def test_vae_checkpoint(folder, tmp_path):
    tensors = torch.load(folder / f"{PREFIX}.best.ckpt")["model_state_dict"]
    tensors = {k: v for k, v in tensors.items() if not k.startswith("latent.")}
    weight, bias = torch.linspace(-1, 1, 24 * 32).view(24, 32), torch.linspace(0, 1, 24)
    tensors |= {"latent.layers.1.hid_2mu.weight": weight, "latent.layers.1.hid_2mu.bias": bias}
    tensors |= {"latent.layers.1.hid_2sigma.weight": weight, "latent.layers.1.hid_2sigma.bias": bias}
    torch.save({"model_state_dict": tensors}, folder / f"{PREFIX}.best.ckpt")
    (folder / f"{PREFIX}.config.json").write_text(json.dumps({**CONFIG, "latent_mod": "vae"}))
    model = CellPLM.from_checkpoint(folder)
    network, batch = model.network, model.collate(model.tokenize(counts_of(model, small_counts())))
    with torch.inference_mode():
        x = network.latent_norm(network.blocks(network.embed_genes(batch)))
        np.testing.assert_allclose(embed(model, small_counts()), x @ weight.T + bias, atol=1e-5)
    with pytest.raises(InputError, match="cluster"):
        CellPLM.from_checkpoint(folder, cluster="sample")


def change_tensors(folder, change):
    file = folder / f"{PREFIX}.best.ckpt"
    saved = torch.load(file)
    change(saved["model_state_dict"])
    torch.save(saved, file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("encoder.layers.1.norm2.bias"), "lacks blocks.1.norm2.bias"),
        (lambda t: t.update({"encoder.layers.2.norm1.bias": torch.zeros(32)}), "unexpected blocks.2.norm1.bias"),
        (lambda t: t.update({"pre_latent_norm.norm.bias": torch.zeros(31)}), "mis-shaped latent_norm.bias"),
        (lambda t: t.update({"embedder.feat_enc.emb": torch.zeros(59, 32)}), "59 rows .* 60 genes"),
        (lambda t: t.pop("embedder.feat_enc.emb"), "without model_state_dict"),
    ],
)
def test_wrong_tensors(folder, change, message):
    change_tensors(folder, change)
    with pytest.raises(CheckpointError, match=message):
        CellPLM.from_checkpoint(folder)


def test_wrong_files(folder):
    config, weights = folder / f"{PREFIX}.config.json", folder / f"{PREFIX}.best.ckpt"
    config.write_text(json.dumps({**CONFIG, "norm": "batchnorm"}))
    with pytest.raises(CheckpointError, match="norm='batchnorm'"):
        CellPLM.from_checkpoint(folder)
    config.write_text(json.dumps({k: v for k, v in CONFIG.items() if k != "gene_list"}))
    with pytest.raises(CheckpointError, match="no gene_list"):
        CellPLM.from_checkpoint(folder)
    config.unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        CellPLM.from_checkpoint(folder)
    config.write_text(json.dumps(CONFIG))
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"best\.ckpt"):
        CellPLM.from_checkpoint(folder)


def test_official_size():
    card = CellPLM.card
    with torch.device("meta"):
        network = CellPLMNetwork(
            n_genes=card.vocab_size, dim=1024, layers=4, heads=8, latent_dim=card.dim, latent="gmvae", clusters=16,
            latent_hidden=512, norm="groupnorm", dropout=0.0,
        )  # fmt: skip
    assert sum(p.numel() for p in network.parameters()) == card.n_parameters


def test_golden(model):
    golden = json.loads((Path(__file__).parent / "golden/cellplm.json").read_text())
    found = embed(model, small_counts(), context=np.arange(9) % 2)
    np.testing.assert_allclose(found[:, :8], golden, rtol=1e-4, atol=1e-5)
