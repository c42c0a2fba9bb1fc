"""Everything that a card is to be measured for, in at most five minutes: one call, one file of results.

    python benchmarks/gpu.py --out gpu.json                         # on a card
    python benchmarks/gpu.py --device cpu --tiny --out dry.json     # to see that it runs, on toy networks

For bfloat16 and float32: a matrix product; every model (cells/s, share of the time in the network and waiting for its next
batch, how fast the cells can be fed); the official way in plain PyTorch on the same card for those that `official.py` holds; one
training step with adapters beside peft on the official module. Results are written after every part, and what there was no
time for is named, so that a run that is cut short is not lost.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

PRECISIONS = ("bfloat16", "float32")
#: Quick to build first: the table of UCE's proteins alone takes a while.
ORDER = ("scgpt", "geneformer", "tgpt", "cellplm", "scfoundation", "celllm", "scbert", "uce")


def plain(key: str, cells: int, size: Any, device: str, precision: str) -> dict[str, Any]:
    """The official way and ours on the same cells of one card; the best of three passes of each."""
    from official import OFFICIAL_EQUIVALENT, difference

    from scdrugmap._device import Engine
    from scdrugmap.embedding.embed import embed_counts
    from scdrugmap.embedding.source import CountSource
    from scdrugmap.models import registry
    from scdrugmap.models.kit.counts import Counts
    from scdrugmap.testing.speed import bench_cells, bench_genes

    X, genes = bench_cells(cells), bench_genes()
    model: Any = registry.get(key).random(genes, size=size)  # type: ignore[attr-defined]
    model.to(torch.device(device))
    theirs_on = OFFICIAL_EQUIVALENT[key](model, device)
    alignment = model.align(genes)
    tokens = model.tokenize(Counts(alignment.apply(X), alignment.ids, alignment.genes, np.arange(cells)))
    engine, ours, theirs, relative = Engine(device, precision, progress=False), [], [], 0.0
    for _ in range(4):
        embedded = embed_counts(model, CountSource(X), genes, engine)
        ours.append(embedded.work.network_seconds)
        start = time.perf_counter()
        cast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16")
        with torch.inference_mode(), cast:
            values = theirs_on(tokens).float().cpu()
        theirs.append(time.perf_counter() - start)
        relative = max(relative, difference(embedded.values, values.numpy(), precision))
    return {
        "cells": cells, "network_seconds": min(ours[1:]), "plain_seconds": min(theirs[1:]),
        "times_as_fast": min(theirs[1:]) / min(ours[1:]), "relative_difference": relative,
    }  # fmt: skip


def parts(device: str, tiny: bool) -> Iterator[tuple[dict[str, str], Callable[[], Any]]]:
    """What is measured: a description of each part and the function that measures it; the most wanted first."""
    from lora import measure as step
    from official import OFFICIAL_EQUIVALENT

    from scdrugmap._device import native_bfloat16
    from scdrugmap.testing.speed import matmul_rate, measure

    size, cells, seconds = ("tiny", 4, 0.2) if tiny else ("official", 512, 5.0)
    # On a processor that has no bfloat16 it would only be emulated, a hundred times slower.
    fit = PRECISIONS if device != "cpu" or native_bfloat16() else ("float32",)
    for precision in fit:
        yield {"part": "matmul", "precision": precision}, lambda p=precision: {"gflops": matmul_rate(device, p) / 1e9}
    for precision in fit:
        for key in ORDER:
            named = {"part": "embed", "model": key, "precision": precision}
            yield named, lambda k=key, p=precision: measure(k, cells, seconds, size, device, p)
        for key in OFFICIAL_EQUIVALENT:
            few = cells if key != "scfoundation" else max(cells // 16, 2)
            named = {"part": "beside plain PyTorch", "model": key, "precision": precision}
            yield named, lambda k=key, p=precision, n=few: plain(k, n, size, device, p)
        for key in ("geneformer", "scgpt"):
            named = {"part": "lora step", "model": key, "precision": precision}
            yield named, lambda k=key, p=precision: step(k, 4 if tiny else 32, 5, size, device, p)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy networks, to see that everything runs")
    parser.add_argument("--seconds", type=float, default=280, help="no part begins after this time")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    arguments = parser.parse_args()
    on_card = arguments.device.startswith("cuda")
    machine = torch.cuda.get_device_name(arguments.device) if on_card else "cpu"
    found: dict[str, Any] = {"device": machine, "torch": torch.__version__, "tiny": arguments.tiny, "results": []}
    begun = time.perf_counter()
    failed = 0
    for named, work in parts(arguments.device, arguments.tiny):
        row: dict[str, Any] = dict(named)
        start = time.perf_counter()
        if start - begun > arguments.seconds:
            row["note"] = "no time left"
        else:
            try:
                row |= work()
            except Exception as error:  # noqa: BLE001  the other parts are worth having
                traceback.print_exc()
                row["note"], failed = f"{type(error).__name__}: {error}", failed + 1
            if on_card:
                torch.cuda.empty_cache()
        row["part_seconds"] = round(time.perf_counter() - start, 2)
        found["results"].append(row)
        print(json.dumps(row), flush=True)
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
