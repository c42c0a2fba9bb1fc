"""All heads of a cross-validation at once, against the published way of training them.

The published way: one fold after the other; a Python ``DataLoader`` over single rows; a perceptron with two logits under
``BCEWithLogitsLoss`` on one-hot float64 labels; AdamW; every epoch ends with a pass over the test rows.

    python benchmarks/heads.py                        # 10 folds x 10 epochs, 20,000 x 512 and 20,000 x 3,072
    python benchmarks/heads.py --folds 2 --epochs 1   # a quick look

Prints both times, their ratio, and the rate of both sides as a share of what this machine reaches in one large matrix product
of the same precision: a float32 head cannot be faster than that. Beside it stands what the products of a step reach by
themselves, without gathering, activations and AdamW: batches of 128 read and write parameters that no cache holds.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from scdrugmap.response import fit_heads


class Rows(Dataset):
    """Single cells from Python lists."""

    def __init__(self, X: np.ndarray, y: np.ndarray) -> None:
        self.x = [torch.tensor(row) for row in X]
        self.y = [torch.nn.functional.one_hot(torch.tensor(int(v)), 2).to(torch.float64) for v in y]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[i], self.y[i]


def published(X: np.ndarray, y: np.ndarray, folds: list[np.ndarray], epochs: int, hidden: int, device: str) -> float:
    """Seconds to train one fold after the other."""
    start = time.perf_counter()
    for test in folds:
        train = np.setdiff1d(np.arange(len(y)), test)
        torch.manual_seed(24)
        net = nn.Sequential(
            nn.Linear(X.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2)
        ).to(device)
        loss_of = nn.BCEWithLogitsLoss()
        optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4)
        train_loader = DataLoader(Rows(X[train], y[train]), batch_size=128, shuffle=True)
        test_loader = DataLoader(Rows(X[test], y[test]), batch_size=256, shuffle=True)
        for _ in range(epochs):
            net.train()
            for x, target in train_loader:
                optimiser.zero_grad()
                loss = loss_of(net(x.to(device)), target.to(device))
                loss.backward()
                optimiser.step()
            net.eval()
            with torch.no_grad():
                for x, target in test_loader:
                    loss_of(net(x.to(device)), target.to(device)).item()
    return time.perf_counter() - start


def batched(X: np.ndarray, y: np.ndarray, folds: list[np.ndarray], epochs: int, hidden: int, **options: str) -> float:
    """Seconds to train all folds side by side."""
    rows = [np.setdiff1d(np.arange(len(y)), test) for test in folds]
    start = time.perf_counter()
    fit_heads(X, y, rows, seeds=24, epochs=epochs, hidden=(hidden, hidden), **options)
    return time.perf_counter() - start


def machine_rate(device: str, dtype: torch.dtype, n: int = 4096, repeats: int = 6) -> float:
    """Floating-point operations per second of one large matrix product."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best = np.inf
    for _ in range(repeats):
        start = time.perf_counter()
        (a @ b)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def products_rate(device: str, heads: int, d: int, hidden: int, batch: int = 128, seconds: float = 2.0) -> float:
    """Floating-point operations per second of the matrix products of a step of all heads, and of nothing else."""
    sizes = ((d, hidden), (hidden, hidden))
    W = [torch.randn(heads, i, o, device=device) for i, o in sizes]
    grad = [torch.empty_like(w) for w in W]
    x, h, out = (torch.randn(heads, batch, width, device=device) for width in (d, hidden, hidden))

    def step() -> None:
        torch.bmm(x, W[0], out=h)
        torch.bmm(h, W[1], out=out)
        torch.bmm(h.mT, out, out=grad[1])
        torch.bmm(out, W[1].mT, out=h)
        torch.bmm(x.mT, h, out=grad[0])
        out[0, 0, 0].item()

    step()
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        step()
        steps += 1
    return steps * heads * batch * 2 * (2 * d * hidden + 3 * hidden**2) / (time.perf_counter() - start)


def logistic(X: np.ndarray, y: np.ndarray, folds: list[np.ndarray], few: int) -> None:
    """Print the time of ``logistic`` on all folds beside scikit-learn's default solver on a few of them."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from scdrugmap.heads.fit import fit_folds
    from scdrugmap.heads.make import make_head

    rows = [np.setdiff1d(np.arange(len(y)), test) for test in folds]
    start = time.perf_counter()
    exact = fit_folds(make_head("logistic"), X, y, rows)
    fast = time.perf_counter() - start
    start = time.perf_counter()
    for at, head in zip(rows[:few], exact[:few], strict=True):
        theirs = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(X[at], y[at])
        apart = np.abs(theirs.predict_proba(X)[:, 1] - head.predict_proba(X)[:, 1]).max()
    slow = (time.perf_counter() - start) / few * len(rows)
    print(
        f"{X.shape[0]:,} x {X.shape[1]:,}  logistic, {len(rows)} folds  {fast:.1f} s; scikit-learn's default {slow:.1f} s (from "
        f"{few} folds), {slow / fast:.1f}x; largest difference of a probability {apart:.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--features", type=int, nargs="+", default=[512, 3072])
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--published-folds", type=int, default=2, help="folds that train the published way; 0 leaves it out"
    )
    parser.add_argument("--only-perceptrons", action="store_true", help="leave logistic regression out")
    parser.add_argument("--only-logistic", action="store_true", help="leave the perceptrons out")
    args = parser.parse_args()
    rates = {"float32": machine_rate(args.device, torch.float32)}
    # Small first: a processor without bfloat16 of its own would spend minutes on the large product.
    small = machine_rate(args.device, torch.bfloat16, 256, 2)
    if small > 0.1 * machine_rate(args.device, torch.float32, 256, 2):
        rates["bfloat16"] = machine_rate(args.device, torch.bfloat16)
    else:
        print(f"bfloat16 left out: {small / 1e9:.1f} GFLOP/s in a small product, less than a tenth of float32")
    print(f"device {args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("matrix product " + ", ".join(f"{p} {r / 1e9:,.0f} GFLOP/s" for p, r in rates.items()))
    print(f"{args.folds} folds x {args.epochs} epochs, batches of 128, hidden {args.hidden}-{args.hidden}")
    rng = np.random.default_rng(0)
    for d in args.features:
        X = rng.normal(size=(args.cells, d)).astype(np.float32)
        y = (X[:, :8].sum(1) + rng.normal(size=args.cells) > 0).astype(int)
        folds = np.array_split(rng.permutation(args.cells), args.folds)
        mixing = rng.normal(size=(d, d)) / np.arange(1, d + 1)[:, None]
        dependent = (rng.normal(size=(args.cells, d)) @ mixing + 5).astype(np.float32)
        if not args.only_perceptrons:
            logistic(X, y, folds, 1)
            logistic(dependent, y, folds, 1)
        if args.only_logistic:
            continue
        trained = args.cells * (args.folds - 1) * args.epochs
        h = args.hidden
        flop = trained * 2 * (2 * d * h + 3 * h * h + 3 * h)
        few = folds[: args.published_folds]
        if few:
            published(X[:256], y[:256], [np.arange(26)], 1, h, args.device)  # what PyTorch imports at its first step
        slow = published(X, y, few, args.epochs, h, args.device) * len(folds) / len(few) if few else None
        if slow:
            share = flop / slow / rates["float32"]
            scaled = "" if len(few) == len(folds) else f" (from {len(few)} folds)"
            print(
                f"{args.cells:,} x {d:,}  published way            {slow:8.1f} s  {share:6.1%} of the matrix rate{scaled}",
                flush=True,
            )
        alone = products_rate(args.device, args.folds, d, h)
        limit = f", at most {slow * alone / flop:.1f}x" if slow else ""
        print(
            f"{args.cells:,} x {d:,}  the products of a step alone {flop / alone:8.1f} s  {alone / rates['float32']:6.1%} of the "
            f"matrix rate{limit}",
            flush=True,
        )
        for precision, rate in rates.items():
            fast = batched(X, y, folds, args.epochs, h, device=args.device, precision=precision)
            after = machine_rate(args.device, getattr(torch, precision))
            rate = (rate + after) / 2
            ratio = f"  {slow / fast:5.1f}x" if slow else ""
            share = flop / fast / rate
            print(
                f"{args.cells:,} x {d:,}  all at once, {precision:9s}  {fast:8.1f} s  {share:6.1%} of the matrix rate{ratio}"
            )


if __name__ == "__main__":
    main()
