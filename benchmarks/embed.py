"""Speed of embedding at the official model sizes, as a share of what the machine can do.

    python benchmarks/embed.py [--models scgpt uce ...] [--cells 32] [--threads 2] [--markdown table.md]

Weights are random and built in memory (their values do not change the speed). Cells have about 2,000 expressed
genes of 19,264. For each model, in a process of its own:

* cells/s end to end, and the share of the wall time inside the network;
* useful FLOP/s (2 x multiply-adds of linear layers and attention over real tokens, whole encoder, no padding,
  no pre-training heads) over the machine's own float32 matmul FLOP/s, measured before and after in the same run;
* padding waste of a block of 2,048 cells, matching of genes and tokenising in cells/s on one core, peak memory over the weights.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import sparse

#: Cells that are tokenised at a time, as the engine does.
BLOCK = 2048
#: Cells that take a few seconds each get fewer; the default number is for the others.
CELLS = {"scbert": 8, "celllm": 8, "scfoundation": 6, "cellplm": 512, "tgpt": 192, "llama38b": 1}
#: Official implementations on 2 CPU cores: useful FLOP/s over matmul FLOP/s.
OFFICIAL = {
    "scgpt": 0.22,
    "geneformer": 0.47,
    "tgpt": 0.67,
    "scbert": 0.19,
    "celllm": 0.09,
    "scfoundation": 0.52,
    "cellplm": 0.32,
    "uce": 0.74,
}
TARGET = {
    "scgpt": 0.7,
    "geneformer": 0.7,
    "tgpt": 0.7,
    "scfoundation": 0.7,
    "uce": 0.7,
    "scbert": 0.4,
    "celllm": 0.4,
    "cellplm": 0.4,
}


def realistic_cells(n: int, n_genes: int = 19_264, seed: int = 5) -> sparse.csr_matrix:
    """Counts with libraries of 1,500 to 16,000 and about 500 to 5,000 expressed genes."""
    rng = np.random.default_rng(seed)
    library = np.clip(rng.lognormal(np.log(3900), 0.55, n), 1_500, 16_000).astype(int)
    expression = rng.lognormal(0, 2.0, n_genes)
    expression /= expression.sum()
    rows = [rng.multinomial(size, expression) for size in library]
    return sparse.csr_matrix(np.stack(rows).astype(np.float32))


def encoder(n: np.ndarray, d: int, hidden: int, layers: int) -> np.ndarray:
    """FLOPs of softmax-attention encoder layers over sequences of length n."""
    return layers * (8 * n * d**2 + 4 * n * d * hidden + 4 * n.astype(float) ** 2 * d)


def performer(n: np.ndarray, d: int, inner: int, hidden: int, layers: int, features: int, heads: int) -> np.ndarray:
    """FLOPs of FAVOR+ layers: projections, random features of q and k, two products with the features."""
    head = inner // heads
    return layers * n * (8 * d * inner + 4 * d * hidden + heads * features * head * (2 * 2 + 2 * 2))


FLOPS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "scgpt": lambda n: encoder(n, 512, 512, 12),
    "geneformer": lambda n: encoder(n, 256, 512, 6),
    "tgpt": lambda n: 8 * (8 * n * 1024**2 + 16 * n * 1024**2 + 2 * n.astype(float) ** 2 * 1024),
    "scbert": lambda n: performer(n, 200, 640, 800, 6, 266, 10),
    "celllm": lambda n: performer(n, 512, 1024, 2048, 10, 266, 16),
    "scfoundation": lambda n: encoder(n, 768, 3072, 12),
    "uce": lambda n: encoder(n, 1280, 5120, 4),
    "cellplm": lambda n: n * 2 * (1024**2 + 4 * (4 * 1024**2 + 4 * 1024**2) + 4 * 2 * 1024 * 128 + 512 * 1040 + 512 * 512),
}  # fmt: skip


def matmul_rate(seconds: float = 1.0, size: int = 2048) -> float:
    """Float32 FLOP/s of a square matmul with the threads of this process."""
    import torch

    a, b = torch.randn(size, size), torch.randn(size, size)
    a @ b
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        a @ b
        done += 1
    return 2 * size**3 * done / (time.perf_counter() - start)


def measure(key: str, n_cells: int, threads: int, repeats: int) -> dict[str, Any]:
    """Measure one model in this process."""
    import psutil
    import torch

    from scdrugmap._device import Engine
    from scdrugmap.embedding.embed import embed_counts
    from scdrugmap.embedding.source import CountSource
    from scdrugmap.genes.identifiers import Genes
    from scdrugmap.models import registry
    from scdrugmap.models.base import GroupModel, NetworkModel
    from scdrugmap.models.kit.counts import Counts
    from scdrugmap.tl._profile import PeakMemory

    torch.set_num_threads(threads)
    X = realistic_cells(max(n_cells, BLOCK))
    names = gene_names(X.shape[1])
    cls = registry.get(key)
    assert issubclass(cls, NetworkModel)
    model = cls.random(names, size="official")
    assert isinstance(names, Genes)

    def run(rows: int) -> Any:
        return embed_counts(model, CountSource(X[:rows]), names, Engine("cpu", "float32", progress=False))

    run(min(n_cells, 2))
    weights = psutil.Process().memory_info().rss
    before = matmul_rate()
    works = []
    with PeakMemory() as memory:
        for _ in range(repeats):
            works.append(run(n_cells).work)
    rate = (before + matmul_rate()) / 2
    works.sort(key=lambda w: w.seconds)
    work = works[len(works) // 2]

    alignment = model.align(names)
    torch.set_num_threads(1)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        counts = Counts(alignment.apply(X[:BLOCK]), alignment.ids, alignment.genes, np.arange(BLOCK))
        tokens = model.tokenize(counts)
        seconds.append(time.perf_counter() - start)
    tokenize = BLOCK / min(seconds)
    lengths = np.ones(n_cells) if isinstance(model, GroupModel) else model.costs(tokens)[:n_cells]
    useful = float(FLOPS[key](lengths).sum()) if key in FLOPS else float("nan")
    return {
        "model": cls.card.name,
        "cells": n_cells,
        "tokens": float(lengths.mean()),
        "cells/s": n_cells / work.seconds,
        "GFLOP/s": useful / work.network_seconds / 1e9,
        "matmul": rate / 1e9,
        "ratio": useful / work.network_seconds / rate,
        "official": OFFICIAL.get(key, float("nan")),
        "target": TARGET.get(key, float("nan")),
        "network": work.network_seconds / work.seconds,
        "padding": float("nan") if isinstance(model, GroupModel) else planned_padding(model, tokens),
        "tokenise/s": tokenize,
        "peak-weights GB": (memory.peak - weights) / 1e9,
        "weights GB": weights / 1e9,
    }


def planned_padding(model: Any, tokens: Any) -> float:
    """Share of padded positions in the batches of a block of the engine's size."""
    costs = model.costs(tokens)
    batches = model.plan(tokens, model.token_budget, None)
    return 1 - sum(costs[b].sum() for b in batches) / sum(costs[b].max() * len(b) for b in batches)


def gene_names(n: int) -> Any:
    """Real identifiers, and placeholders beyond the packaged table."""
    import pandas as pd

    from scdrugmap.genes.identifiers import Genes
    from scdrugmap.genes.table import packaged_table

    table = packaged_table().drop_duplicates("symbol").iloc[:n]
    more = n - len(table)
    symbols = pd.concat([table["symbol"], pd.Series([f"PLACE{i}" for i in range(more)])])
    ensembl = pd.concat([table["ensembl_id"], pd.Series([f"ENSG7{i:010d}" for i in range(more)])])
    return Genes.from_names(symbols.tolist(), ensembl=ensembl.tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(FLOPS))
    parser.add_argument("--cells", type=int, default=32, help="cells of the models that CELLS does not list")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--markdown", help="also write the table to this file")
    parser.add_argument("--one", action="store_true", help="measure in this process and print JSON")
    arguments = parser.parse_args()
    if arguments.one:
        (key,) = arguments.models
        n_cells = CELLS.get(key, arguments.cells)
        print(json.dumps(measure(key, n_cells, arguments.threads, arguments.repeats)))
        return
    rows = []
    for key in arguments.models:
        command = [sys.executable, __file__, "--one", "--models", key, "--cells", str(arguments.cells)]
        command += ["--threads", str(arguments.threads), "--repeats", str(arguments.repeats)]
        out = subprocess.run(command, capture_output=True, text=True)
        if out.returncode:
            print(f"{key}: {out.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        row = json.loads(out.stdout.strip().splitlines()[-1])
        rows.append(row)
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + " --- |" * len(rows[0])]
    for row in rows:
        lines.append("| " + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
    print("\n".join(lines))
    if arguments.markdown:
        with open(arguments.markdown, "w") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
