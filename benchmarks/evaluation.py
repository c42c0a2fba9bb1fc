"""Speed of the evaluation: the batched grid against the same heads trained one fold after the other.

Run ``python benchmarks/evaluation.py`` for the full size (20,000 cells, 5 embeddings, 4 categories, 10 folds), or with
``--cells 800 --dim 32 --epochs 1`` for a look.
"""

from __future__ import annotations

import argparse
import json
import time

import anndata as ad
import numpy as np

import scdrugmap as sd
from scdrugmap._metrics import METRICS
from scdrugmap.evaluation.result.statistics import bootstrap_weights, resampled


def cohort(cells: int, dim: int, embeddings: int, categories: int) -> ad.AnnData:
    rng = np.random.default_rng(0)
    n_samples = 30 * categories
    sample = np.sort(rng.integers(0, n_samples, cells))
    y = sample % 2
    adata = ad.AnnData(np.zeros((cells, 0), np.float32))
    adata.obs["sample"] = np.array([f"s{i}" for i in sample])
    adata.obs["response"] = np.where(y, "sensitive", "resistant")
    adata.obs["tissue"] = np.array([f"t{i}" for i in sample // 30])
    for i in range(embeddings):
        shift = rng.normal(size=dim) * 0.1
        adata.obsm[f"X_e{i}"] = (rng.normal(size=(cells, dim)) + y[:, None] * shift).astype(np.float32)
    return adata


def plain(adata: ad.AnnData, partitions: list, epochs: int) -> float:
    """Train every fold of every category and embedding by an ordinary torch loop, as the published scripts do."""
    import torch
    from sklearn import metrics as sk
    from torch import nn

    y = torch.tensor((adata.obs["response"] == "sensitive").to_numpy(), dtype=torch.float32)
    start = time.perf_counter()
    for key in adata.obsm:
        X = torch.from_numpy(adata.obsm[key])
        for partition in partitions:
            for fold in partition.folds:
                torch.manual_seed(0)
                d = X.shape[1]
                net = nn.Sequential(nn.Linear(d, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 1))
                optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4)
                train = torch.utils.data.TensorDataset(X[fold.train], y[fold.train])
                for _ in range(epochs):
                    for xb, yb in torch.utils.data.DataLoader(train, batch_size=128, shuffle=True):
                        optimiser.zero_grad()
                        nn.functional.binary_cross_entropy_with_logits(net(xb)[:, 0], yb).backward()
                        optimiser.step()
                with torch.no_grad():
                    score = torch.sigmoid(net(X[fold.test])[:, 0]).numpy()
                truth = y[fold.test].numpy()
                sk.roc_auc_score(truth, score), sk.average_precision_score(truth, score)
                sk.f1_score(truth, score > 0.5), sk.matthews_corrcoef(truth, score > 0.5)
    return time.perf_counter() - start


def bootstrap_seconds(cells: int) -> float:
    rng = np.random.default_rng(0)
    y, score, group = rng.integers(0, 2, cells), rng.random(cells).astype(np.float32), rng.integers(0, 60, cells)
    start = time.perf_counter()
    weights = bootstrap_weights(60, 1000, rng)
    resampled(y, score, (score > 0.5).astype(int), group, list(METRICS.values()), weights)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (
        ("cells", 20_000),
        ("dim", 512),
        ("embeddings", 5),
        ("categories", 4),
        ("folds", 10),
        ("epochs", 10),
        ("jobs", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    adata = cohort(args.cells, args.dim, args.embeddings, args.categories)
    sd.tl.benchmark(adata[:200].copy(), models=["X_e0"], head_options={"epochs": 1}, n_folds=2, baselines=[], rng=0)
    start = time.perf_counter()
    result = sd.tl.benchmark(
        adata, models=list(adata.obsm), by="tissue", n_folds=args.folds, head_options={"epochs": args.epochs},
        baselines=[], n_jobs=args.jobs, rng=0,
    )  # fmt: skip
    ours = time.perf_counter() - start
    training = float(result.units["seconds"].sum()) / max(args.jobs, 1)
    loops = plain(adata, result.partitions, args.epochs)
    report = {
        "arguments": vars(args),
        "seconds": round(ours, 2),
        "seconds_plain_loops": round(loops, 2),
        "speedup": round(loops / ours, 2),
        "share_outside_training": round(max(1 - training / ours, 0.0), 3),
        "bootstrap_seconds_1000_resamples_all_metrics": round(bootstrap_seconds(args.cells), 2),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
