"""scFoundation: tokens, states and embeddings of the recorded run, depth tokens, pooling, checkpoint files."""

from __future__ import annotations

import copy
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
from scdrugmap.models.scfoundation import ScFoundation, ScFoundationNetwork

SYMBOLS = [f"GENE{i:02d}" for i in range(40)]
GENES = Genes.from_names(SYMBOLS)
GENE_FILE = "OS_scRNA_gene_index.19264.tsv"


def small_counts(n=9, k=40):
    i, j = np.arange(n)[:, None], np.arange(k)[None, :]
    return sparse.csr_matrix(np.clip((7 * i + 13 * j + i * j) % 17 - 9 - i % 3, 0, None).astype(np.float32))


def counts_of(model, X, genes=GENES):
    matched = model.align(genes)
    return Counts(matched.apply(sparse.csr_matrix(X)), matched.ids, matched.genes, np.arange(X.shape[0]))


def tokens_of(model, X, genes=GENES):
    return model.tokenize(counts_of(model, X, genes))


def embed(model, X, genes=GENES, **options):
    engine = Engine("cpu", "float32", options.pop("batch_size", None), progress=False)
    return embed_counts(model, CountSource(X), genes, engine, **options).values


def official_tensors(model):
    """The weights under the names of the official file, with everything that a loader has to leave aside."""
    own = model.network.state_dict()
    names = {"values.expand": "token_emb.mlp", "values.mix": "token_emb.mlp2", "final_norm": "encoder.norm"}
    out = {"token_emb.emb.weight": own["values.bins.weight"], "pos_emb.weight": own["genes.weight"]}
    for i in range(len(model.network.blocks)):
        new, old = f"encoder.transformer_encoder.{i}", f"blocks.{i}"
        names |= {f"{old}.{n}": f"{new}.{n}" for n in ("norm1", "norm2", "linear1", "linear2")}
        names[f"{old}.attention.out_proj"] = f"{new}.self_attn.out_proj"
        for kind in ("weight", "bias"):
            qkv = [own[f"{old}.attention.{p}_proj.{kind}"] for p in "qkv"]
            out[f"{new}.self_attn.in_proj_{kind}"] = torch.cat(qkv)
    out |= {f"{theirs}.{kind}": own[f"{ours}.{kind}"] for ours, theirs in names.items() for kind in ("weight", "bias")}
    unused = ["token_emb.emb_mask.weight", "token_emb.emb_pad.weight", "decoder_embed.bias", "norm.weight"]
    unused += ["to_final.weight", "decoder.performer.net.layers.0.0.fn.fast_attention.projection_matrix"]
    return {f"net.model.{k}": v.clone() for k, v in (out | {k: torch.zeros(3) for k in unused}).items()}


def official_config(model):
    network = model.network
    encoder = {"hidden_dim": 16, "depth": len(network.blocks), "heads": 2, "module_type": "transformer"}
    sizes = {"encoder": encoder, "seq_len": len(SYMBOLS) + 2, "bin_num": 99, "bin_alpha": 1.0}
    return {
        "model": "mae_autobin",
        "model_config": {"mae_autobin": sizes},
        # What stands here wins over the model's own settings.
        "dataset_config": {"rnaseq": {"bin_num": network.values.bins.num_embeddings}},
    }


@pytest.fixture(scope="module")
def model():
    return ScFoundation.random(GENES)


@pytest.fixture
def folder(model, tmp_path):
    rde = ScFoundation.random(GENES, rng=5)
    saved = {
        name: {"config": official_config(m), "state_dict": official_tensors(m)}
        for name, m in (("cell", model), ("rde", rde))
    }
    (tmp_path / "models").mkdir()
    torch.save(saved, tmp_path / "models" / "models.ckpt")
    table = "".join(f"{g}\t{i}\n" for i, g in enumerate(SYMBOLS))
    (tmp_path / "models" / GENE_FILE).write_text(f"gene_name\tindex\n{table}")
    return tmp_path / "models"


# The recorded run of the official code


@pytest.fixture(scope="module")
def recorded(shared):
    cells = ad.read_h5ad(shared / "parity" / "input.h5ad")
    genes = Genes.from_names(cells.var_names, ensembl=cells.var["ensembl_id"])
    root = shared / "parity/scfoundation"
    return cells.X, genes, root / "checkpoint", np.load(root / "expected.npz")


def test_recorded_tokens(recorded):
    X, genes, checkpoint, expected = recorded
    tokens = tokens_of(ScFoundation.from_checkpoint(checkpoint), X, genes)
    assert np.array_equal(tokens.offsets, expected["offsets"])
    assert np.array_equal(tokens.ids, expected["token_gene_ids"])
    np.testing.assert_allclose(tokens.values, expected["token_values"], rtol=0, atol=1e-6)
    assert tokens.usable.all()


@pytest.mark.parametrize(
    ("options", "target", "source"),
    [
        ({}, "T_token_t4", "S_token"),
        ({"tgthighres": "f1"}, "T_token_f1", "S_token"),
        ({"tgthighres": "f1.5"}, "T_token_f1p5", "S_token"),
        ({"tgthighres": "a5"}, "T_token_a5", "S_token"),
        ({"source_depth": "values"}, "T_token_t4", "S_token_prenormT"),
    ],
)
def test_recorded_depth_tokens(recorded, options, target, source):
    X, genes, checkpoint, expected = recorded
    tokens = tokens_of(ScFoundation.from_checkpoint(checkpoint, **options), X, genes)
    np.testing.assert_allclose(tokens.values[tokens.offsets[1:] - 2], expected[target], rtol=0, atol=1e-6)
    np.testing.assert_allclose(tokens.values[tokens.offsets[1:] - 1], expected[source], rtol=0, atol=1e-6)


@pytest.mark.parametrize("cell", [0, 4])
def test_recorded_states(recorded, cell):
    X, genes, checkpoint, expected = recorded
    model = ScFoundation.from_checkpoint(checkpoint)
    tokens = tokens_of(model, X, genes)
    # A longer cell beside it, so that the recorded one is padded.
    batch = model.collate(tokens.take(np.array([cell, 7])))
    n, network, found = tokens.lengths[cell], model.network, {}
    with torch.inference_mode():
        found["value_embedding"] = network.values(batch["values"])
        x = found["encoder_input"] = network.embed(batch)
        x = found["after_layer1"] = network.blocks[0](x, batch["mask"])
        found["encoder_output"] = network.final_norm(network.blocks[1](x, batch["mask"]))
    for name, values in found.items():
        np.testing.assert_allclose(values[0, :n], expected[f"dbg_cell{cell}_{name}"], rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    ("array", "options"),
    [
        ("cell_embedding", {}),
        ("embedding_ce_max_t4", {"pool": "max"}),
        ("embedding_rde_all_a5", {"weights": "rde", "tgthighres": "a5"}),
        ("embedding_ce_all_t4_prenormT", {"source_depth": "values"}),
    ],
)
def test_recorded_embeddings(recorded, array, options):
    X, genes, checkpoint, expected = recorded
    found = embed(ScFoundation.from_checkpoint(checkpoint, **options), X, genes)
    np.testing.assert_allclose(found, expected[array], rtol=0, atol=2e-5)


def test_recorded_embedding_of_normalised_data(recorded):
    X, genes, checkpoint, expected = recorded
    model = ScFoundation.from_checkpoint(checkpoint, values="lognorm", source_depth="values")
    counts = counts_of(model, X, genes).X
    normalised = counts.multiply(1e4 / counts.sum(axis=1)).log1p().tocsr()
    names = Genes.from_names(counts_of(model, X, genes).genes)
    assert not model.card.needs_counts and ScFoundation.card.needs_counts
    np.testing.assert_allclose(embed(model, normalised, names), expected["embedding_ce_all_t4_prenormT"], atol=2e-5)


def test_real_embeddings_have_the_blocks_of_this_model(shared, model):
    """The authors' embeddings of 120 cells: width, and the third block is an upper bound of the fourth."""
    real = ad.read_h5ad(shared / "data" / "scfoundation_scc47_sorafenib.h5ad").obsm["X_scfoundation"]
    assert real.shape[1] == ScFoundation.card.dim
    for values in (np.asarray(real), embed(model, small_counts())):
        source, target, highest, mean = np.split(values, 4, axis=1)
        assert (highest >= mean).all()
        # No other pair of blocks is ordered so.
        assert not (source >= target).all() and not (highest >= source).all() and not (source >= mean).all()


# Tokens and pooling


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=6))
def test_tokens_are_normalised_counts_and_depths(data):
    X = np.asarray(data, dtype=np.float64)
    model = ScFoundation.random(Genes.from_names(SYMBOLS[:6]))
    tokens = tokens_of(model, X, Genes.from_names(SYMBOLS[:6]))
    assert len(tokens) == len(X)
    assert np.array_equal(tokens.usable, X.sum(axis=1) > 1)
    for i in np.flatnonzero(tokens.usable):
        part = slice(tokens.offsets[i], tokens.offsets[i + 1])
        expressed = np.flatnonzero(X[i])
        assert tokens.ids[part].tolist() == [*expressed, 6, 7]
        expected = np.log1p(1e4 * X[i, expressed] / X[i].sum())
        np.testing.assert_allclose(tokens.values[part], [*expected, 4, np.log10(X[i].sum())], rtol=1e-6)


def test_a_cell_of_one_count_has_no_embedding(model):
    X = small_counts()
    lone = sparse.csr_matrix(([1.0], ([0], [3])), shape=(1, 40))
    found = embed(model, sparse.vstack([X, lone], format="csr"))
    assert np.isnan(found[-1]).all()
    np.testing.assert_allclose(found[:-1], embed(model, X), atol=1e-6)


@pytest.mark.parametrize("mode", ["t0", "f0.001", "f0"])
def test_target_depth_must_be_positive(mode):
    with pytest.raises(InputError, match="tgthighres"):
        embed(ScFoundation.random(GENES, tgthighres=mode), small_counts())


@pytest.mark.parametrize("mode", ["4", "t", "x4", "t4x", "f-1"])
def test_target_depth_must_be_readable(mode):
    with pytest.raises(InputError, match="tgthighres"):
        ScFoundation.random(GENES, tgthighres=mode)


def test_normalised_data_cannot_tell_their_total():
    with pytest.raises(InputError, match="source_depth"):
        ScFoundation.random(GENES, values="lognorm")


def test_pooling_leaves_padding_and_depth_tokens_out():
    rng = np.random.default_rng(0)
    y, lengths = torch.from_numpy(rng.normal(size=(3, 7, 16)).astype(np.float32)), torch.tensor([7, 3, 5])
    y[1, 3:], y[2, 5:] = 99.0, 99.0
    sizes = {"n_genes": 5, "dim": 16, "layers": 0, "heads": 2, "bins": 4, "alpha": 1.0}
    found = ScFoundationNetwork(**sizes).summarize(y, lengths).numpy()
    highest = ScFoundationNetwork(**sizes, pool="max").summarize(y, lengths).numpy()
    for i, n in enumerate(lengths.tolist()):
        z = y[i, :n].numpy()
        expected = np.concatenate([z[-1], z[-2], z[:-2].max(0), z[:-2].mean(0)])
        np.testing.assert_allclose(found[i], expected, rtol=1e-6, atol=1e-6)
        assert np.array_equal(highest[i], z.max(0))


def test_published_fine_tuning_reads_leading_positions_only():
    X = small_counts()
    short = ScFoundation.random(GENES, max_length=5)
    tokens, whole = tokens_of(short, X), tokens_of(ScFoundation.random(GENES), X)
    for i in range(len(tokens)):
        start, end = whole.offsets[i], min(whole.offsets[i] + 5, whole.offsets[i + 1])
        assert np.array_equal(tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]], whole.ids[start:end])
    assert ScFoundation.random(GENES, recipe="scdrugmap-lora").options.max_length == 100
    assert np.isfinite(embed(short, X)).all()


def test_equal_lengths_need_no_mask(model):
    tokens = tokens_of(model, small_counts())
    assert "mask" not in model.collate(tokens.take(np.array([0, 0])))
    assert "mask" in model.collate(tokens.take(np.array([int(tokens.lengths.argmin()), int(tokens.lengths.argmax())])))


def test_half_precision_stays_close():
    model, X = ScFoundation.random(GENES), small_counts()
    rough = embed_counts(model, CountSource(X), GENES, Engine("cpu", "bfloat16", progress=False)).values
    exact = embed(model, X)
    cosine = (rough * exact).sum(1) / np.linalg.norm(rough, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosine.min() > 0.999


# Checkpoint files


def test_checkpoint_round_trip(model, folder):
    for path in (folder, folder / "models.ckpt"):
        loaded = ScFoundation.from_checkpoint(path)
        assert np.array_equal(embed(loaded, small_counts()), embed(model, small_counts()))
        assert set(loaded.digests) == {"models.ckpt", GENE_FILE}
    other = ScFoundation.from_checkpoint(folder, weights="rde")
    assert np.array_equal(embed(other, small_counts()), embed(ScFoundation.random(GENES, rng=5), small_counts()))


def test_gene_list_may_lie_one_folder_above(folder):
    (folder / GENE_FILE).rename(folder.parent / GENE_FILE)
    assert len(ScFoundation.from_checkpoint(folder).vocabulary) == 40
    (folder.parent / GENE_FILE).unlink()
    with pytest.raises(CheckpointError, match="OS_scRNA_gene_index"):
        ScFoundation.from_checkpoint(folder)


def change_file(folder, change):
    saved = torch.load(folder / "models.ckpt")
    saved = copy.deepcopy(saved)
    change(saved)
    torch.save(saved, folder / "models.ckpt")


NORM = "net.model.encoder.transformer_encoder.1.norm2.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["cell"]["state_dict"].pop(NORM), "lacks blocks.1.norm2.bias"),
        (lambda s: s["cell"]["state_dict"].update({"model.encoder.new": torch.zeros(2)}), "unexpected encoder.new"),
        (lambda s: s["cell"]["state_dict"].update({NORM: torch.zeros(2)}), "mis-shaped blocks.1.norm2.bias"),
        (lambda s: s.pop("cell"), "under 'cell'"),
        (lambda s: s["cell"]["config"]["model_config"]["mae_autobin"].pop("encoder"), "configuration with 'encoder'"),
        (
            lambda s: s["cell"]["config"]["model_config"]["mae_autobin"]["encoder"].update(module_type="performer"),
            "performer",
        ),
    ],
)
def test_wrong_content(folder, change, message):
    change_file(folder, change)
    with pytest.raises(CheckpointError, match=message):
        ScFoundation.from_checkpoint(folder)


def test_wrong_files(folder):
    genes, weights = folder / GENE_FILE, folder / "models.ckpt"
    text = genes.read_text()
    genes.write_text(text.rsplit("\n", 2)[0] + "\n")
    with pytest.raises(CheckpointError, match=r"39 genes .* 40"):
        ScFoundation.from_checkpoint(folder)
    genes.write_text(text.replace("GENE01", "GENE02"))
    with pytest.raises(CheckpointError, match="repeated genes"):
        ScFoundation.from_checkpoint(folder)
    genes.write_text(text.replace("gene_name", "name"))
    with pytest.raises(CheckpointError, match="gene_name"):
        ScFoundation.from_checkpoint(folder)
    genes.write_text(text)
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"models\.ckpt"):
        ScFoundation.from_checkpoint(folder)
    with pytest.raises(CheckpointError, match="existing"):
        ScFoundation.from_checkpoint(folder / "nowhere")


def test_official_size():
    with torch.device("meta"):
        network = ScFoundationNetwork(n_genes=19_264, dim=768, layers=12, heads=12, bins=100, alpha=1.0)
    assert sum(p.numel() for p in network.parameters()) == ScFoundation.card.n_parameters
    assert 4 * network.final_norm.normalized_shape[0] == ScFoundation.card.dim


def test_golden(model):
    golden = json.loads((Path(__file__).parent / "golden/scfoundation.json").read_text())
    np.testing.assert_allclose(embed(model, small_counts())[:, ::8], golden, rtol=1e-4, atol=1e-5)
