"""scGPT: bins, subsets, states, checkpoint files."""

from __future__ import annotations

import itertools
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
from scdrugmap._errors import CheckpointError, InputError, ScDrugMapWarning
from scdrugmap.embedding.embed import embed_counts
from scdrugmap.embedding.source import CountSource
from scdrugmap.genes import Genes
from scdrugmap.models.kit.counts import Counts
from scdrugmap.models.kit.quantiles import bin_ranges
from scdrugmap.models.scgpt import ScGPT

N_GENES = 90
GENES = Genes.from_names([f"GENE{i}" for i in range(N_GENES)])


def small_counts(n=6, k=N_GENES):
    i, j = np.arange(n)[:, None], np.arange(k)[None, :]
    return sparse.csr_matrix(np.clip((7 * i + 13 * j + i * j) % 17 - 5 - i, 0, None).astype(np.float32))


def counts_of(model, X, genes, rows=None, survey=None):
    matched = model.align(genes)
    rows = np.arange(X.shape[0]) if rows is None else rows
    return Counts(matched.apply(sparse.csr_matrix(X)), matched.ids, matched.genes, rows, survey)


def tokens_of(model, X, genes):
    return model.tokenize(counts_of(model, X, genes, survey=model.survey(lambda: iter(()))))


def embed(model, X, genes, **options):
    engine = Engine("cpu", options.pop("precision", "float32"), options.pop("batch_size", None), progress=False)
    return embed_counts(model, CountSource(X), genes, engine, **options).values


def official_tensors(model, layout="Wqkv"):
    """The weights under the names of the official file, with heads that the embedding does not need."""
    own = {k: v.clone() for k, v in model.network.state_dict().items()}
    out = {"encoder.embedding.weight": own["gene.weight"]}
    for kind in ("weight", "bias"):
        out[f"encoder.enc_norm.{kind}"] = own[f"gene_norm.{kind}"]
        out[f"value_encoder.norm.{kind}"] = own[f"value_norm.{kind}"]
        for i in (1, 2):
            out[f"value_encoder.linear{i}.{kind}"] = own[f"value{i}.{kind}"]
        for i in range(len(model.network.blocks)):
            new, old = f"transformer_encoder.layers.{i}", f"blocks.{i}"
            fused = torch.cat([own[f"{old}.attention.{p}_proj.{kind}"] for p in "qkv"])
            inner = "_impl." if layout == "_impl" else ""
            name = f"in_proj_{kind}" if layout == "in_proj" else f"{inner}Wqkv.{kind}"
            out[f"{new}.self_attn.{name}"] = fused
            out[f"{new}.self_attn.{inner}out_proj.{kind}"] = own[f"{old}.attention.out_proj.{kind}"]
            for part in ("linear1", "linear2", "norm1", "norm2"):
                out[f"{new}.{part}.{kind}"] = own[f"{old}.{part}.{kind}"]
        out[f"decoder.fc.0.{kind}"] = torch.zeros(2)
        out[f"cls_decoder.out_layer.{kind}"] = torch.zeros(2)
    out["mvc_decoder.W.weight"] = out["flag_encoder.weight"] = torch.zeros(2, 2)
    return out


@pytest.fixture(scope="module")
def model():
    return ScGPT.random(GENES)


@pytest.fixture
def folder(model, tmp_path):
    words = {**model.vocabulary, "<pad>": model.pad, "<cls>": model.cls, "<eoc>": model.cls + 1}
    args = {"embsize": 32, "nheads": 4, "d_hid": 48, "nlayers": 2, "dropout": 0.2, "pad_value": -2, "n_bins": 51}
    (tmp_path / "args.json").write_text(json.dumps({**args, "pad_token": "<pad>"}))
    (tmp_path / "vocab.json").write_text(json.dumps(dict(sorted(words.items()))))
    torch.save(official_tensors(model), tmp_path / "best_model.pt")
    return tmp_path


# The official implementation


@pytest.fixture(scope="module")
def recorded(shared):
    return dict(np.load(shared / "parity" / "scgpt" / "expected.npz"))


@pytest.fixture(scope="module")
def cells(shared):
    return ad.read_h5ad(shared / "parity" / "input.h5ad")


FIRST = {"ties": "upper", "too_long": "first"}


@pytest.mark.parametrize(
    ("array", "options"),
    [
        ("input", FIRST),
        ("midpoint", {"ties": "midpoint", "too_long": "first"}),
        ("seeded", {"recipe": "official", "seed": 7}),
        ("ft", {"recipe": "scdrugmap", "ties": "upper"}),
    ],
)
def test_tokens_are_the_official_ones(shared, cells, recorded, array, options):
    model = ScGPT.from_checkpoint(shared / "parity" / "scgpt" / "checkpoint", **options)
    tokens = tokens_of(model, cells.X, Genes.from_names(cells.var_names))
    mask = np.arange(recorded[f"{array}_gene_ids"].shape[1]) < tokens.lengths[:, None]
    np.testing.assert_array_equal(mask, recorded[f"{array}_gene_ids"] != model.pad)
    np.testing.assert_array_equal(tokens.ids, recorded[f"{array}_gene_ids"][mask])
    np.testing.assert_array_equal(tokens.values, recorded[f"{array}_values"][mask])


def test_bins_are_the_official_ones(recorded):
    lower, upper = bin_ranges(recorded["flat_count"].astype(np.float64), recorded["indptr"])
    np.testing.assert_array_equal(upper, recorded["flat_bin_upper"])
    np.testing.assert_array_equal(np.minimum(lower + 1, upper), recorded["flat_bin_lower"])


@pytest.mark.parametrize("debug", [0, 1])
def test_hidden_states_are_the_official_ones(shared, cells, recorded, debug):
    model = ScGPT.from_checkpoint(shared / "parity" / "scgpt" / "checkpoint", **FIRST)
    tokens = tokens_of(model, cells.X[recorded["debug_cells"][[debug]]], Genes.from_names(cells.var_names))
    batch = model.collate(tokens)
    with torch.inference_mode():
        found = {f"layer{i}": state[0] for i, state in enumerate(model.network.states(batch)[1:])}
        found["gene_embedding"] = model.network.embed_genes(batch["ids"])[0]
        found["value_embedding"] = model.network.embed_values(batch["bins"])[0]
    assert len(found) == 5
    for name, state in found.items():
        np.testing.assert_allclose(state, recorded[f"debug{debug}_{name}"], rtol=0, atol=5e-5)


# Bins


def bins_by_numpy(x):
    """One cell's ranges, from NumPy's quantiles."""
    edges = np.quantile(x, np.linspace(0, 1, 50))
    return np.searchsorted(edges, x, side="left"), np.searchsorted(edges, x, side="right")


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["counts", "large counts", "logarithms", "distinct"]),
    lengths=st.lists(st.integers(0, 400), min_size=1, max_size=5),
)
def test_bins_equal_quantiles_of_each_cell(seed, kind, lengths):
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    values = {
        "counts": lambda: rng.geometric(0.5, n).astype(float),
        "large counts": lambda: rng.geometric(0.5, n) * 1e6,
        "logarithms": lambda: np.log1p(rng.geometric(0.5, n) * 1.7),
        "distinct": lambda: rng.random(n) + 1e-3,
    }[kind]()
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    lower, upper = bin_ranges(values, offsets)
    for i, j in itertools.pairwise(offsets):
        if j > i:
            expected = bins_by_numpy(values[i:j])
            np.testing.assert_array_equal(lower[i:j], expected[0])
            np.testing.assert_array_equal(upper[i:j], expected[1])


def test_log_normalised_data_have_the_bins_of_the_counts():
    X = small_counts()
    upper = ScGPT.random(GENES, ties="upper")
    logged = X.multiply(1e4 / X.sum(axis=1)).log1p().tocsr()
    np.testing.assert_array_equal(tokens_of(upper, logged, GENES).values, tokens_of(upper, X, GENES).values)


def test_random_bins_are_uniform_over_the_range_of_a_tie():
    """3,000 cells that differ in one high count, with 60 ties each."""
    n, k = 3000, 61
    X = np.ones((n, k), dtype=np.float32)
    X[:, -1] = 2 + np.arange(n)
    model = ScGPT.random(GENES)
    tokens = tokens_of(model, X, Genes.from_names(GENES.names[:k]))
    values = tokens.values.reshape(n, k + 1)
    ids = tokens.ids.reshape(n, k + 1)
    tied = values[ids != model.cls].reshape(n, k)
    tied = tied[ids[:, 1:] != model.vocabulary[GENES.names[k - 1]]].reshape(n, k - 1)
    lower, upper = bin_ranges(X[0].astype(float), np.array([0, k]))
    assert (lower[0], upper[0]) == (0, 49)
    observed = np.bincount(tied.astype(int).ravel(), minlength=50)
    assert observed[0] == 0 and len(observed) == 50
    assert stats.chisquare(observed[1:]).pvalue > 1e-4
    # Independent between genes and between cells, as far as correlations tell.
    assert np.abs(np.corrcoef(tied[:, :20].T) - np.eye(20)).max() < 5 / np.sqrt(n)
    assert abs(np.corrcoef(tied[:-1].ravel(), tied[1:].ravel())[0, 1]) < 5 / np.sqrt(tied.size)


def test_values_without_a_tie_keep_their_bin():
    X = np.arange(1, N_GENES + 1, dtype=np.float32)[None]
    drawn, upper = ScGPT.random(GENES), ScGPT.random(GENES, ties="upper")
    np.testing.assert_array_equal(tokens_of(drawn, X, GENES).values, tokens_of(upper, X, GENES).values)


# Long cells


def test_the_subset_of_a_long_cell_is_uniform():
    n, size = 4000, 30
    X = np.ones((n, N_GENES), dtype=np.float32)
    X[:, 0] = 1 + np.arange(n)
    model = ScGPT.random(GENES, max_length=size + 1)
    tokens = tokens_of(model, X, GENES)
    assert (tokens.lengths == size + 1).all()
    ids = tokens.ids.reshape(n, -1)[:, 1:]
    chosen = np.zeros((n, N_GENES), dtype=int)
    np.add.at(chosen, (np.arange(n)[:, None], ids), 1)
    assert chosen.max() == 1
    share = size / N_GENES
    z = (chosen.sum(axis=0) - n * share) / np.sqrt(n * share * (1 - share))
    assert stats.chi2.sf((z**2).sum() * (N_GENES - 1) / N_GENES, N_GENES - 1) > 1e-4
    # Pairs as in draws without replacement.
    expected = size * (size - 1) / (N_GENES * (N_GENES - 1))
    assert abs((chosen[:, 3] * chosen[:, 40]).mean() - expected) < 5 * np.sqrt(expected / n)


def test_long_cells_are_binned_before_they_are_shortened():
    X = small_counts()
    whole = tokens_of(ScGPT.random(GENES, ties="upper"), X, GENES)
    short = tokens_of(ScGPT.random(GENES, ties="upper", max_length=11), X, GENES)
    after = tokens_of(ScGPT.random(GENES, ties="upper", max_length=11, binning="after"), X, GENES)
    bins = [dict(zip(t.ids, t.values, strict=True)) for t in (whole.take(np.array([0])), short.take(np.array([0])))]
    assert len(bins[1]) == 11 and bins[1].items() <= bins[0].items()
    np.testing.assert_array_equal(short.ids, after.ids)
    assert (short.values != after.values).any()


def test_a_cell_at_the_limit_is_whole():
    X = small_counts(1)
    limit = int((X != 0).sum()) + 1
    assert tokens_of(ScGPT.random(GENES, max_length=limit), X, GENES).lengths.tolist() == [limit]
    assert tokens_of(ScGPT.random(GENES, max_length=limit - 1), X, GENES).lengths.tolist() == [limit - 1]


# Draws


@pytest.mark.parametrize("max_length", [20, 1200])
def test_a_cell_keeps_its_draws_wherever_it_stands(max_length):
    X, rng = small_counts(), np.random.default_rng(0)
    model = ScGPT.random(GENES, max_length=max_length)
    expected = embed(model, X, GENES)
    order = rng.permutation(N_GENES)
    shuffled = embed(model, X[:, order], Genes.from_names(GENES.names[order]))
    np.testing.assert_allclose(shuffled, expected, rtol=1e-5, atol=1e-6)
    rows = np.array([4, 1])
    np.testing.assert_allclose(embed(model, X[rows], GENES, block_size=1), expected[rows], rtol=1e-5, atol=1e-6)
    other = embed(ScGPT.random(GENES, max_length=max_length, seed=1), X, GENES)
    assert np.abs(other - expected).max(axis=1).min() > 1e-4


def test_the_official_stream_does_not_depend_on_the_blocks_and_wants_file_order():
    X = small_counts()
    model = ScGPT.random(GENES, recipe="official", max_length=20)
    assert model.sequential
    whole = embed(model, X, GENES)
    np.testing.assert_allclose(embed(model, X, GENES, block_size=2), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, rtol=1e-5)
    survey = model.survey(lambda: iter(()))
    with pytest.raises(InputError, match="file order"):
        model.tokenize(counts_of(model, X[2:], GENES, np.arange(2, 6), survey))
    with pytest.raises(InputError, match="survey"):
        model.tokenize(counts_of(model, X, GENES))


# The network


def test_a_cell_without_genes_is_nan_or_the_class_token(model):
    X = sparse.csr_matrix(small_counts().multiply(np.arange(6)[:, None] != 2))
    X.eliminate_zeros()
    assert np.isnan(embed(model, X, GENES)).all(axis=1).tolist() == [False, False, True, False, False, False]
    alone = embed(ScGPT.random(GENES, empty="cls"), X, GENES)[2]
    with torch.inference_mode():
        batch = {"ids": torch.tensor([[model.cls]]), "bins": torch.tensor([[0]])}
        np.testing.assert_allclose(alone, model.network(batch)[0], rtol=1e-5, atol=1e-6)


def test_the_embedding_is_the_full_last_layer_at_the_class_token(model):
    batch = model.collate(tokens_of(model, small_counts(), GENES))
    with torch.inference_mode():
        full = model.network.states(batch)[-1][:, 0]
    np.testing.assert_allclose(embed(model, small_counts(), GENES), full, rtol=1e-5, atol=1e-6)


def test_every_parameter_gets_a_gradient():
    model = ScGPT.random(GENES)
    model.network.train()
    model.network(model.collate(tokens_of(model, small_counts(), GENES))).square().sum().backward()
    silent = [n for n, p in model.network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    # A key's bias shifts all attention scores of a query alike: its gradient is zero up to rounding.
    assert all(".k_proj.bias" in n for n in silent)


def test_golden_numbers(model):
    stored = json.loads(Path(__file__).with_name("golden").joinpath("scgpt.json").read_text())
    np.testing.assert_allclose(embed(model, small_counts(), GENES), stored["embedding"], rtol=1e-4, atol=1e-6)


# Checkpoint files


@pytest.mark.parametrize("layout", ["Wqkv", "in_proj", "_impl", "file"])
def test_reads_the_official_layouts(model, folder, layout):
    if layout != "file":
        torch.save(official_tensors(model, layout), folder / "best_model.pt")
    loaded = ScGPT.from_checkpoint(folder / "best_model.pt" if layout == "file" else folder)
    np.testing.assert_array_equal(embed(loaded, small_counts(), GENES), embed(model, small_counts(), GENES))
    assert len(loaded.digests) == 3 and not loaded.network.training


def test_the_value_of_the_class_token_and_its_id_come_from_the_files(folder):
    args = json.loads((folder / "args.json").read_text())
    (folder / "args.json").write_text(json.dumps({**args, "pad_value": -7}))
    tokens = tokens_of(ScGPT.from_checkpoint(folder), small_counts(), GENES)
    assert (tokens.values[tokens.offsets[:-1]] == -7).all()


def test_parts_that_change_a_model_are_named(model, folder):
    torch.save({**official_tensors(model), "dsbn.bns.0.weight": torch.ones(3)}, folder / "best_model.pt")
    with pytest.warns(ScDrugMapWarning, match="dsbn"):
        ScGPT.from_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("transformer_encoder.layers.1.self_attn.Wqkv.bias"), r"lacks blocks\.1\.attention\.k_proj"),
        (lambda t: t.update({"surplus.weight": torch.zeros(1)}), "unexpected surplus"),
        (lambda t: t.update({"value_encoder.norm.bias": torch.zeros(5)}), r"mis-shaped value_norm\.bias \(5,\)"),
        (lambda t: t.update({"encoder.embedding.weight": torch.zeros(5, 32)}), "93 words .* 5 rows"),
    ],
)
def test_every_tensor_is_accounted_for(model, folder, change, message):
    tensors = official_tensors(model)
    change(tensors)
    torch.save(tensors, folder / "best_model.pt")
    with pytest.raises(CheckpointError, match=message):
        ScGPT.from_checkpoint(folder)


@pytest.mark.parametrize("name", ["args.json", "vocab.json", "best_model.pt"])
def test_missing_files_are_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        ScGPT.from_checkpoint(folder)


@pytest.mark.parametrize("name", ["args.json", "vocab.json", "best_model.pt"])
def test_short_files_are_named(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=name):
        ScGPT.from_checkpoint(folder)


def test_other_vocabularies_and_sizes_are_refused(folder):
    words = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps({w: i for w, i in words.items() if w != "GENE3"}))
    with pytest.raises(CheckpointError, match="92 words"):
        ScGPT.from_checkpoint(folder)
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "args.json").write_text(json.dumps({"embsize": 32}))
    with pytest.raises(CheckpointError, match="without nheads"):
        ScGPT.from_checkpoint(folder)
