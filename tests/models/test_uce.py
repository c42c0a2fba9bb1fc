"""UCE: draws, sentences, the data-set steps, checkpoint files."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
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
from scdrugmap.models.kit.sampling import draw_entries, lowest
from scdrugmap.models.uce import CHROMOSOME_END, CLS, PAD, UCE

N_GENES = 90
GENES = Genes.from_names([f"GENE{i}" for i in range(N_GENES)])
PROTEINS = "Homo_sapiens.GRCh38.gene_symbol_to_embedding_ESM2.pt"


def small_counts(n=6, k=N_GENES):
    i, j = np.arange(n)[:, None], np.arange(k)[None, :]
    return sparse.csr_matrix(np.clip((7 * i + 13 * j + i * j) % 17 - 5 - i, 0, None).astype(np.float32))


def counts_of(model, X, genes=GENES, survey=None):
    matched = model.align(genes)
    X = matched.apply(sparse.csr_matrix(X))
    return Counts(X, matched.ids, matched.genes, np.arange(X.shape[0]), survey)


def tokens_of(model, X, genes=GENES):
    survey = model.survey(lambda: iter([counts_of(model, X, genes)]))
    return model.tokenize(counts_of(model, X, genes, survey))


def embed(model, X, genes=GENES, **options):
    engine = Engine("cpu", options.pop("precision", "float32"), options.pop("batch_size", None), progress=False)
    return embed_counts(model, CountSource(X), genes, engine, **options).values


def with_seed(model, seed):
    other = copy.copy(model)
    other.options = model.options.model_copy(update={"seed": seed})
    return other


def official_tensors(model):
    """The weights under the names of the official file, with the token table and a head."""
    own = {k: v.clone() for k, v in model.network.state_dict().items()}
    rows = np.arange(model.genome.n_rows)
    out = {
        "pe_embedding.weight": torch.cat(list(model.network.proteins.source.read(rows))),
        "pos_encoder.pe": own.pop("positions")[:, None],
        "binary_decoder.3.weight": torch.zeros(1, 2),
        "gene_embedding_layer.0.weight": torch.zeros(1, 2),
    }
    for i in range(len(model.network.blocks)):
        for kind in ("weight", "bias"):
            parts = [own.pop(f"blocks.{i}.attention.{p}_proj.{kind}") for p in "qkv"]
            out[f"transformer_encoder.layers.{i}.self_attn.in_proj_{kind}"] = torch.cat(parts)
    for name, tensor in own.items():
        name = name.replace("proteins.encoder.", "encoder.").replace("blocks.", "transformer_encoder.layers.")
        out[name.replace(".attention.", ".self_attn.")] = tensor
    return out


def positions(model):
    """The table of gene positions, in an order of its own; each chromosome also holds a gene without protein."""
    row, code, start = model.genome.loci.T
    symbol = {r: s for s, r in model.vocabulary.items()}
    genes = pd.DataFrame({"gene_symbol": [symbol[r] for r in row], "chromosome": code, "start": start})
    extra = pd.DataFrame({"gene_symbol": [f"NOPROTEIN{i}" for i in range(24)], "chromosome": range(24), "start": 5})
    table = pd.concat([extra, genes.sample(frac=1, random_state=0)])
    return table.assign(species="human", chromosome=[f"c{c:02d}" for c in table.chromosome])


@pytest.fixture(scope="module")
def model():
    return UCE.random(GENES, sample_size=64)


@pytest.fixture
def folder(model, tmp_path):
    torch.save(official_tensors(model), tmp_path / "4layer_model.torch")
    positions(model).to_csv(tmp_path / "species_chrom.csv", index=False)
    (tmp_path / "species_offsets.pkl").write_bytes(pickle.dumps({"human": 4}))
    (tmp_path / "protein_embeddings").mkdir()
    # The dictionary's symbols are of mixed case.
    proteins = {s.lower() if i % 2 else s: torch.zeros(2) for i, s in enumerate(model.vocabulary)}
    torch.save(proteins, tmp_path / "protein_embeddings" / PROTEINS)
    return tmp_path


def read(folder, **options):
    return UCE.from_checkpoint(folder, **{"heads": 4, "sample_size": 64, **options})


# The official implementation


@pytest.fixture(scope="module")
def recorded(shared):
    return dict(np.load(shared / "parity" / "uce" / "expected.npz"))


@pytest.fixture(scope="module")
def cells(shared):
    return ad.read_h5ad(shared / "parity" / "input.h5ad")


def official(shared, **options):
    return UCE.from_checkpoint(shared / "parity" / "uce" / "checkpoint", heads=4, **options)


@pytest.mark.parametrize(
    ("prefix", "options"),
    [
        ("", {"recipe": "official", "padding": "masked"}),
        ("nofilter_", {"draws": "stream"}),
    ],
)
def test_sentences_are_the_official_ones(shared, cells, recorded, prefix, options):
    tokens = tokens_of(official(shared, **options), cells.X, Genes.from_names(cells.var_names))
    assert np.flatnonzero(tokens.usable).tolist() == recorded[f"{prefix}kept_cells"].tolist()
    np.testing.assert_array_equal(tokens.lengths, recorded[f"{prefix}lengths"])
    expected = recorded[f"{prefix}token_sentences"][recorded[f"{prefix}mask"] > 0]
    np.testing.assert_array_equal(tokens.ids, expected)


def test_official_pads_reach_to_the_longest_sentence_of_the_batch(shared, cells, recorded):
    tokens = tokens_of(official(shared, recipe="official"), cells.X, Genes.from_names(cells.var_names))
    for first in range(0, 64, 25):
        batch = slice(first, first + 25)
        assert set(tokens.lengths[batch]) == {recorded["lengths"][batch].max()}
    np.testing.assert_array_equal(
        np.add.reduceat(tokens.ids != PAD, tokens.offsets[:-1]), (recorded["token_sentences"] != PAD).sum(axis=1)
    )


@pytest.mark.parametrize("cell", [0, 1])
def test_hidden_states_are_the_official_ones(shared, cells, recorded, cell):
    model = official(shared, recipe="official", padding="masked")
    tokens = tokens_of(model, cells.X, Genes.from_names(cells.var_names)).take(np.array([cell]))
    with torch.inference_mode():
        batch = model.collate(tokens)
        states, decoded = model.network.states(batch), model.network.decode(batch)
    # Rounding differs between processors and grows from layer to layer; the embedding is held to 1e-5.
    for name, i, atol in (("transformer_input", 0, 5e-5), ("layer0", 1, 5e-5), ("layer3", 4, 2e-4)):
        np.testing.assert_allclose(states[i][0], recorded[f"hidden_cell{cell}_{name}"], rtol=0, atol=atol)
    np.testing.assert_allclose(decoded[0], recorded["decoder_cls_nopad"][cell], rtol=0, atol=1e-5)


def test_own_draws_give_the_official_mean_embedding(shared, cells, recorded):
    """Means over 48 seeds of either generator, against their sampling errors."""
    theirs = recorded["resample_cell_embedding_nopad"]
    base, genes = official(shared, dataset_filter=True), Genes.from_names(cells.var_names)
    survey = base.survey(lambda: iter([counts_of(base, cells.X, genes)]))
    counts = counts_of(base, cells.X[: len(theirs)], genes, survey)
    ours = []
    with torch.inference_mode():
        for seed in range(48):
            tokens = with_seed(base, seed).tokenize(counts)
            ours.append(base.network(base.collate(tokens)).numpy())
    ours = np.stack(ours, axis=1)
    error = np.sqrt((ours.var(axis=1, ddof=1) + theirs.var(axis=1, ddof=1)) / 48)
    z = (ours.mean(axis=1) - theirs.mean(axis=1)) / error
    assert np.abs(z).max() < 5
    assert 0.5 < np.mean(z**2) < 2
    ratio = ours.std(axis=1) / theirs.std(axis=1)
    assert 0.85 < np.median(ratio) < 1.18


# Draws


def drawn_genes(model, X, n_seeds):
    """Rows of the token table that each seed draws for each cell, ``(seeds, cells, size)``, and the sentences."""
    counts = counts_of(model, X)
    draws = [with_seed(model, seed)._draw(counts, None) for seed in range(n_seeds)]
    return np.stack([d[1] for d in draws]), np.stack([d[2] for d in draws])


def test_genes_are_drawn_in_proportion_to_their_log_counts():
    model, X = UCE.random(GENES, sample_size=1024), small_counts(3)
    drawn, _ = drawn_genes(model, X, 60)
    rows = np.array([model.vocabulary[g] for g in GENES.names])
    for i in range(3):
        weights = np.log1p(X[[i]].toarray()[0].astype(float))
        observed = np.bincount(drawn[:, i].ravel(), minlength=model.genome.n_rows)[rows]
        assert observed[weights == 0].sum() == 0
        expected = (weights / weights.sum() * observed.sum())[weights > 0]
        assert stats.chisquare(observed[weights > 0], expected).pvalue > 1e-4
    # Draws of different seeds and of different cells are independent: their genes meet as often as chance says.
    share = np.log1p(X[[0]].toarray()[0])
    share /= share.sum()
    agree = (drawn[0, 0][:, None] == drawn[1, 0][None, :]).mean()
    assert abs(agree - (share**2).sum()) < 0.01


def test_draws_match_the_recorded_weights(shared, cells, recorded):
    model = official(shared, dataset_filter=True)
    genes = Genes.from_names(cells.var_names)
    survey = model.survey(lambda: iter([counts_of(model, cells.X, genes)]))
    counts, pooled, mass = counts_of(model, cells.X, genes, survey), 0.0, 0
    drawn = np.stack([with_seed(model, seed)._draw(counts, survey)[1] for seed in range(20)])
    for i in range(64):
        observed = np.bincount(drawn[:, i].ravel(), minlength=model.genome.n_rows)[recorded["gene_token_idx"]]
        expected = recorded["sampling_weights"][i].astype(float) * 20 * 1024
        assert observed[expected == 0].sum() == 0 and observed.sum() == 20 * 1024
        used = expected > 0
        pooled += ((observed[used] - expected[used]) ** 2 / expected[used]).sum()
        mass += used.sum() - 1
    assert stats.chi2.sf(pooled, mass) > 1e-4


def test_the_order_of_chromosomes_is_uniform_and_independent_of_the_draw():
    model = UCE.random(GENES, sample_size=1024)
    drawn, ranks = drawn_genes(model, small_counts(2), 600)
    n = ranks.shape[2]
    assert (np.sort(ranks, axis=2) == np.arange(n)).all()
    for chromosome in range(n):
        places = np.bincount(ranks[:, 0, chromosome], minlength=n)
        assert stats.chisquare(places).pvalue > 1e-5
    # Which of two comes first does not tell which of two others does.
    a, b = ranks[:, 0, 0] < ranks[:, 0, 1], ranks[:, 0, 2] < ranks[:, 0, 3]
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(600)
    first = (drawn[:, 0] == drawn[0, 0, 0]).sum(axis=1)
    assert abs(np.corrcoef(first, ranks[:, 0, 0])[0, 1]) < 5 / np.sqrt(600)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_draws_invert_the_cumulative_weight_of_their_row(seed, lengths):
    rng = np.random.default_rng(seed)
    ends = np.cumsum(lengths)
    weights = rng.random(ends[-1]) * (rng.random(ends[-1]) < 0.6)
    weights[ends - 1] = 0.5
    u = rng.random((len(lengths), 20))
    entries = draw_entries(weights, np.stack([ends - lengths, ends]), u)
    for i, (a, b) in enumerate(zip(ends - lengths, ends, strict=True)):
        cdf = np.cumsum(weights[a:b]) / weights[a:b].sum()
        far = np.abs(cdf[:, None] - u[i]).min(axis=0) > 1e-6
        assert (entries[i] - a)[far].tolist() == np.searchsorted(cdf, u[i], side="right")[far].tolist()
        assert (weights[entries[i]] > 0).all()
    alone = draw_entries(weights[: ends[0]], np.array([[0], [ends[0]]]), u[:1])
    np.testing.assert_array_equal(alone, entries[:1])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 40), n=st.integers(1, 5))
def test_lowest_marks_the_lowest_of_each_row(seed, size, n):
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(size + rng.integers(1, 60, n))])
    # Crowded numbers put many into one part of the histogram.
    u = rng.random(offsets[-1]) * rng.choice([1.0, 1e-4])
    marked = lowest(u, offsets, size)
    for i in range(n):
        row = slice(offsets[i], offsets[i + 1])
        assert np.flatnonzero(marked[row]).tolist() == sorted(np.argsort(u[row])[:size])


def test_a_cell_keeps_its_draws_wherever_it_stands(model):
    X, order = small_counts(), np.random.default_rng(0).permutation(N_GENES)
    expected = embed(model, X)
    np.testing.assert_allclose(
        embed(model, X[:, order], Genes.from_names(GENES.names[order])), expected, rtol=1e-5, atol=1e-6
    )
    rows = np.array([4, 1])
    np.testing.assert_allclose(embed(model, X[rows], block_size=1), expected[rows], rtol=1e-5, atol=1e-6)
    assert np.abs(embed(with_seed(model, 1), X) - expected).max(axis=1).min() > 1e-4


# Sentences


@pytest.mark.parametrize("options", [{}, {"draws": "stream"}])
def test_sentences_go_through_chromosomes_by_position(options):
    model = UCE.random(GENES, sample_size=64, **options)
    tokens, start = tokens_of(model, small_counts()), {row: place for row, _, place in model.genome.loci}
    code = {row: chromosome for row, chromosome, _ in model.genome.loci}
    for i in range(len(tokens)):
        sentence = tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]].tolist()
        assert sentence.pop(0) == CLS
        seen, n_genes = [], 0
        while sentence:
            seen.append(sentence.pop(0) - model.genome.chromosome_offset)
            end = sentence.index(CHROMOSOME_END)
            genes, sentence = sentence[:end], sentence[end + 1 :]
            assert genes and {code[g] for g in genes} == {seen[-1]}
            assert [start[g] for g in genes] == sorted(start[g] for g in genes)
            n_genes += len(genes)
        assert n_genes == 64 and len(set(seen)) == len(seen)


# The steps of the official pipeline that see the whole data set


@pytest.fixture(scope="module")
def uneven():
    """12 cells: GENE0 to GENE29 in all, GENE30 and later in few; the last two cells hold few genes."""
    X = np.zeros((12, N_GENES), dtype=np.float32)
    X[:, :30] = 1 + (np.arange(12)[:, None] * 7 + np.arange(30) * 3) % 5
    X[:5, 30:] = 3
    X[10, 20:30] = 0
    X[11, 24:30] = 0
    return X


def test_the_data_set_filter_leaves_out_rare_genes_and_then_small_cells(uneven):
    tokens = tokens_of(UCE.random(GENES, sample_size=64, dataset_filter=True), uneven)
    assert tokens.usable.tolist() == [True] * 10 + [False] * 2
    kept = {4 + sorted(GENES.names).index(f"GENE{i}") for i in range(30)}
    assert {t for t in tokens.ids if t in range(4, 4 + N_GENES)} <= kept
    assert tokens_of(UCE.random(GENES, sample_size=64), uneven).usable.all()


def test_genes_without_protein_count_for_the_filter_but_are_not_drawn(uneven):
    known = Genes.from_names(GENES.names[:20])
    tokens = tokens_of(UCE.random(known, sample_size=64, dataset_filter=True), uneven)
    assert tokens.usable.tolist() == [True] * 10 + [False] * 2
    assert tokens.ids.max() < 4 + 20 + 24


def test_official_batches_are_cells_in_file_order(uneven):
    options = {"sample_size": 40, "draws": "stream", "official_batch": 4}
    tokens = tokens_of(UCE.random(GENES, padding="official", **options), uneven)
    own = tokens_of(UCE.random(GENES, **options), uneven)
    assert len(set(own.lengths)) > 1
    for first in range(0, 12, 4):
        assert set(tokens.lengths[first : first + 4]) == {own.lengths[first : first + 4].max()}
    whole = embed(UCE.random(GENES, padding="official", **options), uneven)
    parts = embed(UCE.random(GENES, padding="official", **options), uneven, block_size=5, batch_size=3)
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)


def test_official_pads_have_a_bias_of_one(uneven):
    model = UCE.random(GENES, sample_size=40, padding="official")
    tokens = tokens_of(model, uneven)
    row = int(np.argmin(np.add.reduceat(tokens.ids != PAD, tokens.offsets[:-1])))
    one = tokens.take(np.array([row]))
    assert (one.ids == PAD).any()
    with torch.no_grad():
        x = model.network.embed(model.collate(one)["ids"])
        for block in model.network.blocks:
            q, k, v = (
                getattr(block.attention, f"{p}_proj")(x)[0].unflatten(-1, (4, -1)).transpose(0, 1) for p in "qkv"
            )
            logits = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5 + torch.from_numpy((one.ids == PAD).astype(np.float32))
            y = block.attention.out_proj((logits.softmax(-1) @ v).transpose(0, 1).flatten(1))
            x = block.norm1(x + y)
            x = block.norm2(x + block.linear2(torch.relu(block.linear1(x))))
        expected = torch.nn.functional.normalize(model.network.decoder(x[:, 0]), dim=-1)
    np.testing.assert_allclose(embed(model, uneven)[row], expected[0], rtol=1e-4, atol=1e-6)


def test_data_set_steps_want_a_survey(uneven):
    for options in ({"dataset_filter": True}, {"padding": "official"}, {"draws": "stream"}):
        model = UCE.random(GENES, sample_size=64, **options)
        with pytest.raises(InputError, match="survey"):
            model.tokenize(counts_of(model, uneven))


# The network


def test_tokens_are_projected_once_and_again_after_the_encoder_has_changed():
    model = UCE.random(GENES, sample_size=64)
    ids = model.collate(tokens_of(model, small_counts()))["ids"]
    network = model.network
    with torch.inference_mode():
        before = network.embed(ids)
        assert network.proteins.table() is network.proteins.table()
    assert len(network.proteins.table()) == 3 + N_GENES + len(model.genome.chromosomes)
    trained = network.embed(ids)
    assert trained.requires_grad
    torch.testing.assert_close(trained.detach(), before)
    with torch.no_grad():
        network.proteins.encoder[0].weight.mul_(1.5)
        after = network.embed(ids)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(network.embed(ids).detach(), after)


def test_a_copy_of_the_network_shares_the_proteins(model):
    twin = copy.deepcopy(model.network)
    assert twin.proteins.source is model.network.proteins.source
    batch = model.collate(tokens_of(model, small_counts()))
    with torch.no_grad():
        torch.testing.assert_close(twin(batch), model.network(batch), rtol=0, atol=0)


def test_every_parameter_gets_a_gradient():
    model = UCE.random(GENES, sample_size=64)
    model.network.train()
    batch = model.collate(tokens_of(model, small_counts()))
    (model.network(batch) * torch.arange(24.0)).sum().backward()
    silent = [n for n, p in model.network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    # A key's bias shifts all attention scores of a query alike: its gradient is zero up to rounding.
    assert all(".k_proj.bias" in n for n in silent)


def test_a_cell_without_genes_is_nan(model):
    X = sparse.csr_matrix(small_counts().multiply(np.arange(6)[:, None] != 2))
    assert np.isnan(embed(model, X)).all(axis=1).tolist() == [False, False, True, False, False, False]


def test_golden_numbers(model):
    stored = json.loads(Path(__file__).with_name("golden").joinpath("uce.json").read_text())
    np.testing.assert_allclose(embed(model, small_counts()), stored["embedding"], rtol=1e-4, atol=1e-6)


# Checkpoint files


@pytest.mark.parametrize("form", ["folder", "file", "json", "33 layers"])
def test_reads_the_official_layout(model, folder, form):
    path = folder
    if form == "json":
        (folder / "species_offsets.pkl").unlink()
        (folder / "species_offsets.json").write_text('{"human": 4}')
    elif form == "33 layers":
        (folder / "4layer_model.torch").rename(folder / "33l_8ep_1024t_1280.torch")
    elif form == "file":
        path = folder / "4layer_model.torch"
    loaded = read(path)
    np.testing.assert_allclose(embed(loaded, small_counts()), embed(model, small_counts()), rtol=1e-5, atol=1e-6)
    assert len(loaded.digests) == 4 and not loaded.network.training
    assert len(loaded.network.blocks) == 2


def test_symbols_match_in_any_case(folder):
    loaded = read(folder)
    lower = Genes.from_names([n.capitalize() for n in GENES.names])
    np.testing.assert_array_equal(embed(loaded, small_counts(), lower), embed(loaded, small_counts()))


def test_a_named_weight_file_is_read_although_the_folder_holds_another(model, folder):
    other = {k: v for k, v in official_tensors(model).items() if ".layers.1." not in k}
    torch.save(other, folder / "33l_8ep_1024t_1280.torch")
    assert len(read(folder / "33l_8ep_1024t_1280.torch").network.blocks) == 1
    assert len(read(folder).network.blocks) == 2


def test_genes_without_or_with_several_positions_are_named(model, folder):
    table = positions(model)
    table = table[table.gene_symbol != "GENE7"]
    again = table[table.gene_symbol == "GENE8"].assign(start=10**6)
    pd.concat([table, again]).to_csv(folder / "species_chrom.csv")
    loaded = read(folder)
    with pytest.warns(ScDrugMapWarning) as caught:
        matched = loaded.align(GENES)
    messages = " ".join(str(w.message) for w in caught)
    assert "GENE7 ...) have no position" in messages and "GENE8 ...) have several" in messages
    assert "GENE7" not in matched.genes
    np.testing.assert_array_equal(loaded.genome.loci[:, 1:].max(axis=0), model.genome.loci[:, 1:].max(axis=0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("transformer_encoder.layers.1.linear1.bias"), r"lacks blocks\.1\.linear1\.bias"),
        (lambda t: t.update({"surplus.weight": torch.zeros(1)}), "unexpected surplus"),
        (lambda t: t.update({"decoder.0.1.weight": torch.zeros(5)}), r"mis-shaped decoder\.0\.1\.weight \(5,\)"),
        (lambda t: t.pop("encoder.0.weight"), r"without 'encoder\.0\.weight'"),
        (lambda t: t.update({"pe_embedding.weight": torch.zeros(80, 20)}), "90 symbols"),
        (lambda t: t.update({"pe_embedding.weight": torch.zeros(118, 3)}), "vectors of 3"),
    ],
)
def test_every_tensor_is_accounted_for(model, folder, change, message):
    tensors = official_tensors(model)
    change(tensors)
    torch.save(tensors, folder / "4layer_model.torch")
    with pytest.raises(CheckpointError, match=message):
        read(folder)


FILES = ["4layer_model.torch", "species_chrom.csv", "species_offsets.pkl", f"protein_embeddings/{PROTEINS}"]


@pytest.mark.parametrize("name", FILES)
def test_missing_files_are_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=Path(name).name):
        read(folder)


@pytest.mark.parametrize("name", ["4layer_model.torch", f"protein_embeddings/{PROTEINS}", "species_offsets.pkl"])
def test_short_files_are_named(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=Path(name).name):
        read(folder)


def test_other_tables_are_refused(folder):
    (folder / "species_chrom.csv").write_text("gene,chromosome\nA,1\n")
    with pytest.raises(CheckpointError, match=r"species_chrom\.csv"):
        read(folder)


def test_offsets_run_no_code(folder):
    (folder / "species_offsets.pkl").write_bytes(pickle.dumps({"human": Path("x")}))
    with pytest.raises(CheckpointError, match="pathlib"):
        read(folder)


def test_heads_must_divide_the_width(folder):
    with pytest.raises(InputError, match=r"heads.*divisor of the width 32"):
        read(folder, heads=20)
