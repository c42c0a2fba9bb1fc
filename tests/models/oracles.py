"""Cell by cell, in float64 and without tricks: what each official description says the tokens and embeddings are.

Stacks of encoder layers are PyTorch's own, decoders and BERT those of ``transformers``, the linear attentions are
written out over all pairs. A cell without usable genes is ``None``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from official_layouts import ENSEMBL, VOCABULARY, Checkpoint
from torch import Tensor, nn

#: Token ids of a cell, and the values that enter with them, if any.
Cell = tuple[list[int], "list[float] | None"] | None


def expressed(row: np.ndarray, names: list[str], known: Collection[str]) -> dict[str, float]:
    """Counts of the known genes of one cell, by first column; columns of one gene are summed."""
    out: dict[str, float] = {}
    for name, count in zip(names, row, strict=True):
        if name in known and count > 0:
            out[name] = out.get(name, 0.0) + float(count)
    columns = list(dict.fromkeys(names))
    return dict(sorted(out.items(), key=lambda item: columns.index(item[0])))


def by_id(own: dict[str, float], ids: Mapping[str, int]) -> dict[str, float]:
    """The same genes in the order of their ids."""
    return dict(sorted(own.items(), key=lambda item: ids[item[0]]))


class Weights:
    """Official tensors in float64, applied by name."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = {k: v.double() for k, v in tensors.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self[f"{name}.weight"].T + self.tensors.get(f"{name}.bias", torch.zeros(()))

    def norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self[f"{name}.weight"] + self[f"{name}.bias"]

    def encoder_layer(self, prefix: str, heads: int, names: Mapping[str, str] | None = None) -> nn.Module:
        """PyTorch's own layer with the tensors under ``prefix``, loaded strictly."""
        own = {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}
        for theirs, plain in (names or {}).items():
            own = {k.replace(theirs, plain): v for k, v in own.items()}
        hidden, dim = own["linear1.weight"].shape
        layer = nn.TransformerEncoderLayer(dim, heads, hidden, activation="relu", batch_first=True, dtype=torch.float64)
        layer.load_state_dict(own)
        return layer.eval()


def scgpt(c: Checkpoint, X: np.ndarray, symbols: list[str], options: Mapping[str, Any]) -> tuple[list[Cell], list]:
    words, weights = c.facts["words"], Weights(c.tensors)
    top = options.get("max_length", 1200) - 1
    rename = {"self_attn._impl.": "self_attn.", "Wqkv.": "in_proj_"}
    layers = [
        weights.encoder_layer(f"transformer_encoder.layers.{i}.", c.facts["nheads"], rename)
        for i in range(c.facts["nlayers"])
    ]
    cells: list[Cell] = []
    embeddings: list = []
    for row in X:
        own = expressed(row, symbols, set(words))
        if options.get("too_long") != "first":
            own = by_id(own, words)
        if not own:
            cells.append(None)
            embeddings.append(None)
            continue
        if options.get("binning") == "after":
            own = dict(list(own.items())[:top])
        x = np.array(list(own.values()))
        edges = np.quantile(x, np.linspace(0, 1, 50))
        upper, lower = (edges <= x[:, None]).sum(1), (edges < x[:, None]).sum(1)
        bins = upper if options["ties"] == "upper" else np.ceil((lower + upper) / 2)
        ids = [words["<cls>"], *(words[g] for g in own)][: top + 1]
        values = [c.facts["pad_value"], *bins.tolist()][: top + 1]
        cells.append((ids, values))
        v = torch.tensor(values, dtype=torch.float64)[:, None].clamp(max=512)
        v = weights.linear("value_encoder.linear2", weights.linear("value_encoder.linear1", v).relu())
        gene = weights.norm("encoder.enc_norm", weights["encoder.embedding.weight"][ids])
        state = (gene + weights.norm("value_encoder.norm", v))[None]
        for layer in layers:
            state = layer(state)
        out = state[0, 0]
        embeddings.append(out / out.norm() if options.get("normalize") else out)
    return cells, embeddings


def uce_sentence(c: Checkpoint, own: dict[str, float], size: int, stream: np.random.RandomState) -> list[int]:
    """Draw genes from the official stream and put them between the marks of their chromosomes."""
    rows, place = {s: c.facts["first"] + i for i, s in enumerate(VOCABULARY)}, c.facts["place"]
    genes, counts = list(own), np.array(list(own.values()), dtype=np.float32)
    w = np.log1p(counts)
    p = w / w.sum(dtype=np.float32)
    p = (p / p.sum(dtype=np.float32)).astype(np.float64)
    edges = np.cumsum(p)
    drawn = [genes[i] for i in np.searchsorted(edges / edges[-1], stream.random_sample(size), side="right")]
    present = np.unique([place[g][0] for g in drawn])
    stream.shuffle(present)
    sentence = [3]
    for code in present:
        inside = sorted((g for g in drawn if place[g][0] == code), key=lambda g: place[g][1])
        sentence += [c.facts["chromosomes"] + int(code), *(rows[g] for g in inside), 2]
    return sentence


def uce(c: Checkpoint, X: np.ndarray, symbols: list[str], options: Mapping[str, Any]) -> tuple[list[Cell], list]:
    weights, stream = Weights(c.tensors), np.random.RandomState(options["seed"])
    names = [s.upper() for s in symbols]
    merged = [expressed(row, names, set(names)) for row in X]
    if options.get("dataset_filter"):
        found_in = {g: sum(g in own for own in merged) for g in set(names)}
        often, in_cells = {g for g, n in found_in.items() if n >= 10}, set(found_in.values())
        merged = [{g: n for g, n in own.items() if g in often} for own in merged]
        assert {9, 10} <= in_cells and {24, 25} <= {len(own) for own in merged}, "both thresholds must be met"
        merged = [own if len(own) >= 25 else {} for own in merged]
    merged = [{g: n for g, n in own.items() if g in c.facts["place"]} for own in merged]
    sentences = [uce_sentence(c, own, options["sample_size"], stream) if own else None for own in merged]
    kept = [s for s in sentences if s is not None]
    size = options.get("official_batch", 25) if options.get("padding") == "official" else 1
    assert len({*map(len, kept)}) > 1, "sentences of one length would need no pads"
    outputs: list[Tensor] = []
    cells: list[Cell] = []
    for start in range(0, len(kept), size):
        batch = kept[start : start + size]
        longest = max(map(len, batch))
        for sentence in batch:
            ids = sentence + [0] * (longest - len(sentence))
            cells.append((ids, None))
            outputs.append(_uce_output(c, weights, ids, len(sentence)))
    of_cells, of_outputs = iter(cells), iter(outputs)
    pick = [s is not None for s in sentences]
    return [next(of_cells) if k else None for k in pick], [next(of_outputs) if k else None for k in pick]


def _uce_output(c: Checkpoint, weights: Weights, ids: list[int], length: int) -> Tensor:
    table = weights["pe_embedding.weight"][ids]
    x = table / table.norm(dim=1, keepdim=True).clamp(min=1e-12)
    x = weights.norm("encoder.2", F.gelu(weights.linear("encoder.0", x))) * weights["encoder.0.bias"].numel() ** 0.5
    x = (x + weights["pos_encoder.pe"][: len(ids), 0])[None]
    # The official code hands over a float mask, which PyTorch adds to the scores of the pads.
    pads = (torch.arange(len(ids)) >= length).double()[None]
    for i in range(c.facts["layers"]):
        x = weights.encoder_layer(f"transformer_encoder.layers.{i}.", c.facts["heads"])(x, src_key_padding_mask=pads)
    y = x[0, 0]
    for i in range(3):
        y = F.gelu(weights.norm(f"decoder.{i}.1", weights.linear(f"decoder.{i}.0", y)))
    y = weights.linear("decoder.3", y)
    return y / y.norm()


def scfoundation(c: Checkpoint, X: np.ndarray, symbols: list[str], options: Mapping[str, Any]) -> tuple[list, list]:
    weights = Weights(c.facts["models"][options.get("weights", "cell")])
    genes = {s: i for i, s in enumerate(VOCABULARY)}
    mode, number = options.get("tgthighres", "t4")[0], float(options.get("tgthighres", "t4")[1:])
    cells: list[Cell] = []
    embeddings: list = []
    for row in X:
        own = by_id(expressed(row, symbols, genes), genes)
        total = sum(own.values())
        if total <= 1:
            cells.append(None)
            embeddings.append(None)
            continue
        source = np.log10(total)
        target = {"t": number, "f": np.log10(number * total), "a": source + number}[mode]
        ids = [*(genes[g] for g in own), len(genes), len(genes) + 1]
        values = [*(np.log(1 + 1e4 * n / total) for n in own.values()), target, source]
        cells.append((ids, values))
        v = torch.tensor(values, dtype=torch.float64)[:, None]
        h = F.leaky_relu(weights.linear("token_emb.mlp", v), 0.1)
        share = torch.softmax(c.facts["alpha"] * h + weights.linear("token_emb.mlp2", h), 1)
        x = (share @ weights["token_emb.emb.weight"] + weights["pos_emb.weight"][ids])[None]
        for i in range(c.facts["layers"]):
            x = weights.encoder_layer(f"encoder.transformer_encoder.{i}.", c.facts["heads"])(x)
        y = weights.norm("encoder.norm", x[0])
        pooled = [y[-1], y[-2], y[:-2].max(0).values, y[:-2].mean(0)]
        embeddings.append(y.max(0).values if options.get("pool") == "max" else torch.cat(pooled))
    return cells, embeddings


def tgpt(c: Checkpoint, X: np.ndarray, symbols: list[str], options: Mapping[str, Any]) -> tuple[list[Cell], list]:
    words, room = c.facts["words"], options.get("max_length", 64) - 2
    names = [s.replace("-", "_").replace(".", "_") for s in symbols]
    network = c.module.transformer.double()
    cells: list[Cell] = []
    embeddings: list = []
    for row in X:
        own = expressed(row, names, words)
        if options.get("ties") != "column":
            own = by_id(own, words)
        if not own:
            cells.append(None)
            embeddings.append(None)
            continue
        text = " ".join(sorted(own, key=lambda g: -own[g])[:room])
        ids = c.facts["tokenizer"].encode(text).ids
        cells.append((ids, None))
        padded = ids + [0] * (room + 2 - len(ids)) if options.get("pooling") == "all" else ids
        inputs = torch.tensor([padded])
        types = torch.zeros_like(inputs) if options.get("token_type", True) else None
        last = network(inputs, token_type_ids=types, use_cache=False).last_hidden_state[0]
        embeddings.append(last.mean(0) if options.get("pooling") == "all" else last[1:-1].mean(0))
    return cells, embeddings


def geneformer(c: Checkpoint, X: np.ndarray, symbols: list[str], options: Mapping[str, Any]) -> tuple[list[Cell], list]:
    tokens, medians, mapping = c.facts["tokens"], c.facts["medians"], c.facts["mapping"]
    names = [ENSEMBL[s] for s in symbols]
    if mapping is not None:
        names = [mapping.get(n, "") for n in names]
    room = c.facts["room"] - (2 if "<cls>" in tokens else 0)
    network = c.module.bert.double()
    cells: list[Cell] = []
    embeddings: list = []
    for row in X:
        scaled = {g: n / row.sum() * 10_000 / medians[g] for g, n in expressed(row, names, tokens).items()}
        if not scaled:
            cells.append(None)
            embeddings.append(None)
            continue
        ids = [tokens[g] for g in sorted(scaled, key=lambda g: -scaled[g])][:room]
        inner = slice(0, len(ids))
        if "<cls>" in tokens:
            ids, inner = [tokens["<cls>"], *ids, tokens["<eos>"]], slice(1, 1 + len(ids))
        cells.append((ids, None))
        states = network(torch.tensor([ids]), output_hidden_states=True).hidden_states
        state = states[-1 + options.get("emb_layer", 0)][0]
        embeddings.append(state[0] if options.get("emb_mode") == "cls" else state[inner].mean(0))
    return cells, embeddings


def llama(c: Checkpoint, X: np.ndarray, symbols: list[str], options: Mapping[str, Any]) -> tuple[list[Cell], list]:
    network = c.module.model.double()
    columns = list(dict.fromkeys(symbols))
    limit = options.get("max_tokens", 4096)
    cells: list[Cell] = []
    embeddings: list = []
    for row in X:
        own = expressed(row, symbols, set(symbols))
        if not own and options.get("empty") != "bos":
            cells.append(None)
            embeddings.append(None)
            continue
        if options.get("text") == "code":
            text = "".join(f"{g}{int(own.get(g, 0))} " for g in columns)
        else:
            order = columns if options.get("ties") == "column" else sorted(columns)
            text = " ".join(sorted(own, key=lambda g: (-own[g], order.index(g)))[: options.get("max_genes", 1024)])
        ids = c.facts["tokenizer"].encode(text).ids[:limit]
        cells.append((ids, None))
        last = network(torch.tensor([ids]), use_cache=False).last_hidden_state[0]
        pooling = {"mean": last.mean(0), "mean_no_bos": last[1:].mean(0), "last": last[-1]}
        embeddings.append(pooling[options.get("pooling", "mean")])
    return cells, embeddings


def performer_layers(w: Weights, sizes: Mapping[str, int], x: Tensor, real: Tensor) -> Tensor:
    """FAVOR+ over all pairs of positions; positions that are not ``real`` have no value and stay keys."""
    n, d = len(x), sizes["dim_head"]
    for i in range(sizes["depth"]):
        attention, feed = f"performer.net.layers.{i}.0", f"performer.net.layers.{i}.1"
        p = w[f"{attention}.fn.fast_attention.projection_matrix"]
        y = w.norm(f"{attention}.norm", x)
        q, k, v = (w.linear(f"{attention}.fn.to_{part}", y).reshape(n, -1, d).transpose(0, 1) for part in "qkv")
        uq, uk = (d**-0.25 * t @ p.T for t in (q, k))
        gq, gk = (t.square().sum(-1, keepdim=True) / (2 * d**0.5) for t in (q, k))
        fq = len(p) ** -0.5 * (torch.exp(uq - gq - uq.amax(-1, keepdim=True)) + 1e-4)
        fk = len(p) ** -0.5 * (torch.exp(uk - gk - uk.max()) + 1e-4)
        pairs = fq @ fk.transpose(1, 2)  # (heads, positions, positions)
        pairs = pairs / pairs.sum(-1, keepdim=True)
        x = x + w.linear(f"{attention}.fn.to_out", (pairs @ (v * real[:, None])).transpose(0, 1).reshape(n, -1))
        y = F.gelu(w.linear(f"{feed}.fn.fn.w1", w.norm(f"{feed}.norm", x)))
        x = x + w.linear(f"{feed}.fn.fn.w2", y)
    return w.norm("norm", x)


def binned(own: Mapping[str, float]) -> dict[str, int]:
    """``log2(1 + counts per 10,000)``, truncated, at most 5; refuses values so near an edge that rounding decides."""
    total = sum(own.values())
    values = {g: float(np.log2(1 + 1e4 * n / total)) for g, n in own.items()}
    assert all(abs(v - round(v)) > 1e-4 for v in values.values()), "choose other counts"
    return {g: min(int(v), 5) for g, v in values.items()}


def scbert(c: Checkpoint, X: np.ndarray, symbols: list[str], options: Mapping[str, Any]) -> tuple[list[Cell], list]:
    weights, genes = Weights(c.tensors), (c.folder / "genes.txt").read_text().split()
    length = min(options.get("max_length") or len(genes), len(genes))
    cells: list[Cell] = []
    embeddings: list = []
    for row in X:
        bins = binned(expressed(row, symbols, set(genes)))
        places = [(i, bins[g]) for i, g in enumerate(genes[:length]) if g in bins]
        if not places:
            cells.append(None)
            embeddings.append(None)
            continue
        cells.append(([i for i, _ in places], [float(b) for _, b in places]))
        sequence = [bins.get(g, 0) for g in genes[:length]] + [0]
        x = weights["token_emb.weight"][sequence] + weights["pos_emb.emb.weight"][: length + 1]
        y = performer_layers(weights, c.facts, x, torch.ones(length + 1, dtype=torch.float64))
        embeddings.append(y[[i for i, _ in places]].mean(0) if options.get("pooling") == "expressed" else y.mean(0))
    return cells, embeddings


def celllm(c: Checkpoint, X: np.ndarray, symbols: list[str], options: Mapping[str, Any]) -> tuple[list[Cell], list]:
    weights, genes = Weights(c.tensors), (c.folder / "gene_order.txt").read_text().split()
    row_of = {g: i for i, g in enumerate(genes)}
    length = options.get("max_length") or c.facts["max_seq_len"]
    cells: list[Cell] = []
    embeddings: list = []
    for row in X:
        bins = binned(by_id(expressed(row, symbols, row_of), row_of))
        if not bins:
            cells.append(None)
            embeddings.append(None)
            continue
        ids, values = [len(genes), *(row_of[g] for g in bins)][:length], [6, *bins.values()][:length]
        n = len(ids)
        cells.append((ids, [float(v) for v in values]))
        ids, values = ids + [len(genes) + 1] * (length - n), values + [7] * (length - n)
        real = (torch.arange(length) < n).double()
        x = weights["token_emb.weight"][values] + weights["pos_emb.emb.weight"][ids]
        y = performer_layers(weights, c.facts, x, real) * real[:, None]
        pooling = {"mean": y[:n].mean(0), "mean_padded": y.mean(0), "cls": y[0]}
        embeddings.append(pooling[options.get("pooling", "mean")])
    return cells, embeddings


def flow_attention(w: Weights, name: str, x: Tensor, heads: int) -> Tensor:
    """Flow attention over all pairs of cells, head by head."""
    queries, keys = (torch.sigmoid(w.linear(f"{name}.{part}_projection", x)) for part in ("query", "key"))
    values, n, out = w.linear(f"{name}.value_projection", x), len(x), []
    for q, k, v in zip(*(t.chunk(heads, dim=1) for t in (queries, keys, values)), strict=True):
        # ((a + e) . (b + e)) of every pair of cells, summed in the order of the description.
        incoming = 1 / ((q + 1e-6) @ (k.sum(0) + 1e-6))
        outgoing = 1 / ((k + 1e-6) @ (q.sum(0) + 1e-6))
        sink = (q + 1e-6) @ ((k * outgoing[:, None]).sum(0) + 1e-6)
        source = (k + 1e-6) @ ((q * incoming[:, None]).sum(0) + 1e-6)
        competition = n * torch.softmax(source.clamp(-1, 1), 0)
        pairs = (q * incoming[:, None]) @ k.T  # (cells, cells)
        out.append(torch.sigmoid(sink)[:, None] * (pairs @ (competition[:, None] * v)))
    return w.linear(f"{name}.out_projection", torch.cat(out, 1))


def cellplm(c: Checkpoint, X: np.ndarray, symbols: list[str], options: Mapping[str, Any]) -> tuple[list[Cell], list]:
    w, row_of = Weights(c.tensors), {g: i for i, g in enumerate(c.facts["genes"])}
    merged = [by_id(expressed(row, [ENSEMBL[s] for s in symbols], row_of), row_of) for row in X]
    keep = options.get("empty_cells") == "keep"
    cells: list[Cell] = [
        ([row_of[g] for g in m], list(np.log1p(list(m.values())))) if m or keep else None for m in merged
    ]
    dense = torch.zeros(sum(cell is not None for cell in cells), len(row_of), dtype=torch.float64)
    for row, cell in zip(dense, [cell for cell in cells if cell is not None], strict=True):
        row[cell[0]] = torch.tensor(cell[1], dtype=torch.float64)
    h = w.linear("embedder.extra_linear.0", dense @ w["embedder.feat_enc.emb"]).relu()
    h = F.group_norm(h, 4, w["embedder.extra_linear.3.weight"], w["embedder.extra_linear.3.bias"])
    for i in range(c.facts["layers"]):
        layer = f"encoder.layers.{i}"
        h = h + flow_attention(w, f"{layer}.self_attn", w.norm(f"{layer}.norm1", h), c.facts["heads"])
        inner = F.gelu(w.linear(f"{layer}._ff_block.0", w.norm(f"{layer}.norm2", h)))
        h = h + w.linear(f"{layer}._ff_block.3", inner)
    h = w.norm("pre_latent_norm.norm", h)
    if c.facts["latent"] == "vae":
        mean = w.linear("latent.layers.1.hid_2mu", h)
    else:
        inference = "latent.layers.1.inference.inference"
        logits = w.linear(f"{inference}_qyx.0.logits", h)
        best = logits.topk(2, dim=1).values
        assert (best[:, 0] - best[:, 1]).min() > 1e-3, "the component of a cell must not hang on rounding"
        component = F.one_hot(logits.argmax(1), logits.shape[1])
        mean = w.linear(f"{inference}_qzyx.2.mu", w.linear(f"{inference}_qzyx.0", torch.cat([h, component], 1)).relu())
    rows = iter(mean)
    return cells, [None if cell is None else next(rows) for cell in cells]
