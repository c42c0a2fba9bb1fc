"""One training step of LoRA adapters, beside peft on the official module, and what it keeps in memory.

    python benchmarks/lora.py                      # Geneformer 6L (HF BertModel) and scGPT (torch TransformerEncoderLayer)
    python benchmarks/lora.py --tiny               # toy networks, to see that everything runs

Both sides: the same cells, batch and length, adapters of rank 8 with dropout 0.05, no dropout of the base network, one linear
head, AdamW. Adapters stand on queries and values for Geneformer, and on the feed-forward layers for scGPT, whose official
attention holds its projections in one matrix, past which adapters on its parts go unheard. The official modules have the same
sizes and random weights.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from official import encoder_layer
from torch import Tensor, nn

from scdrugmap.lora.adapters import LoRAOptions, attach
from scdrugmap.lora.checkpointing import checkpointed
from scdrugmap.models import registry
from scdrugmap.models.kit.counts import Counts
from scdrugmap.testing.speed import bench_cells, bench_genes, matmul_rate


class Bert(nn.Module):
    """Geneformer as its authors use it: HF's BERT, mean over the tokens."""

    targets, ours = ("query", "value"), ("q_proj", "v_proj")

    def __init__(self, model: Any) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        net = model.network
        block = net.blocks[0]
        config = BertConfig(
            vocab_size=net.word.num_embeddings, hidden_size=net.word.embedding_dim,
            num_hidden_layers=len(net.blocks), num_attention_heads=block.attention.heads,
            intermediate_size=block.linear1.out_features, hidden_act="relu",
            max_position_embeddings=net.position.num_embeddings, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        mask = batch["mask"]
        x = self.bert(input_ids=batch["ids"], attention_mask=mask.long()).last_hidden_state
        return (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


class Layers(nn.Module):
    """scGPT's encoder of PyTorch's own layers over padded batches, read at the first position."""

    targets, ours = ("linear1", "linear2"), ("linear1", "linear2")

    def __init__(self, model: Any) -> None:
        super().__init__()
        net = model.network
        block = net.blocks[0]
        d, hidden = block.linear1.in_features, block.linear1.out_features
        # Read before the first layer alone; of the model's own layers nothing is left here.
        self.embed = net.embed
        self.layers = nn.ModuleList(encoder_layer(b, d, b.attention.heads, hidden, "relu") for b in net.blocks)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        # Frozen, but no part of the module that peft freezes.
        with torch.no_grad():
            x = self.embed(batch)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=~batch["mask"])
        return x[:, 0]


OFFICIAL: dict[str, Any] = {"geneformer": Bert, "scgpt": Layers}


def step_of(network: nn.Module, width: int, batch: dict[str, Tensor]) -> Callable[[], float]:
    """A function that takes one step and returns its seconds."""
    device = next(network.parameters()).device
    head = nn.Linear(width, 1).to(device)
    parameters = [p for p in (*network.parameters(), *head.parameters()) if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-4)
    y = torch.arange(len(batch["ids"]), device=device).remainder(2).float()

    def step() -> float:
        start = time.perf_counter()
        logit = head(network(batch).float()).squeeze(1)
        loss = nn.functional.binary_cross_entropy_with_logits(logit, y)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        loss.item()
        return time.perf_counter() - start

    return step


def kept_bytes(step: Callable[[], float]) -> int:
    """Bytes that a step keeps for the way back, each storage once, with the weights among them."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        step()
    return sum(kept.values())


def train_mode(network: Any) -> Any:
    """Dropout of the adapters on, that of the base network off, as the package trains."""
    network.eval()
    for name, part in network.named_modules():
        if "lora_dropout" in name:
            part.train()
    return network


def measure(key: str, cells: int, repeats: int, size: Any, device: str, precision: str) -> dict[str, Any]:
    """Both sides on one batch, in turns; the medians count."""
    from peft import LoraConfig, get_peft_model

    genes = bench_genes()
    model: Any = registry.get(key).random(genes, size=size)  # type: ignore[attr-defined]
    alignment = model.align(genes)
    X = bench_cells(16 * cells)
    tokens = model.tokenize(Counts(alignment.apply(X), alignment.ids, alignment.genes, np.arange(X.shape[0])))
    # The batch that both get: cells of like length, as the training divides its cells.
    rows = np.argsort(-model.costs(tokens), kind="stable")[6 * cells : 7 * cells]
    batch = {k: v.to(device) for k, v in model.collate(tokens.take(rows)).items()}
    length = batch["ids"].shape[1]
    whole = torch.arange(length) < torch.as_tensor(model.costs(tokens)[rows])[:, None]
    padded = batch | {"mask": whole.to(device)}
    model.to(torch.device(device))
    theirs_base = OFFICIAL[key](type(model).random(genes, size=size)).to(device)
    config = LoraConfig(r=8, lora_alpha=8, lora_dropout=0.05, target_modules=list(theirs_base.targets))
    # In evaluation mode PyTorch's layer would take its fast path, past the adapters; no dropout but theirs is above zero.
    theirs_net: Any = get_peft_model(theirs_base, config).train()
    options = LoRAOptions(target_modules=OFFICIAL[key].ours)
    ours_net = train_mode(attach(model, options, 0).to(device))
    ours, theirs = step_of(ours_net, model.dim, batch), step_of(theirs_net, model.dim, padded)
    seconds: dict[str, list[float]] = {"ours": [], "theirs": [], "again": []}
    kept = {}
    cast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16")
    with cast:
        for i in range(repeats + 1):
            seconds["ours"].append(ours())
            seconds["theirs"].append(theirs())
            with checkpointed(ours_net):
                seconds["again"].append(ours())
                if i == 0:
                    kept["again"] = kept_bytes(ours)
        kept |= {"ours": kept_bytes(ours), "theirs": kept_bytes(theirs)}
    t = {name: float(np.median(values[1:])) for name, values in seconds.items()}
    return {
        "model": model.card.name, "cells": cells, "length": length, "device": device, "precision": precision,
        "ours, s": t["ours"], "peft on the official module, s": t["theirs"], "ours / peft": t["ours"] / t["theirs"],
        "with checkpointing, s": t["again"], "kept, GB": kept["ours"] / 1e9, "kept by peft, GB": kept["theirs"] / 1e9,
        "kept with checkpointing, GB": kept["again"] / 1e9,
        "matmul GFLOP/s": matmul_rate(device, precision) / 1e9,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(OFFICIAL), choices=list(OFFICIAL))
    parser.add_argument("--cells", type=int, default=8, help="cells of a batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--tiny", action="store_true", help="toy networks, to see that everything runs")
    arguments = parser.parse_args()
    for key in arguments.models:
        size = "tiny" if arguments.tiny else "official"
        row = measure(key, arguments.cells, arguments.repeats, size, arguments.device, arguments.precision)
        for name, value in row.items():
            print(f"{name:32s} {value:.4g}" if isinstance(value, float) else f"{name:32s} {value}", flush=True)
        print(flush=True)


if __name__ == "__main__":
    main()
