"""How often the intervals of a benchmark hold the truth, by number of samples, separation and level.

    python benchmarks/coverage.py                       # a table in some minutes on one core
    python benchmarks/coverage.py --repeats 100 --samples 6 --separation 1.2

Scores of cells are normal around a mean per sample that varies between samples (``icc`` is the share of that variance), and
sensitive samples lie ``separation`` standard deviations higher. The truth is the AUROC of a cell (or of a sample's mean) of a
new sensitive against one of a new resistant sample. Intervals come from the functions that ``BenchmarkResult.summary`` calls.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
import pandas as pd
from scipy import stats

from scdrugmap._metrics import METRICS
from scdrugmap.evaluation.result.predictions import Predictions
from scdrugmap.evaluation.result.statistics import interval

AUROC = METRICS["auroc"]


def draw(rng: np.random.Generator, n_samples: int, cells: int, separation: float, icc: float) -> Predictions:
    """Scores of the cells of one study; two in five samples are sensitive."""
    label = (np.arange(n_samples) < max(2, round(0.4 * n_samples))).astype(int)
    sizes = rng.integers(cells // 2, 3 * cells // 2 + 1, n_samples)
    sample = np.repeat(np.arange(n_samples), sizes)
    mean = separation * label + np.sqrt(icc) * rng.normal(size=n_samples)
    score = mean[sample] + np.sqrt(1 - icc) * rng.normal(size=len(sample))
    zero = np.zeros(len(sample), dtype=int)
    return Predictions(label[sample], score, zero, sample, zero, n_samples, 1, cross=False)


def of_samples(cells: Predictions) -> Predictions:
    """The mean score of each sample."""
    counts = np.bincount(cells.group)
    score = np.bincount(cells.group, weights=cells.score) / counts
    y = (np.bincount(cells.group, weights=cells.y) > 0).astype(int)
    zero = np.zeros(len(y), dtype=int)
    return Predictions(y, score, zero, np.arange(len(y)), zero, len(y), 1, cross=False)


def bounds(predictions: Predictions) -> tuple[float, float]:
    """The interval as a summary prints it."""
    value = predictions.estimate([AUROC], np.ones((1, predictions.n_groups)))["auroc"][0]
    left_out, strata, n = predictions.left_out([AUROC])["auroc"]
    ci = interval(float(value), left_out, strata, bounds=(0.0, 1.0), n_groups=n)
    return ci.low, ci.high


def coverage(
    n_samples: int, separation: float, icc: float, *, repeats: int, cells: int = 12, seed: int = 0
) -> list[dict]:
    """Share of the intervals that hold the truth and their mean width, at both levels."""
    rng = np.random.default_rng([seed, n_samples, int(10 * separation), int(10 * icc)])
    found: dict[str, list[tuple[float, float]]] = {"cell": [], "sample": []}
    spread = []
    for _ in range(repeats):
        drawn = draw(rng, n_samples, cells, separation, icc)
        found["cell"].append(bounds(drawn))
        found["sample"].append(bounds(of_samples(drawn)))
        spread.append(np.mean(1 / np.bincount(drawn.group)))
    noise = icc + (1 - icc) * np.mean(spread)
    truth = {
        "cell": stats.norm.cdf(separation / np.sqrt(2)),
        "sample": stats.norm.cdf(separation / np.sqrt(2 * noise)),
    }
    out = []
    for level, pairs in found.items():
        low, high = np.array(pairs).T
        hit = (low <= truth[level]) & (truth[level] <= high)
        where = {"samples": n_samples, "separation": separation, "icc": icc, "level": level, "truth": truth[level]}
        out.append(where | {"coverage": hit.mean(), "width": np.mean(high - low), "printed": np.isfinite(low).mean()})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, nargs="+", default=[5, 6, 10, 20, 40])
    parser.add_argument("--separation", type=float, nargs="+", default=[0.0, 1.2, 2.4])
    parser.add_argument("--icc", type=float, nargs="+", default=[0.1, 0.5, 0.9])
    parser.add_argument("--repeats", type=int, default=500)
    args = parser.parse_args()
    cells = itertools.product(args.samples, args.separation, args.icc)
    for i, (n, d, icc) in enumerate(cells):
        rows = pd.DataFrame(coverage(n, d, icc, repeats=args.repeats)).round(3)
        print(rows.to_string(index=False, header=i == 0), flush=True)


if __name__ == "__main__":
    main()
