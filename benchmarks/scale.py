"""Memory and time of every step from a file on disk, for three sizes.

    python benchmarks/scale.py [--cells 100000 300000 1000000] [--genes 2000] [--folder scale] [--steps check pca ...]

``sd.datasets.simulate`` writes a study of each size to ``--folder`` (kept, and used again), and each step then runs in a
fresh process, mostly the command line: ``check``, ``embed`` with ``pca``, ``hvg`` and a tiny tGPT in the official
layout, ``predict FILE -o OUT.h5ad``, ``benchmark`` on the embedding by ``pca`` and ``sd.tl.biomarkers``. For each it
prints seconds and peak resident memory (of the process, imports included), and at the end the slope of both over the
cells: what a million more cells would take. ``start`` is what importing the package and torch takes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

CELLS = (100_000, 300_000, 1_000_000)
CLI = "from scdrugmap.cli import main; main()"
SIMULATE = """
import sys, scdrugmap as sd
sd.datasets.simulate(n_cells=int(sys.argv[1]), n_genes=int(sys.argv[2]), n_studies=4, depth=float(sys.argv[3]),
                     path=sys.argv[4], rng=0)
"""
START = "import scdrugmap as sd; sd.tl.embed, sd.pp.check; import torch, anndata, scanpy"
TRAIN = """
import sys, scdrugmap as sd
sd.tl.train(sd.datasets.simulate(n_cells=4000, n_genes=int(sys.argv[1]), n_studies=4, depth=float(sys.argv[2]), rng=0),
            model="pca", head="logistic", rng=0).save(sys.argv[3], overwrite=True)
"""
BIOMARKERS = """
import sys, anndata, scdrugmap as sd
sd.tl.biomarkers(anndata.read_h5ad(sys.argv[1], backed="r"))
"""
STEPS = ("start", "check", "pca", "hvg", "tgpt", "predict", "benchmark", "biomarkers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=list(CELLS))
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--depth", type=float, default=250.0)
    parser.add_argument("--folder", type=Path, default=Path("scale"))
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = args.folder / "tgpt"
    if "tgpt" in args.steps and not (checkpoint / "tokenizer.json").exists():
        tiny_tgpt(checkpoint, args.genes)
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}", flush=True)
    rows = []
    for n in args.cells:
        file = args.folder / f"cells_{n}.h5ad"
        if not file.exists():
            python(SIMULATE, n, args.genes, args.depth, file)
        for step, command in commands(args, file, checkpoint).items():
            seconds, peak = measured(command, args.folder / "log.txt")
            rows.append((step, n, seconds, peak))
            print(
                json.dumps({"step": step, "cells": n, "seconds": round(seconds, 1), "peak_mb": round(peak)}), flush=True
            )
        shutil.rmtree(args.folder / "out", ignore_errors=True)
    report(rows, args.cells)


def commands(args: argparse.Namespace, file: Path, checkpoint: Path) -> dict[str, list[Any]]:
    """The command of each step; ``predict`` gets a predictor of a few cells, ``benchmark`` the embedding by ``pca``."""
    out, predictor = args.folder / "out", args.folder / "predictor"
    out.mkdir(exist_ok=True)
    if "predict" in args.steps and not predictor.exists():
        python(TRAIN, args.genes, args.depth, predictor)
    embedded = out / "pca.h5ad"
    frozen = [
        "--model",
        "X_scdrugmap_pca",
        "--head",
        "logistic",
        "--n-folds",
        3,
        "--baseline",
        "majority",
        "--n-jobs",
        1,
    ]
    every: dict[str, list[Any]] = {
        "start": ["-c", START],
        "check": ["-c", CLI, "check", file],
        "pca": ["-c", CLI, "embed", file, "-m", "pca", "-o", embedded],
        "hvg": ["-c", CLI, "embed", file, "-m", "hvg", "--set", "n_top_genes=100", "-o", out / "hvg.h5ad"],
        "tgpt": ["-c", CLI, "embed", file, "-m", "tGPT", "--checkpoint", checkpoint, "--set", "max_length=16",
                 "--store", out / "store", "-o", out / "tgpt.h5ad"],
        "predict": ["-c", CLI, "predict", file, "-p", predictor, "-o", out / "predicted.h5ad"],
        "benchmark": ["-c", CLI, "benchmark", embedded, *frozen, "-o", out / "results"],
        "biomarkers": ["-c", BIOMARKERS, file],
    }  # fmt: skip
    return {step: [sys.executable, *command] for step, command in every.items() if step in args.steps}


def python(code: str, *arguments: Any) -> None:
    """Run a few lines in a process of their own."""
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def measured(command: list[Any], log: Path) -> tuple[float, float]:
    """Seconds and peak resident megabytes of a command; stops where it fails."""
    environment = {**os.environ, "SCDRUGMAP_EMBEDDING_CACHE": "false"}
    with log.open("wb") as out:
        start = time.perf_counter()
        child = subprocess.Popen(list(map(str, command)), stdout=out, stderr=out, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode not in (0, 3, 4):
        raise SystemExit(f"{' '.join(map(str, command))} ended with {child.returncode}:\n{log.read_text()[-2000:]}")
    return time.perf_counter() - start, usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def report(rows: list[tuple[str, int, float, float]], cells: list[int]) -> None:
    """Print a table in Markdown, with the slopes over the cells."""
    print("\n| step | " + " | ".join(f"{n:,} cells" for n in cells) + " | per million more |")
    print("| --- |" + " --- |" * (len(cells) + 1))
    for step in dict.fromkeys(row[0] for row in rows):
        own = [row for row in rows if row[0] == step]
        values = [f"{seconds:.0f} s, {peak:,.0f} MB" for _, _, seconds, peak in own]
        slope = ""
        if len(own) > 1:
            n = np.array([row[1] for row in own]) / 1e6
            time_slope, memory_slope = (np.polyfit(n, [row[i] for row in own], 1)[0] for i in (2, 3))
            slope = f"{time_slope:+,.0f} s, {memory_slope:+,.0f} MB"
        print(f"| {step} | " + " | ".join(values) + f" | {slope} |")


def tiny_tgpt(folder: Path, n_genes: int) -> None:
    """Write a tGPT of two layers and random weights in its official layout."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel

    import scdrugmap as sd

    folder.mkdir(exist_ok=True)
    genes = sd.datasets.simulate(n_cells=200, n_genes=n_genes, rng=0).var_names
    names = [g.replace("-", "_").replace(".", "_") for g in genes]
    words = {w: i for i, w in enumerate(dict.fromkeys(["<pad>", "</b>", "</s>", "<unk>", *names]))}
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(words), n_positions=64, n_embd=32, n_layer=2, n_head=4)
    torch.save(GPT2LMHeadModel(config).state_dict(), folder / "pytorch_model.bin")
    config.to_json_file(folder / "config.json", use_diff=False)
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


if __name__ == "__main__":
    main()
