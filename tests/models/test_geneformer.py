"""Geneformer V1 and V2: tokens, states, checkpoint files."""

from __future__ import annotations

import json
import pickle
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
from scdrugmap.models.geneformer import Dictionaries, Geneformer
from scdrugmap.models.kit.counts import Counts
from scdrugmap.models.kit.weights import randomize

N_GENES = 90
IDS = [f"ENSG{i:011d}" for i in range(1, N_GENES + 1)]
GENES = Genes.from_names(IDS)
CONFIG = {
    "model_type": "bert",
    "hidden_act": "relu",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 128,
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.02,
}


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


def dictionaries(special):
    names = ["<pad>", "<mask>", *(["<cls>", "<eos>"] if special else []), *IDS[:80]]
    medians = {g: 0.5 + (i * 7 % 10) / 4 for i, g in enumerate(IDS)}
    # Two ids that are folded onto genes that are also there, one whose target has no token.
    mapping = {g: g for g in IDS[:80]} | {IDS[80]: IDS[0], IDS[81]: IDS[0], IDS[82]: "ENSG99999999999"}
    return Dictionaries({n: i for i, n in enumerate(names)}, medians, mapping if special else None)


def build(special=False, **options):
    tables = dictionaries(special)
    model = Geneformer(CONFIG | {"vocab_size": len(tables.tokens)}, tables, **options)
    randomize(model.network, 0)
    model.network.eval()
    return model


def official_tensors(model):
    """The weights under the official names, with a head."""
    own = model.network.state_dict()
    names = {
        "attention.self.query": "attention.q_proj",
        "attention.self.key": "attention.k_proj",
        "attention.self.value": "attention.v_proj",
        "attention.output.dense": "attention.out_proj",
        "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "linear1",
        "output.dense": "linear2",
        "output.LayerNorm": "norm2",
    }
    out = {
        "embeddings.word_embeddings.weight": own["word.weight"],
        "embeddings.position_embeddings.weight": own["position.weight"],
        "embeddings.token_type_embeddings.weight": torch.stack([own["segment"], own["segment"] + 1]),
        "embeddings.LayerNorm.weight": own["norm.weight"],
        "embeddings.LayerNorm.bias": own["norm.bias"],
    }
    for i in range(len(model.network.blocks)):
        for new, old in names.items():
            for kind in ("weight", "bias"):
                out[f"encoder.layer.{i}.{new}.{kind}"] = own[f"blocks.{i}.{old}.{kind}"]
    out = {f"bert.{k}": v.clone() for k, v in out.items()}
    return out | {"cls.predictions.bias": torch.zeros(5), "bert.pooler.dense.weight": torch.zeros(16, 16)}


def write(model, folder, special=False, place="."):
    tables, version = dictionaries(special), "_gc104M" if special else "_gc30M"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": len(tables.tokens)}))
    torch.save(official_tensors(model), folder / "pytorch_model.bin")
    beside = folder / place
    beside.mkdir(parents=True, exist_ok=True)
    files = {"token_dictionary": tables.tokens, "gene_median_dictionary": tables.medians}
    if special:
        files["ensembl_mapping_dict"] = tables.mapping
    for name, content in files.items():
        # The official files hold NumPy numbers.
        plain = {k: np.float64(v) for k, v in content.items()} if "median" in name else dict(content)
        (beside / f"{name}{version}.pkl").write_bytes(pickle.dumps(plain, protocol=4))
    return folder


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture
def folder(model, tmp_path):
    return write(model, tmp_path / "Geneformer")


# The official implementation


@pytest.mark.parametrize("version", ["geneformer", "geneformer/v2"])
def test_tokens_are_the_official_ones(shared, version):
    cells = ad.read_h5ad(shared / "parity" / "input.h5ad")
    recorded = np.load(shared / "parity" / version / "expected.npz")
    genes = Genes.from_names(cells.var_names, ensembl=cells.var["ensembl_id"])
    for recipe in (None, "official"):
        model = Geneformer.from_checkpoint(shared / "parity" / version / "checkpoint", recipe=recipe)
        tokens = tokens_of(model, cells.X, genes)
        found, expected = tokens.padded(0), recorded["input_ids"]
        np.testing.assert_array_equal(tokens.lengths, recorded["length"])
        np.testing.assert_array_equal(found, expected[:, : found.shape[1]])
        assert not expected[:, found.shape[1] :].any()


@pytest.mark.parametrize("version", ["geneformer", "geneformer/v2"])
@pytest.mark.parametrize("cell", [0, 5])
def test_hidden_states_are_the_official_ones(shared, version, cell):
    recorded = np.load(shared / "parity" / version / "expected.npz")
    model = Geneformer.from_checkpoint(shared / "parity" / version / "checkpoint")
    ids = recorded["input_ids"][[cell], : recorded["length"][cell]].astype(np.int64)
    with torch.inference_mode():
        states = model.network.states({"ids": torch.from_numpy(ids)})
    for name, state in {"embeddings": states[0], "layer1": states[1], "last": states[-1]}.items():
        expected = recorded[f"hidden_cell{cell}_{name}"]
        n = min(len(expected), ids.shape[1])
        np.testing.assert_allclose(state[0, :n].numpy(), expected[:n], rtol=0, atol=1e-5)


@pytest.mark.parametrize("layer", [0, -1])
@pytest.mark.parametrize(("special", "mode"), [(False, "cell"), (True, "cell"), (True, "cls")])
def test_network_equals_the_library_model(tmp_path, special, layer, mode):
    from transformers import BertConfig, BertModel

    folder = write(build(special), tmp_path / "model", special)
    model = Geneformer.from_checkpoint(folder, emb_layer=layer, emb_mode=mode)
    config = json.loads((folder / "config.json").read_text())
    reference = BertModel(BertConfig(**config), add_pooling_layer=False).eval()
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    kept = {k.removeprefix("bert."): v for k, v in tensors.items() if "pooler" not in k and not k.startswith("cls")}
    reference.load_state_dict(kept)
    tokens = tokens_of(model, small_counts(), GENES)
    ids = torch.from_numpy(tokens.padded(0).astype(np.int64))
    attended = torch.arange(ids.shape[1]) < torch.from_numpy(tokens.lengths)[:, None]
    with torch.no_grad():
        states = reference(ids, attention_mask=attended.long(), output_hidden_states=True).hidden_states
    state, edge = states[-1 + layer], int(special)
    means = [state[i, edge : n - edge].mean(0) for i, n in enumerate(tokens.lengths)]
    expected = state[:, 0] if mode == "cls" else torch.stack(means)
    np.testing.assert_allclose(embed(model, small_counts(), GENES), expected.numpy(), rtol=1e-4, atol=1e-5)


# Tokens


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    max_length=st.integers(3, 60),
    special=st.booleans(),
    ties=st.sampled_from(["vocabulary", "column"]),
)
def test_tokens_follow_count_over_median(seed, max_length, special, ties):
    rng = np.random.default_rng(seed)
    genes = Genes.from_names(rng.permutation(IDS[:80]))
    X = rng.poisson(0.7, (4, 80)).astype(np.float32)
    model, tables = build(special, max_length=max_length, ties=ties), dictionaries(special)
    tokens = tokens_of(model, X, genes)
    for i in range(len(X)):
        tie = [tables.tokens[g] for g in genes.names] if ties == "vocabulary" else list(range(80))
        key = [(-X[i, j] / tables.medians[g], tie[j]) for j, g in enumerate(genes.names)]
        order = sorted(np.flatnonzero(X[i]), key=lambda j: key[j])[: max_length - 2 * special]
        expected = [tables.tokens[genes.names[j]] for j in order]
        if special:
            expected = [tables.tokens["<cls>"], *expected, tables.tokens["<eos>"]]
        assert tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]].tolist() == expected


@settings(max_examples=25, deadline=None)
@given(factor=st.integers(1, 50))
def test_library_size_cancels(factor):
    X = small_counts()
    a, b = tokens_of(build(), X, GENES), tokens_of(build(), X * factor, GENES)
    np.testing.assert_array_equal(a.ids, b.ids)


def test_v2_sums_ids_that_are_mapped_onto_one_gene():
    model = build(special=True)
    X = np.zeros((1, N_GENES), dtype=np.float32)
    X[0, [0, 80, 81]], X[0, 1], X[0, 82] = 1, 2, 9
    apart = tokens_of(model, X, GENES)
    summed = np.zeros_like(X)
    summed[0, 0], summed[0, 1] = 3, 2
    np.testing.assert_array_equal(apart.ids, tokens_of(model, summed, GENES).ids)
    assert len(apart.ids) == 4


def test_a_cell_without_known_genes_is_nan(model):
    X = small_counts().tolil()
    X[2] = 0
    X[2, 85] = 3
    found = embed(model, X.tocsr(), GENES)
    assert np.isnan(found[2]).all() and np.isfinite(np.delete(found, 2, axis=0)).all()


def test_attended_pads_follow_the_literal_forward(model):
    literal = build(recipe="scdrugmap", max_length=100)
    ids = tokens_of(literal, small_counts(), GENES).padded(0).astype(np.int64)
    ids = torch.from_numpy(np.pad(ids, ((0, 0), (0, 100 - ids.shape[1]))))
    with torch.no_grad():
        expected = literal.network.states({"ids": ids})[-1].mean(1)
    np.testing.assert_allclose(embed(literal, small_counts(), GENES), expected.numpy(), rtol=1e-4, atol=1e-5)
    assert np.abs(embed(model, small_counts(), GENES) - expected.numpy()).max() > 1e-2


def test_impossible_options_raise():
    with pytest.raises(InputError, match=r"max_length.*at most 128"):
        build(max_length=129)
    with pytest.raises(InputError, match=r"emb_mode.*V2"):
        build(emb_mode="cls")


def test_golden_numbers():
    stored = json.loads(Path(__file__).with_name("golden").joinpath("geneformer.json").read_text())
    found = embed(Geneformer.random(GENES), small_counts(), GENES)
    np.testing.assert_allclose(found, stored["embedding"], rtol=1e-4, atol=1e-6)


# Checkpoint files


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("place", [".", "../geneformer", "../geneformer/gene_dictionaries_30m", "../../geneformer"])
def test_reads_the_official_layout(tmp_path, special, place):
    model = build(special)
    (tmp_path / "repository").mkdir()
    folder = write(model, tmp_path / "repository" / "Geneformer-V1-10M", special, place)
    loaded = Geneformer.from_checkpoint(folder)
    np.testing.assert_array_equal(embed(loaded, small_counts(), GENES), embed(model, small_counts(), GENES))
    assert len(loaded.digests) == 4 + special and not loaded.network.training


def test_reads_safetensors_and_a_bare_encoder(model, folder):
    from safetensors.torch import save_file

    bare = {k.removeprefix("bert."): v for k, v in official_tensors(model).items() if k.startswith("bert.")}
    save_file(bare, folder / "model.safetensors")
    (folder / "pytorch_model.bin").unlink()
    loaded = Geneformer.from_checkpoint(folder / "model.safetensors")
    np.testing.assert_array_equal(embed(loaded, small_counts(), GENES), embed(model, small_counts(), GENES))


def test_the_dictionary_that_fits_the_weights_is_taken(tmp_path):
    model = build(special=True)
    folder = write(model, tmp_path / "model", special=True)
    wrong = {k: v for k, v in dictionaries(False).tokens.items() if v < 50}
    (folder / "token_dictionary_a.pkl").write_bytes(pickle.dumps(wrong))
    assert Geneformer.from_checkpoint(folder).begin == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("bert.encoder.layer.1.attention.self.key.bias"), r"lacks blocks\.1\.attention\.k_proj\.bias"),
        (lambda t: t.update({"bert.extra": torch.zeros(1)}), "unexpected extra"),
        (
            lambda t: t.update({"bert.embeddings.word_embeddings.weight": torch.zeros(5, 16)}),
            r"mis-shaped word\.weight",
        ),
    ],
)
def test_every_tensor_is_accounted_for(folder, change, message):
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    change(tensors)
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=message):
        Geneformer.from_checkpoint(folder)


FILES = ["config.json", "pytorch_model.bin", "token_dictionary_gc30M.pkl", "gene_median_dictionary_gc30M.pkl"]


@pytest.mark.parametrize("name", FILES)
def test_missing_files_are_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name.partition("_gc")[0].replace(".", r"\.")):
        Geneformer.from_checkpoint(folder)


@pytest.mark.parametrize("name", FILES)
def test_truncated_files_are_named(folder, name):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        Geneformer.from_checkpoint(folder)


def test_a_v2_folder_without_its_mapping_raises(tmp_path):
    folder = write(build(special=True), tmp_path / "model", special=True)
    (folder / "ensembl_mapping_dict_gc104M.pkl").unlink()
    with pytest.raises(CheckpointError, match="ensembl_mapping_dict_gc104M"):
        Geneformer.from_checkpoint(folder)


def test_a_gene_without_a_median_raises(folder):
    file = folder / "gene_median_dictionary_gc30M.pkl"
    file.write_bytes(pickle.dumps(dict.fromkeys(IDS[1:], 1.0)))
    with pytest.raises(CheckpointError, match=f"median.*{IDS[0]}"):
        Geneformer.from_checkpoint(folder)


def test_a_dictionary_of_another_size_raises(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 99}))
    with pytest.raises(CheckpointError, match=r"82 entries.*99"):
        Geneformer.from_checkpoint(folder)


def test_a_pickle_that_holds_code_is_refused(folder):
    (folder / "token_dictionary_gc30M.pkl").write_bytes(pickle.dumps({"<pad>": Path("x")}))
    with pytest.raises(CheckpointError, match="not a plain"):
        Geneformer.from_checkpoint(folder)


def test_another_architecture_raises(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    with pytest.raises(CheckpointError, match="hidden_act"):
        Geneformer.from_checkpoint(folder)


def test_official_size():
    from scdrugmap.models.geneformer import _CONSTANT, _OFFICIAL

    with torch.device("meta"):
        network = Geneformer(_CONSTANT | _OFFICIAL, Dictionaries({"<pad>": 0, "<mask>": 1}, {})).network
    assert sum(p.numel() for p in network.parameters()) + 256 == Geneformer.card.n_parameters
