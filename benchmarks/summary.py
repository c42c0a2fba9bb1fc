"""Time of ``BenchmarkResult.summary`` against the plain way: leave the cells of every sample out and score the rest.

Run ``python benchmarks/summary.py`` for 2,400 cells, 36 categories and 14 contenders; the plain way is timed on a few
categories (``--plain``) and scaled up. The intervals of both are compared.
"""

from __future__ import annotations

import argparse
import json
import time

import anndata as ad
import numpy as np
from sklearn import metrics as sk

import scdrugmap as sd
from scdrugmap.evaluation.result.statistics import interval

METRICS = ("f1", "f1_macro", "mcc", "auroc", "auprc")


def make(cells: int, categories: int, contenders: int, per: int = 8) -> sd.evaluation.BenchmarkResult:
    rng = np.random.default_rng(0)
    sample = np.sort(np.arange(cells) % (categories * per))
    y = sample % 2
    adata = ad.AnnData(np.zeros((cells, 0), np.float32))
    adata.obs["sample"] = [f"s{i}" for i in sample]
    adata.obs["response"] = np.where(y, "sensitive", "resistant")
    adata.obs["tissue"] = [f"t{i:02d}" for i in sample // per]

    def model(strength: float):
        noise = rng.normal(size=categories * per)[sample] + rng.normal(size=cells)
        score = 1 / (1 + np.exp(-(strength * (2 * y - 1) + noise)))
        return lambda train, test, seed: score[test]

    models = {f"m{i}": model(0.1 * i) for i in range(contenders - 2)}
    return sd.tl.benchmark(
        adata, models=models, by="tissue", n_folds=4, baselines=["all_sensitive", "majority"], n_jobs=1, rng=0
    )


def plain(result: sd.evaluation.BenchmarkResult, places: list[tuple[str, str]]) -> dict:
    """Score what is left without each sample with scikit-learn, cell by cell; AUROC and AUPRC are left to single folds."""
    sample, out = np.unique(result.cells["sample"].to_numpy(), return_inverse=True)[1], {}
    for model, category in places:
        units = result.units[(result.units["model"] == model) & (result.units["category"] == category)]
        parts = [result.predictions[result.predictions["unit"] == u] for u in units["unit"]]
        codes = np.unique(np.concatenate([sample[p["row"]] for p in parts]), return_inverse=True)
        place = np.split(codes[1], np.cumsum([len(p) for p in parts])[:-1])
        n = len(codes[0])
        weights = np.vstack([np.ones(n, int), 1 - np.eye(n, dtype=int)])
        label = np.zeros(n, int)
        label[codes[1]] = np.concatenate([p["y"] for p in parts])
        drawn: dict[str, list[float]] = {m: [] for m in METRICS}
        for w in weights:
            rows = [np.repeat(np.arange(len(p)), w[c]) for p, c in zip(parts, place, strict=True)]
            folds = [[p[k].to_numpy()[r] for k in ("y", "score", "pred")] for p, r in zip(parts, rows, strict=True)]
            y, _, pred = (np.concatenate(v) for v in zip(*folds, strict=True))
            drawn["f1"].append(sk.f1_score(y, pred, zero_division=np.nan))
            drawn["f1_macro"].append(sk.f1_score(y, pred, average="macro", zero_division=np.nan))
            drawn["mcc"].append(sk.matthews_corrcoef(y, pred) if np.ptp(y) else np.nan)
            both = [(a, s) for a, s, _ in folds if len(a) and np.ptp(a)]
            for name, score, size in (
                ("auroc", sk.roc_auc_score, lambda a: a.sum() * (1 - a).sum()),
                ("auprc", sk.average_precision_score, np.sum),
            ):
                sizes = [size(a.astype(int)) for a, _ in both]
                drawn[name].append(np.average([score(a, s) for a, s in both], weights=sizes) if both else np.nan)
        for m, v in drawn.items():
            limits = (-1.0, 1.0) if m == "mcc" else (0.0, 1.0)
            ci = interval(v[0], np.array(v[1:]), label, bounds=limits)
            out[model, category, m] = np.array([ci.low, ci.high])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = {"cells": 2400, "categories": 36, "contenders": 14, "plain": 2}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    result = make(args.cells, args.categories, args.contenders)
    start = time.process_time()
    result.summary(metrics=METRICS)
    ours = time.process_time() - start
    start = time.process_time()
    result.summary(metrics=METRICS)
    again = time.process_time() - start
    places = [("m3", f"t{i:02d}") for i in range(args.plain)]
    start = time.process_time()
    expected = plain(result, places)
    share = len(places) / (args.categories * args.contenders)
    slow = (time.process_time() - start) / share
    few = result.summary(metrics=METRICS)
    got = few.set_index(["model", "category", "metric"])[["ci_low", "ci_high"]]
    print(
        json.dumps(
            {
                "arguments": vars(args),
                "seconds": round(ours, 2),
                "seconds_again": round(again, 3),
                "seconds_plain": round(slow, 1),
                "ratio": round(slow / ours, 1),
                "largest_difference": max(float(np.abs(got.loc[k].to_numpy() - v).max()) for k, v in expected.items()),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
