"""Speed of embedding at the official model sizes, as a share of what the machine can do, and beside the official way.

    python benchmarks/embed.py [--models scgpt uce ...] [--cells 32] [--seconds 30] [--markdown table.md]
    python benchmarks/embed.py --beside cellplm scfoundation scgpt     # both ways in one process, and how far they differ

The first is ``scdrugmap bench`` with two columns more: the share of the matrix-product rate that the official
implementations reached on another day, and the goal. The second runs the official way of ``official.py`` on the same cells
with the same weights, in turns with ours, and ends with an error where the results differ. A share is the useful operations
per second in the network over the rate of a matrix product.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

#: Official implementations on 2 CPU cores: useful FLOP/s over matmul FLOP/s.
OFFICIAL = {
    "scgpt": 0.22, "geneformer": 0.47, "tgpt": 0.67, "scbert": 0.19, "celllm": 0.09, "scfoundation": 0.52,
    "cellplm": 0.32, "uce": 0.74,
}  # fmt: skip
TARGET = dict.fromkeys(("scgpt", "geneformer", "tgpt", "scfoundation", "uce"), 0.7) | dict.fromkeys(
    ("scbert", "celllm", "cellplm"), 0.4
)
#: Cells for the comparison of both ways.
BESIDE = {"cellplm": 512, "scfoundation": 4, "scgpt": 16}


def beside(key: str, cells: int, repeats: int, size: Any = "official") -> dict[str, Any]:
    """Both ways on the same cells, in turns; the best time of each counts."""
    import torch
    from official import OFFICIAL_EQUIVALENT, difference

    from scdrugmap._device import Engine
    from scdrugmap.embedding.embed import embed_counts
    from scdrugmap.embedding.source import CountSource
    from scdrugmap.models import registry
    from scdrugmap.models.kit.counts import Counts
    from scdrugmap.testing.speed import FLOPS, bench_cells, bench_genes, matmul_rate

    X, genes = bench_cells(cells), bench_genes()
    model: Any = registry.get(key).random(genes, size=size)  # type: ignore[attr-defined]
    theirs_on, alignment = OFFICIAL_EQUIVALENT[key](model), model.align(genes)
    engine = Engine("cpu", "float32", progress=False)
    seconds: dict[str, list[float]] = {"ours": [], "network": [], "theirs": [], "their network": []}
    rates, relative = [], 0.0
    for _ in range(repeats + 1):
        work = embed_counts(model, CountSource(X), genes, engine)
        start = time.perf_counter()
        tokens = model.tokenize(Counts(alignment.apply(X), alignment.ids, alignment.genes, np.arange(cells)))
        ready = time.perf_counter()
        with torch.inference_mode():
            theirs = theirs_on(tokens).numpy()
        end = time.perf_counter()
        seconds["theirs"].append(end - start)
        seconds["their network"].append(end - ready)
        seconds["ours"].append(work.work.seconds)
        seconds["network"].append(work.work.network_seconds)
        rates.append(matmul_rate(seconds=0.2))
        relative = max(relative, difference(work.values, theirs))
    # The first pass of each is for warming up.
    best = {name: min(values[1:]) for name, values in seconds.items()}
    useful, rate = float(FLOPS[key](model.costs(tokens)).sum()), float(np.median(rates[1:]))
    known = size == "official"
    return {
        "model": model.card.name,
        "cells": cells,
        "ours, s": best["ours"],
        "official way, s": best["theirs"],
        "times as fast": best["theirs"] / best["ours"],
        "ours in the network, s": best["network"],
        "our share": useful / best["network"] / rate if known else float("nan"),
        "their share": useful / best["their network"] / rate if known else float("nan"),
        "relative difference": relative,
        "matmul GFLOP/s": rate / 1e9,
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table of the rows."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + " --- |" * len(rows[0])]
    for row in rows:
        lines.append("| " + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(TARGET))
    parser.add_argument("--cells", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=30.0, help="time for the passes of one model")
    parser.add_argument("--beside", nargs="*", choices=list(BESIDE), help="both ways, in turns")
    parser.add_argument("--repeats", type=int, default=3, help="passes of each way")
    parser.add_argument("--tiny", action="store_true", help="toy networks, to see that everything runs")
    parser.add_argument("--markdown", help="also write the table to this file")
    arguments = parser.parse_args()
    size: Any = "tiny" if arguments.tiny else "official"
    if arguments.beside is not None:
        rows = []
        for key in arguments.beside or BESIDE:
            rows.append(beside(key, BESIDE[key], arguments.repeats, size))
            print(rows[-1], flush=True)
    else:
        import scdrugmap as sd

        table = sd.testing.bench(
            arguments.models, cells=arguments.cells, seconds=arguments.seconds, size=size,
            show=lambda key: print(f"measuring {key}", flush=True),
        )  # fmt: skip
        table["official"], table["goal"] = table["model"].map(OFFICIAL), table["model"].map(TARGET)
        rows = table.to_dict("records")
    print(markdown(rows))
    if arguments.markdown:
        with open(arguments.markdown, "w") as file:
            file.write(markdown(rows) + "\n")


if __name__ == "__main__":
    main()
