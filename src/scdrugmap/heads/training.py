"""Train many small perceptrons at once: stacked parameters, batches by index, gradients written by hand.

All heads of a cross-validation share one copy of the features. Each head has its own rows, weights, seed and
shuffling; a batch of all heads is one batched matrix product. The parameters of one head are one flat vector, so that
one fused AdamW call per head and step updates it, and a head that has fewer batches than another simply sits out.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.optim.adamw import adamw

from scdrugmap._threads import threads_for

#: The training loss has settled when an epoch lowers it by no more than this on average (in nats).
SETTLED = 1e-3
#: A head that was cut off while an epoch still lowered its mean loss by more than this has not converged.
FALLING = 5e-3
#: Parameters, gradients and moments that train side by side on a processor; the rest waits its turn.
CPU_BLOCK_BYTES = 4 * 2**30


@dataclass(frozen=True)
class TrainOptions:
    """What all heads of one call share: the parameters of ``MLPHead`` but for the seed."""

    hidden: tuple[int, ...]
    epochs: int
    lr: float
    weight_decay: float
    batch_size: int
    standardize: Any
    class_weight: Any
    early_stopping: Any
    validation_fraction: float
    patience: int
    device: str | None
    precision: str


@dataclass
class HeadTask:
    """One head to train: its rows of the shared features, their weights, and its randomness."""

    rows: np.ndarray
    weights: np.ndarray
    rng: np.random.Generator
    val_rows: np.ndarray | None = None
    val_weights: np.ndarray | None = None
    mean: np.ndarray | None = None
    scale: np.ndarray | None = None


@dataclass
class HeadResult:
    """Trained parameters of one head and how its losses went."""

    weights: list[np.ndarray]
    biases: list[np.ndarray]
    loss_curve: list[float] = field(default_factory=list)
    val_curve: list[float] = field(default_factory=list)
    best_epoch: int = 0
    mean: np.ndarray | None = None
    scale: np.ndarray | None = None
    converged: bool = True


def layer_shapes(n_features: int, hidden: Sequence[int]) -> list[tuple[int, int]]:
    """Return (inputs, outputs) of every layer; the last has the one logit."""
    sizes = [n_features, *hidden, 1]
    return list(itertools.pairwise(sizes))


def train_heads(
    X: np.ndarray, targets: np.ndarray, tasks: Sequence[HeadTask], options: TrainOptions, device: torch.device
) -> list[HeadResult]:
    """Train one head per task and return them in the order of ``tasks``.

    ``X`` is (cells, features) in float32 or float64, ``targets`` (cells,) in {0, 1}.
    """
    double = X.dtype == np.float64 and options.precision == "float32"
    dtype = torch.float64 if double else torch.float32
    with warnings.catch_warnings():
        # a read-only (memory-mapped) array is fine here: the features are only ever gathered from
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        features = torch.as_tensor(X, dtype=dtype, device=device)
    y = torch.as_tensor(targets, dtype=dtype, device=device)
    n_parameters = sum((i + 1) * o for i, o in layer_shapes(X.shape[1], options.hidden))
    block = len(tasks)
    if device.type == "cpu":
        block = max(1, CPU_BLOCK_BYTES // (4 * n_parameters * features.element_size()))
    # heads with equally many batches side by side leave the least padding
    order = sorted(range(len(tasks)), key=lambda i: -len(tasks[i].rows))
    results: list[HeadResult | None] = [None] * len(tasks)
    for start in range(0, len(order), block):
        chosen = order[start : start + block]
        # Forward, and backward for weights and for inputs.
        flops = 6.0 * n_parameters * len(chosen) * options.batch_size
        with threads_for(flops):
            trained = _Stack(features, y, [tasks[i] for i in chosen], options).run()
        for i, result in zip(chosen, trained, strict=True):
            results[i] = result
    return [r for r in results if r is not None]


def forward(x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor]) -> torch.Tensor:
    """Logits (rows,) of one head for features (rows, features)."""
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        x = torch.addmm(b, x, w).relu_()
    return torch.addmm(biases[-1], x, weights[-1]).squeeze(1)


class _Stack:
    """Heads that train side by side; heads are sorted by falling number of rows."""

    def __init__(
        self, features: torch.Tensor, y: torch.Tensor, tasks: Sequence[HeadTask], options: TrainOptions
    ) -> None:
        self.y, self.options = y, options
        self.tasks = list(tasks)
        self.shapes = layer_shapes(features.shape[1], options.hidden)
        self.device, self.dtype = features.device, features.dtype
        self.arithmetic = torch.bfloat16 if options.precision == "bfloat16" else self.dtype
        self.x = features
        self.batches_from = features.to(self.arithmetic) if tasks[0].mean is None else features
        self.flat = torch.stack([self._tensor(_initial(self.shapes, t.rng)) for t in tasks])  # (heads, parameters)
        self.grad = torch.zeros_like(self.flat)
        self.moment1, self.moment2 = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self.steps = [torch.zeros((), dtype=torch.float32, device=self.device) for _ in tasks]
        self.mean = self._scaler("mean")
        self.scale = self._scaler("scale")
        self.index = list(range(len(tasks)))
        self.results = [HeadResult([], []) for _ in tasks]
        self.best = [(np.inf, self.flat[h]) for h in range(len(tasks))]
        self.buffers: dict[Any, torch.Tensor] = {}

    def run(self) -> list[HeadResult]:
        """Train to the last epoch, or until each head has stopped improving on its validation rows."""
        for epoch in range(1, self.options.epochs + 1):
            self._epoch()
            self._validate(epoch)
            if not self.index:
                break
        for h, i in enumerate(self.index):
            self._finish(i, self.best[h][1] if self.tasks[h].val_rows is not None else self.flat[h])
            curve = self.results[i].loss_curve
            # With a single epoch nobody expects convergence, and nothing tells whether the loss still falls.
            self.results[i].converged = len(curve) < 2 or curve[-2] - curve[-1] <= FALLING
        return self.results

    def _epoch(self) -> None:
        """One pass of every head over its rows."""
        size = self.options.batch_size
        counts = [len(t.rows) for t in self.tasks]
        longest = max(counts)
        rows = np.zeros((len(self.tasks), longest), np.int64)  # (heads, cells), a head with fewer cells is padded
        weights = np.zeros((len(self.tasks), longest))  # (heads, cells), 0 in the padding
        for h, task in enumerate(self.tasks):
            shuffled = task.rng.permutation(counts[h])
            rows[h, : counts[h]], weights[h, : counts[h]] = task.rows[shuffled], task.weights[shuffled]
        # a batch's loss is its weighted mean, so weights are divided by their sum within the batch
        starts = np.arange(0, longest, size)
        sums = np.add.reduceat(weights, starts, axis=1)  # (heads, batches)
        norm = weights / np.repeat(np.where(sums > 0, sums, 1), np.diff([*starts, longest]), axis=1)  # (heads, cells)
        rows_t, norm_t = torch.as_tensor(rows, device=self.device), self._tensor(norm)
        losses = torch.zeros(len(self.tasks), dtype=torch.float64, device=self.device)
        for s, start in enumerate(starts):
            active = sum(c > start for c in counts)
            stop = min(start + size, longest)
            loss = self._step(rows_t[:active, start:stop], norm_t[:active, start:stop])
            losses[:active] += loss.double() * self._tensor(sums[:active, s]).double()
        totals = weights.sum(1)
        for h, i in enumerate(self.index):
            self.results[i].loss_curve.append(float(losses[h] / totals[h]))

    def _step(self, rows: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        """Forward, backward and update of the first ``len(rows)`` heads; returns their losses."""
        k, b = rows.shape
        x = self._gather(rows)  # (heads, batch, features)
        y = self.y[rows]  # (heads, batch)
        flat, grad = self._working_copies(k)
        weights, biases = self._layers(flat)
        grad_w, grad_b = self._layers(grad)
        activations = [x]
        for j, (w, bias) in enumerate(zip(weights, biases, strict=True)):
            out = self._buffer(("z", j, k, b), (k, b, w.shape[2]))  # (heads, batch, outputs)
            torch.baddbmm(bias.unsqueeze(1), activations[-1], w, out=out)
            activations.append(out.relu_() if j < len(weights) - 1 else out)
        logit = activations[-1].squeeze(2).to(self.dtype)  # (heads, batch)
        loss = (torch.nn.functional.softplus(logit).sub_(logit * y)).mul_(norm).sum(1)  # (heads,)
        delta = logit.sigmoid().sub_(y).mul_(norm).unsqueeze(2).to(self.arithmetic)  # (heads, batch, 1)
        for j in range(len(weights) - 1, -1, -1):
            torch.bmm(activations[j].transpose(1, 2), delta, out=grad_w[j])  # (heads, inputs, outputs)
            torch.sum(delta, 1, out=grad_b[j])  # (heads, outputs)
            if j:
                back = self._buffer(("d", j, k, b), activations[j].shape)  # (heads, batch, inputs)
                torch.bmm(delta, weights[j].transpose(1, 2), out=back)
                delta = torch.ops.aten.threshold_backward.grad_input(back, activations[j], 0, grad_input=back)
        if grad.dtype != self.dtype:
            self.grad[:k].copy_(grad)
        self._update(k)
        return loss

    def _working_copies(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Parameters and gradients of the first ``k`` heads in the precision of the matrix products."""
        if self.arithmetic == self.dtype:
            return self.flat[:k], self.grad[:k]
        flat = self._buffer("flat", self.flat.shape)[:k]
        return flat.copy_(self.flat[:k]), self._buffer("grad", self.flat.shape)[:k]

    def _update(self, k: int) -> None:
        """One AdamW step of the first ``k`` heads."""
        adamw(
            list(self.flat[:k].unbind()),
            list(self.grad[:k].unbind()),
            list(self.moment1[:k].unbind()),
            list(self.moment2[:k].unbind()),
            [],
            self.steps[:k],
            fused=self.device.type in ("cpu", "cuda"),
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.options.lr,
            weight_decay=self.options.weight_decay,
            eps=1e-8,
            maximize=False,
        )

    def _gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Features of a batch of every head, standardised with the numbers of that head."""
        k, b = rows.shape
        source = self.batches_from
        out = self._buffer(("x", k, b), (k * b, source.shape[1]), source.dtype)  # (heads * batch, features)
        torch.index_select(source, 0, rows.reshape(-1), out=out)
        batch = out.view(k, b, -1)
        if self.mean is not None and self.scale is not None:
            batch.sub_(self.mean[:k].unsqueeze(1)).mul_(self.scale[:k].unsqueeze(1))
        return batch.to(self.arithmetic)

    def _layers(self, flat: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Views of the flat parameters as weights (heads, inputs, outputs) and biases (heads, outputs)."""
        weights, biases, at = [], [], 0
        for i, o in self.shapes:
            weights.append(flat[:, at : at + i * o].unflatten(1, (i, o)))
            biases.append(flat[:, at + i * o : at + (i + 1) * o])
            at += (i + 1) * o
        return weights, biases

    @torch.no_grad()
    def _validate(self, epoch: int) -> None:
        """Score heads that have validation rows, keep their best parameters and drop those that have stopped."""
        keep = []
        for h, (i, task) in enumerate(zip(self.index, self.tasks, strict=True)):
            if task.val_rows is None or task.val_weights is None:
                if self.options.early_stopping == "settled" and self._settled(i):
                    self._finish(i, self.flat[h])
                else:
                    keep.append(h)
                continue
            loss = self._loss(h, task.val_rows, task.val_weights)
            result = self.results[i]
            result.val_curve.append(loss)
            if loss < self.best[h][0]:
                self.best[h] = (loss, self.flat[h].clone())
                result.best_epoch = epoch
            if epoch - result.best_epoch >= self.options.patience:
                self._finish(i, self.best[h][1])
            else:
                keep.append(h)
        if len(keep) < len(self.index):
            self._drop_all_but(keep)

    def _settled(self, i: int) -> bool:
        """Whether the training loss of head ``i`` has not fallen for some epochs."""
        curve, wait = self.results[i].loss_curve, self.options.patience
        return len(curve) > wait and min(curve[:-wait]) - min(curve[-wait:]) <= SETTLED * wait

    def _loss(self, h: int, rows: np.ndarray, weights: np.ndarray) -> float:
        """Weighted mean cross-entropy of one head on some rows."""
        w, b = self._layers(self.flat[h : h + 1])
        total = 0.0
        for start in range(0, len(rows), 4096):
            part = torch.as_tensor(rows[start : start + 4096], device=self.device)
            x, y = self.x[part], self.y[part]
            if self.mean is not None and self.scale is not None:
                x = (x - self.mean[h]) * self.scale[h]
            logit = forward(x, [v[0] for v in w], [v[0] for v in b])
            each = torch.nn.functional.softplus(logit) - logit * y
            total += float((each.double() * self._tensor(weights[start : start + 4096]).double()).sum())
        return total / float(weights.sum())

    def _drop_all_but(self, keep: list[int]) -> None:
        """Shrink the stack to the heads that still train."""
        at = torch.as_tensor(keep, dtype=torch.long, device=self.device)
        for name in ("flat", "grad", "moment1", "moment2", "mean", "scale"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value[at])
        self.steps, self.tasks = [self.steps[h] for h in keep], [self.tasks[h] for h in keep]
        self.index, self.best = [self.index[h] for h in keep], [self.best[h] for h in keep]
        self.buffers.clear()

    def _finish(self, i: int, flat: torch.Tensor) -> None:
        """Store the parameters of head ``i`` as arrays."""
        weights, biases = self._layers(flat[None])
        self.results[i].weights = [w[0].cpu().numpy().copy() for w in weights]
        self.results[i].biases = [b[0].cpu().numpy().copy() for b in biases]
        self.results[i].best_epoch = self.results[i].best_epoch or len(self.results[i].loss_curve)

    def _scaler(self, name: str) -> torch.Tensor | None:
        """Stacked means, or reciprocal scales, of the heads; None when none standardises."""
        values = [getattr(t, name) for t in self.tasks]
        if any(v is None for v in values):
            return None
        stacked = self._tensor(np.stack(values))
        return stacked.reciprocal() if name == "scale" else stacked

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(array, device=self.device).to(self.dtype)

    def _buffer(self, key: Any, shape: Sequence[int], dtype: torch.dtype | None = None) -> torch.Tensor:
        """A tensor that is allocated once and reused at every step."""
        if key not in self.buffers:
            self.buffers[key] = torch.empty(tuple(shape), dtype=dtype or self.arithmetic, device=self.device)
        return self.buffers[key]


def _initial(shapes: Sequence[tuple[int, int]], rng: np.random.Generator) -> np.ndarray:
    """Starting parameters as ``torch.nn.Linear`` draws them: uniform within 1 / sqrt(inputs)."""
    return np.concatenate([rng.uniform(-1, 1, (i + 1) * o) / np.sqrt(i) for i, o in shapes])
