"""Peak memory and time of converting a text matrix.

Writes a matrix of the given size, converts it in a fresh process to an h5ad file on disk and prints one line of JSON
per layout. ``python benchmarks/loaders.py --cells 60000 --genes 20000`` is the size that has to stay under 2 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CONVERT = """
import resource, sys, time, warnings
warnings.simplefilter("ignore")
from scdrugmap.datasets import loaders
import anndata, scipy.sparse
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
adata = getattr(loaders, sys.argv[1])(sys.argv[2], out=sys.argv[3], backed=True)
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(adata.n_obs, adata.n_vars, seconds, base / 1024, peak / 1024)
"""


def write(path: Path, cells: int, genes: int, *, turned: bool, density: float, seed: int) -> int:
    """Write a matrix of small counts, some rows at a time; return the number of entries that are not zero."""
    rng, filled = np.random.default_rng(seed), 0
    rows, columns = (genes, cells) if turned else (cells, genes)
    digits = np.array([str(i) for i in range(10)])
    names = (
        [f"cell{i}" for i in range(columns)]
        if turned
        else ["GAPDH", "ACTB", "B2M", *(f"g{i}" for i in range(3, columns))]
    )
    with path.open("w") as out:
        out.write("\t".join((["gene"] if turned else ["Cell_barcode", "Condition"]) + names) + "\n")
        for i in range(rows):
            values = np.where(rng.random(columns) < density, rng.integers(1, 10, columns), 0)
            filled += int(np.count_nonzero(values))
            label = f"g{i}" if turned else f"cell{i}\t{'sensitive' if i % 2 else 'resistant'}"
            out.write(label + "\t" + "\t".join(digits[values]) + "\n")
    return filled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=60_000)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--density", type=float, default=0.12)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for turned in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "matrix.tsv"
            filled = write(path, args.cells, args.genes, turned=turned, density=args.density, seed=args.seed)
            reader = "read_text" if turned else "read_published"
            start = time.perf_counter()
            script = CONVERT.replace("backed=True", "backed=True, orientation='genes x cells'") if turned else CONVERT
            done = subprocess.run(
                [sys.executable, "-c", script, reader, str(path), str(Path(folder) / "out.h5ad")],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            cells, genes, seconds, base, peak = map(float, done.stdout.split())
            print(
                json.dumps(
                    {
                        "layout": "genes x cells" if turned else "cells x genes",
                        "cells": int(cells),
                        "genes": int(genes),
                        "filled": filled,
                        "text_mb": round(path.stat().st_size / 2**20),
                        "seconds": round(seconds, 1),
                        "mb_per_second": round(path.stat().st_size / 2**20 / seconds),
                        "imports_mb": round(base),
                        "peak_rss_mb": round(peak),
                        "wall": round(time.perf_counter() - start, 1),
                    }
                )
            )


if __name__ == "__main__":
    main()
