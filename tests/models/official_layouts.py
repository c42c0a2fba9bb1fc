"""Small checkpoints in the official layouts, written from the published names and shapes of the tensors.

Nothing here reads the package: a writer of its own is what makes a comparison with another implementation a proof
that the files are read as they were meant.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

VOCABULARY = [*(f"GENE{i:02d}" for i in range(34)), "HLA-DRA", "AC119396.1", "MT-CO1"]
#: Genes of the data that no vocabulary holds.
NOVEL = ["NOVEL1", "NOVEL2", "NOVEL3"]
#: A retired Ensembl id, which Geneformer V2 maps onto the second gene.
RETIRED, RENAMED = "RETIRED1", VOCABULARY[1]
ENSEMBL = {s: f"ENSG{i:011d}" for i, s in enumerate([*VOCABULARY, *NOVEL, RETIRED], 1)}
EMPTY, UNKNOWN = 3, 5
#: Seed of the copies: some gene is in exactly 9 of 28 cells, some in 10, and cells have 24 and 25 such genes.
COPIES = 2549


def cells(times: int = 1) -> tuple[np.ndarray, list[str]]:
    """Counts of seven cells over shuffled columns, and the symbols of these; copies of the cells lose some genes.

    A gene stands twice, three of the vocabulary are missing, three are in no vocabulary, cell 3 is empty and
    cell 5 expresses unknown genes only. One gene takes most of the counts, so that normalised values of the
    others spread over the bins.
    """
    rng = np.random.default_rng(11)
    symbols = [s for s in VOCABULARY if s not in ("GENE07", "GENE20", "HLA-DRA")] + [*NOVEL, RETIRED, "GENE05"]
    symbols = rng.permutation(symbols).tolist()
    rate = rng.lognormal(1.2, 1.3, len(symbols)) * rng.lognormal(0.0, 0.5, (7, 1))
    counts = rng.poisson(rate) * (rng.random(rate.shape) > 0.25)
    counts[:, symbols.index("GENE00")] = rng.integers(3_000, 16_000, 7)
    counts[EMPTY] = 0
    counts[UNKNOWN] = np.where(np.isin(symbols, NOVEL), 1 + counts[UNKNOWN], 0)
    counts = np.tile(counts, (times, 1)).astype(float)
    counts[7:] *= np.random.default_rng(COPIES).random(counts[7:].shape) > 0.08
    return counts, symbols


@dataclass
class Checkpoint:
    """A folder in the official layout, and what was written into it."""

    folder: Path
    tensors: dict[str, Tensor] = field(default_factory=dict)
    #: Sizes, vocabulary and whatever else the reference needs.
    facts: dict[str, Any] = field(default_factory=dict)
    module: Any = None


def drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Random tensors: matrices by fan-in, scales of norms near one, biases near zero, none of them exact."""
    rng = np.random.default_rng(seed)
    out = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape)
        if name.endswith("projection_matrix"):
            pass
        elif len(shape) > 1:
            values /= np.sqrt(shape[-1]) if "emb" not in name else 1.0
        else:
            values = 0.2 * values + name.endswith("weight")
        out[name] = torch.from_numpy(values.astype(np.float32))
    return out


def shake(module: nn.Module, seed: int) -> None:
    """Give a library's module random parameters like those of :func:`drawn`; its own are too small to show errors.

    Embeddings stay small, so that the constant under the root of the norms shows.
    """
    with torch.no_grad():
        values = drawn({n: tuple(p.shape) for n, p in module.named_parameters()}, seed)
        for name, parameter in module.named_parameters():
            table = parameter.ndim == 2 and ("emb" in name or name.startswith("transformer.w"))
            parameter.copy_(values[name] * (0.02 if table else 1.0))


def encoder_layer(prefix: str, dim: int, hidden: int, qkv: str = "self_attn.in_proj_") -> dict[str, tuple[int, ...]]:
    """Shapes of one ``nn.TransformerEncoderLayer``; the stacked projection may have another name."""
    out = qkv.replace("in_proj_", "").replace("Wqkv.", "")
    shapes: dict[str, tuple[int, ...]] = {f"{qkv}weight": (3 * dim, dim), f"{qkv}bias": (3 * dim,)}
    for name, rows, columns in ((f"{out}out_proj", dim, dim), ("linear1", hidden, dim), ("linear2", dim, hidden)):
        shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    for name in ("norm1", "norm2"):
        shapes |= {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}
    return {f"{prefix}{k}": v for k, v in shapes.items()}


def affine(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    """Weight and bias of a linear layer (rows, columns) or of a norm (width)."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def scgpt(folder: Path, layout: str = "self_attn.Wqkv.") -> Checkpoint:
    """``args.json``, ``vocab.json`` (not sorted by id) and ``best_model.pt`` with heads."""
    dim, hidden, layers, heads = 16, 24, 2, 4
    order = np.random.default_rng(1).permutation(len(VOCABULARY) + 3)
    words = dict(zip(["<eoc>", *VOCABULARY, "<cls>", "<pad>"], order.tolist(), strict=True))
    shapes = {"encoder.embedding.weight": (len(words), dim), **affine("encoder.enc_norm", dim)}
    shapes |= affine("value_encoder.linear1", dim, 1) | affine("value_encoder.linear2", dim, dim)
    shapes |= affine("value_encoder.norm", dim)
    for i in range(layers):
        shapes |= encoder_layer(f"transformer_encoder.layers.{i}.", dim, hidden, layout)
    heads_only = affine("decoder.fc.0", dim, dim) | affine("cls_decoder.out_layer", 2, dim)
    tensors = drawn(shapes | heads_only | {"mvc_decoder.W.weight": (dim, dim), "flag_encoder.weight": (2, dim)}, 2)
    tensors["encoder.embedding.weight"] *= 0.02
    args = {"embsize": dim, "nheads": heads, "d_hid": hidden, "nlayers": layers, "n_layers_cls": 3, "dropout": 0.2}
    args |= {"pad_token": "<pad>", "pad_value": -2, "n_bins": 51}
    (folder / "args.json").write_text(json.dumps(args))
    (folder / "vocab.json").write_text(json.dumps(words))
    torch.save(tensors, folder / "best_model.pt")
    return Checkpoint(folder, tensors, args | {"words": words, "layout": layout})


def uce(folder: Path, dim: int = 16, heads: int = 4) -> Checkpoint:
    """Weights with the token table of two species, positions, offsets and the proteins of one of them."""
    hidden, token_dim, wide, out, layers = 40, 24, 12, 20, 2
    rng = np.random.default_rng(3)
    others = [f"FROG{i}" for i in range(9)]
    places = [("frog", s, str(rng.integers(1, 4)), int(p)) for s, p in zip(others, rng.permutation(99), strict=False)]
    starts = rng.permutation(10_000)
    for symbol, start in zip(VOCABULARY[::-1], starts, strict=False):
        places.append(("human", symbol, rng.choice(["1", "2", "3", "7", "10", "11", "X", "Y", "MT"]), int(start)))
    table = pd.DataFrame(places, columns=["species", "gene_symbol", "chromosome", "start"])
    table[["gene_symbol", "chromosome", "start", "species"]].to_csv(folder / "species_chrom.csv")
    codes = sorted({f"{s}_{c}" for s, _, c, _ in places})
    offsets = {"frog": 4, "human": 4 + len(others)}
    n_rows = 4 + len(others) + len(VOCABULARY) + len(codes)
    (folder / "species_offsets.pkl").write_bytes(pickle.dumps(offsets))
    shapes = {"pe_embedding.weight": (n_rows, token_dim), "pos_encoder.pe": (1536, 1, dim)}
    shapes |= affine("encoder.0", dim, token_dim) | affine("encoder.2", dim)
    for i in range(layers):
        shapes |= encoder_layer(f"transformer_encoder.layers.{i}.", dim, hidden)
    for i, widths in enumerate([(wide, dim), (out, wide), (out, out)]):
        shapes |= affine(f"decoder.{i}.0", *widths) | affine(f"decoder.{i}.1", widths[0])
    shapes |= affine("decoder.3", out, out) | affine("binary_decoder.3", 1, 8) | affine("gene_embedding_layer.0", 4, 4)
    tensors = drawn(shapes, 4)
    tensors["pe_embedding.weight"][0] = 0
    torch.save(tensors, folder / "4layer_model.torch")
    proteins = {s.lower() if i % 2 else s: torch.zeros(2) for i, s in enumerate(VOCABULARY)}
    (folder / "protein_embeddings").mkdir()
    torch.save(proteins, folder / "protein_embeddings" / "Homo_sapiens.GRCh38.gene_symbol_to_embedding_ESM2.pt")
    place = {s: (codes.index(f"{o}_{c}"), p) for o, s, c, p in places}
    facts = {"heads": heads, "layers": layers, "first": offsets["human"], "chromosomes": n_rows - len(codes)}
    return Checkpoint(folder, tensors, facts | {"place": place})


def scfoundation(folder: Path) -> Checkpoint:
    """``models.ckpt`` with two models, and the gene list."""
    dim, layers, heads, bins = 16, 2, 2, 10
    shapes = affine("token_emb.mlp", bins, 1) | affine("token_emb.mlp2", bins, bins)
    shapes |= {"token_emb.emb.weight": (bins, dim), "pos_emb.weight": (len(VOCABULARY) + 3, dim)}
    for i in range(layers):
        shapes |= encoder_layer(f"encoder.transformer_encoder.{i}.", dim, 4 * dim)
    shapes |= affine("encoder.norm", dim)
    unused = {"token_emb.emb_mask.weight": (1, dim), "token_emb.emb_pad.weight": (1, dim)}
    unused |= affine("decoder_embed", 8, dim) | affine("norm", 8) | affine("to_final", 1, 8)
    unused["decoder.performer.net.layers.0.0.fn.fast_attention.projection_matrix"] = (8, 4)
    encoder = {"hidden_dim": dim, "depth": layers, "heads": heads, "dim_head": 8, "module_type": "transformer"}
    sizes = {"encoder": encoder | {"norm_first": False}, "seq_len": len(VOCABULARY) + 2, "bin_num": 99}
    sizes |= {"bin_alpha": 0.7, "mask_token_id": 102, "pad_token_id": 103, "n_class": 104}
    # What stands under dataset_config wins over the model's own settings.
    config = {"model": "mae_autobin", "model_config": {"mae_autobin": sizes}}
    config["dataset_config"] = {"rnaseq": {"bin_num": bins}}
    models = {key: drawn(shapes | unused, seed) for key, seed in (("cell", 5), ("rde", 6))}
    saved = {k: {"config": config, "state_dict": {f"model.{n}": t for n, t in m.items()}} for k, m in models.items()}
    torch.save(saved, folder / "models.ckpt")
    rows = "".join(f"{g}\t{i}\n" for i, g in enumerate(VOCABULARY))
    (folder / "OS_scRNA_gene_index.19264.tsv").write_text(f"gene_name\tindex\n{rows}")
    return Checkpoint(folder, facts={"models": models, "layers": layers, "heads": heads, "alpha": 0.7})


def performer(sizes: dict[str, int], tokens: int, positions: int, seed: int) -> dict[str, Tensor]:
    """Tensors of a Performer language model: a float64 position table, a counter and a head."""
    dim, inner, head = sizes["dim"], sizes["heads"] * sizes["dim_head"], sizes["dim_head"]
    shapes: dict[str, tuple[int, ...]] = {"token_emb.weight": (tokens, dim), "pos_emb.emb.weight": (positions, dim)}
    for i in range(sizes["depth"]):
        attention, feed = f"performer.net.layers.{i}.0", f"performer.net.layers.{i}.1"
        shapes |= affine(f"{attention}.norm", dim) | affine(f"{feed}.norm", dim)
        shapes[f"{attention}.fn.fast_attention.projection_matrix"] = (int(head * np.log(head)), head)
        shapes |= {f"{attention}.fn.to_{p}.weight": (inner, dim) for p in "qkv"}
        shapes |= affine(f"{attention}.fn.to_out", dim, inner)
        shapes |= affine(f"{feed}.fn.fn.w1", 4 * dim, dim) | affine(f"{feed}.fn.fn.w2", dim, 4 * dim)
    tensors = drawn(shapes | affine("norm", dim) | affine("to_out", tokens, dim), seed)
    tensors["pos_emb.emb.weight"] = tensors["pos_emb.emb.weight"].double()
    tensors["performer.calls_since_last_redraw"] = torch.tensor(3)
    return tensors


PERFORMER = {"dim": 12, "depth": 2, "heads": 3, "dim_head": 8}


def scbert(folder: Path) -> Checkpoint:
    """``panglao_pretrain.pth`` and the gene order; the last position is the zero row."""
    tensors = performer(PERFORMER, 7, len(VOCABULARY) + 1, 7)
    tensors["pos_emb.emb.weight"][-1] = 0
    torch.save({"epoch": 9, "model_state_dict": tensors, "losses": [0.3]}, folder / "panglao_pretrain.pth")
    (folder / "genes.txt").write_text("\n".join(VOCABULARY) + "\n")
    return Checkpoint(folder, tensors, PERFORMER)


def celllm(folder: Path) -> Checkpoint:
    """Weights, gene order and configuration; the gene table ends with the ones of CLS and the zeros of pads."""
    tensors = performer(PERFORMER, 8, len(VOCABULARY) + 2, 8)
    tensors["pos_emb.emb.weight"][-2:] = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    structure = {"name": "celllm", "num_tokens": 8, "max_seq_len": 50, "gene_num": len(VOCABULARY), **PERFORMER}
    structure |= {"ckpt_path": "checkpoint4_fixed.pth", "param_key": "model_state_dict"}
    torch.save({"model_state_dict": tensors}, folder / "checkpoint4_fixed.pth")
    (folder / "gene_order.txt").write_text("\n".join(VOCABULARY) + "\n")
    (folder / "cellLM.json").write_text(json.dumps({"model": "celllm", "network": {"structure": structure}}))
    return Checkpoint(folder, tensors, PERFORMER | {"max_seq_len": 50})


def cellplm(folder: Path, latent: str = "gmvae") -> Checkpoint:
    """The pair of ``<prefix>.config.json`` and ``<prefix>.best.ckpt``; 8 heads and an inner width of 512 by default."""
    dim, layers, z, clusters = 32, 2, 12, 5
    genes = [ENSEMBL[s] for s in VOCABULARY[::-1]]
    shapes: dict[str, tuple[int, ...]] = {"embedder.feat_enc.emb": (len(genes), dim)}
    shapes |= affine("embedder.extra_linear.0", dim, dim) | affine("embedder.extra_linear.3", dim)
    for i in range(layers):
        layer = f"encoder.layers.{i}"
        for part in ("query", "key", "value", "out"):
            shapes |= affine(f"{layer}.self_attn.{part}_projection", dim, dim)
        shapes |= affine(f"{layer}.norm1", dim) | affine(f"{layer}.norm2", dim)
        shapes |= affine(f"{layer}._ff_block.0", 2 * dim, dim) | affine(f"{layer}._ff_block.3", dim, 2 * dim)
    shapes |= affine("pre_latent_norm.norm", dim)
    inference = "latent.layers.1.inference.inference"
    if latent == "gmvae":
        shapes |= affine(f"{inference}_qyx.0.logits", clusters, dim) | affine(
            f"{inference}_qzyx.0", 512, dim + clusters
        )
        shapes |= affine(f"{inference}_qzyx.2.mu", z, 512) | affine(f"{inference}_qzyx.2.var", z, 512)
    else:
        shapes |= affine("latent.layers.1.hid_2mu", z, dim)
    shapes |= affine("decoder.layers.0.0", 4, 4) | {"embedder.pe_enc.pe_enc.weight": (9, dim)}
    tensors = drawn(shapes, 9)
    config = {"enc_mod": "flowformer", "enc_hid": dim, "enc_layers": layers, "latent_mod": latent}
    config |= {"post_latent_dim": z, "num_clusters": clusters, "norm": "groupnorm", "model_dropout": 0.2}
    config |= {"dsbn": False, "input_covariate": False, "gene_list": genes}
    (folder / "20230926_85M.config.json").write_text(json.dumps(config))
    torch.save({"model_state_dict": tensors, "epoch": 3}, folder / "20230926_85M.best.ckpt")
    return Checkpoint(folder, tensors, {"genes": genes, "layers": layers, "heads": 8, "latent": latent})


def tgpt(folder: Path, positions: int = 48) -> Checkpoint:
    """A GPT-2 of ``transformers`` as its training script saves it, and a word-level tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import GPT2Config, GPT2LMHeadModel

    names = [s.replace("-", "_").replace(".", "_") for s in np.random.default_rng(10).permutation(VOCABULARY)]
    words = {w: i for i, w in enumerate(["<pad>", "</b>", "</s>", "<unk>", *names, "patient", "unused0"])}
    config = GPT2Config(vocab_size=len(words), n_positions=positions, n_embd=16, n_layer=2, n_head=4)
    model = GPT2LMHeadModel(config).eval()
    shake(model, 10)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    config.to_json_file(folder / "config.json", use_diff=False)
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</b> $A </s>", special_tokens=[("</b>", 1), ("</s>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return Checkpoint(folder, facts={"tokenizer": tokenizer, "words": words}, module=model)


def geneformer(folder: Path, version: int) -> Checkpoint:
    """A masked-language BERT of ``transformers`` and the dictionaries of V1 or V2; 24 positions cut most cells."""
    from transformers import BertConfig, BertForMaskedLM

    rng = np.random.default_rng(12)
    special = ["<pad>", "<mask>", "<cls>", "<eos>"][: 2 * version]
    genes = [ENSEMBL[s] for s in rng.permutation(VOCABULARY)]
    tokens = {w: i for i, w in enumerate([*special, *genes])}
    medians = {g: np.float64(m) for g, m in zip(genes, rng.lognormal(0.5, 1.0, len(genes)), strict=True)}
    config = BertConfig(
        vocab_size=len(tokens), hidden_size=16, num_hidden_layers=3, num_attention_heads=4, intermediate_size=24,
        hidden_act="relu", max_position_embeddings=24, layer_norm_eps=1e-12, pad_token_id=0,
    )  # fmt: skip
    model = BertForMaskedLM(config).eval()
    shake(model, 12)
    model.save_pretrained(folder)
    tag = {1: "gc30M", 2: "gc104M"}[version]
    beside = folder / "geneformer"
    beside.mkdir()
    mapping = {g: g for g in genes} | {ENSEMBL[RETIRED]: ENSEMBL[RENAMED], ENSEMBL[NOVEL[0]]: "ENSG00000999999"}
    files = {"token_dictionary": tokens, "gene_median_dictionary": medians, "ensembl_mapping_dict": mapping}
    for name, content in files.items():
        (beside / f"{name}_{tag}.pkl").write_bytes(pickle.dumps(content, protocol=4))
    facts = {"tokens": tokens, "medians": medians, "mapping": mapping if version == 2 else None, "room": 24}
    return Checkpoint(folder, facts=facts, module=model)


def llama(folder: Path) -> Checkpoint:
    """A causal Llama of ``transformers`` in shards, and a byte-level tokenizer that merges pieces of words."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    begin, end = "<|begin_of_text|>", "<|end_of_text|>"
    tokenizer = Tokenizer(models.BPE())
    cut = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(cut, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=[begin, end], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([" ".join(VOCABULARY), "GENE10 HLA-DRB1 MT-CO2 GENE11"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=begin, eos_token=end)
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=8192, rms_norm_eps=1e-5,
        rope_theta=500_000.0, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    shake(model, 13)
    model.save_pretrained(folder, max_shard_size="40KB")
    return Checkpoint(folder, facts={"tokenizer": tokenizer}, module=model)
