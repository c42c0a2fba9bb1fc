"""The training loop of adapters and head: resumable, the same whether interrupted or not."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scdrugmap._device import Engine, pick_device, pick_precision
from scdrugmap._errors import InputError
from scdrugmap._files import atomic_path
from scdrugmap._logging import progress
from scdrugmap.lora.adapters import LoRAOptions


@dataclass
class State:
    """How far a training has come."""

    step: int = 0
    epoch: int = 0
    batches_done: int = 0
    best_loss: float = math.inf
    best_epoch: int = 0
    train_loss: list[float] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)
    running: float = 0.0


class Adapted(nn.Module):
    """An adapted network with the head on its embedding; gives log-odds of sensitive."""

    mean: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, sizes: Sequence[int], standard: tuple[Tensor, Tensor], seed: int) -> None:
        super().__init__()
        self.network = network
        layers: list[nn.Module] = []
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for i, o in itertools.pairwise(sizes):
                layers += [nn.Linear(i, o), nn.ReLU()]
        self.head = nn.Sequential(*layers[:-1])
        self.register_buffer("mean", standard[0])
        self.register_buffer("scale", standard[1])

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Log-odds (cells,)."""
        embedding = self.network(batch).float()  # (cells, width)
        return self.head((embedding - self.mean) / self.scale).squeeze(1)


@dataclass(frozen=True, eq=False)
class TrainingCells:
    """The cells of a training and which of them may share a batch.

    Parameters
    ----------
    collate
        Turns row numbers into a batch on the CPU.
    costs
        Length of every cell, so that cells of like length share a batch.
    y, weight
        Target and weight of every cell.
    pools
        Rows that may share a batch: one pool of all, or one per group for models whose cells see each other.
    held_out
        Pools of rows for validation; may be empty.
    """

    collate: Callable[[np.ndarray], Mapping[str, Tensor]]
    costs: np.ndarray
    y: np.ndarray
    weight: np.ndarray
    pools: list[np.ndarray]
    held_out: list[np.ndarray]

    def batch(self, rows: np.ndarray, device: torch.device) -> dict[str, Tensor]:
        """Return the batch of some rows on a device."""
        return {k: v.to(device, non_blocking=True) for k, v in self.collate(rows).items()}

    def shuffled(self, size: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Return batches of an epoch: shuffled, cells of like length together within a window of a few batches."""
        out = []
        for pool in self.pools:
            order = rng.permutation(pool)
            for start in range(0, len(order), size * 16):
                window = order[start : start + size * 16]
                window = window[np.argsort(self.costs[window], kind="stable")]
                out += [window[i : i + size] for i in range(0, len(window), size)]
        return [out[i] for i in rng.permutation(len(out))]

    def validation(self, size: int) -> list[np.ndarray]:
        """Return batches of the held-out rows."""
        return [pool[i : i + size] for pool in self.held_out for i in range(0, len(pool), size)]


class Trainer:
    """Trains an :class:`Adapted` module on tokens, in one process.

    Parameters
    ----------
    module
        Network and head, on the device; what requires a gradient is trained.
    cells
        What to train and validate on.
    options
        Of the training.
    engine
        Device, precision, progress bar and seed.
    identity
        Text that identifies data, model and options: a checkpoint of another training is not taken up.

    Raises
    ------
    InputError
        If several processes were started to share the work.
    """

    def __init__(
        self, module: Adapted, cells: TrainingCells, options: LoRAOptions, engine: Engine, identity: str
    ) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        # the arithmetic of an earlier training in this process must not decide that of this one
        AcceleratorState._reset_state(reset_partial_state=True)
        self.device = pick_device(engine.device)
        precision = pick_precision(engine.precision, self.device)
        self.accelerator = Accelerator(
            cpu=self.device.type == "cpu",
            mixed_precision={"bfloat16": "bf16", "float16": "fp16"}.get(precision, "no"),
            gradient_accumulation_steps=options.accumulate,
            device_placement=False,
        )
        if self.accelerator.num_processes > 1:
            found = f"{self.accelerator.num_processes} processes"
            raise InputError("strategy", f"'lora' in {found}", "one process", "start without `accelerate launch`.")
        self.cells, self.options, self.engine, self.identity = cells, options, engine, identity
        self.y = torch.as_tensor(cells.y, dtype=torch.float32)
        self.weight = torch.as_tensor(cells.weight, dtype=torch.float32)
        self.plain = module
        self.trainable = {n: p for n, p in module.named_parameters() if p.requires_grad}
        head = [p for n, p in self.trainable.items() if n.startswith("head.")]
        rest = [p for n, p in self.trainable.items() if not n.startswith("head.")]
        self.peaks = [options.lr, options.head_lr or options.lr]
        groups = [{"params": p, "lr": lr} for p, lr in zip((rest, head), self.peaks, strict=True)]
        optimiser = torch.optim.AdamW(groups, weight_decay=options.weight_decay)
        self.module, self.optimiser = self.accelerator.prepare(module, optimiser)
        self.state = State()
        self.best: dict[str, Tensor] = {}
        self.accumulated = 0

    def run(self) -> State:
        """Train, from a checkpoint where there is one; the best parameters are in the module afterwards."""
        self._resume()
        options = self.options
        total = options.epochs * -(-len(self._batches(0)) // options.accumulate)
        with progress(total, "LoRA", "step", show=self.engine.progress) as bar:
            bar.update(self.state.step)
            while self.state.epoch < options.epochs and not self._stalled():
                self._epoch(total, bar)
                self._validate()
                self._checkpoint()
        if self.best:
            self._set(self.best)
        return self.state

    def _epoch(self, total: int, bar: Any) -> None:
        """One pass over the training cells, from where the last checkpoint left it."""
        state = self.state
        batches = self._batches(state.epoch)
        self._training_mode()
        for i in range(state.batches_done, len(batches)):
            self._rate(state.step, total)
            with self._seeded(state.epoch, i):
                loss, stepped = self._learn(batches[i], last=i == len(batches) - 1)
            state.running += loss
            state.batches_done = i + 1
            if stepped:
                state.step += 1
                bar.update(1)
                bar.set_postfix(loss=f"{state.running / state.batches_done:.4f}", **self._shown())
                if state.step % self.options.checkpoint_every == 0:
                    self._checkpoint()
        state.train_loss.append(state.running / len(batches))
        state.epoch, state.batches_done, state.running = state.epoch + 1, 0, 0.0

    def _training_mode(self) -> None:
        """Switch dropout on: of the adapters, and of the network itself with ``base_dropout``."""
        self.module.train()
        if not self.options.base_dropout:
            self.plain.network.eval()
            for name, part in self.plain.network.named_modules():
                if "lora_dropout" in name:
                    part.train()

    def _learn(self, rows: np.ndarray, *, last: bool) -> tuple[float, bool]:
        """Forward and backward; a step where enough passes have gathered."""
        self.accumulated += 1
        step = last or self.accumulated == self.options.accumulate
        loss = self._loss(self.module(self.cells.batch(rows, self.device)), rows)
        self.accelerator.backward(loss)
        if step:
            self.accelerator.clip_grad_norm_(list(self.trainable.values()), self.options.max_grad_norm)
            self.optimiser.step()
            self.optimiser.zero_grad()
            self.accumulated = 0
        return float(loss.detach()), step

    def _loss(self, logit: Tensor, rows: np.ndarray) -> Tensor:
        """Weighted mean cross-entropy."""
        y, weight = self.y[rows].to(logit.device), self.weight[rows].to(logit.device)
        each = nn.functional.binary_cross_entropy_with_logits(logit.float(), y, reduction="none")  # (batch,)
        return (each * weight).sum() / weight.sum()

    @torch.no_grad()
    def _validate(self) -> None:
        """Score the held-out cells in evaluation mode and keep the best parameters."""
        from sklearn.metrics import roc_auc_score

        batches = self.cells.validation(self.options.batch_size)
        if not batches:
            return
        logits, losses, weights = [], 0.0, 0.0
        self.plain.eval()
        for rows in batches:
            with self.accelerator.autocast():
                logit = self.plain(self.cells.batch(rows, self.device)).float()  # (batch,)
            weight = float(self.weight[rows].sum())
            losses, weights = losses + float(self._loss(logit, rows)) * weight, weights + weight
            logits.append(logit.cpu().numpy())
        loss = losses / weights
        auroc = float(roc_auc_score(self.cells.y[np.concatenate(batches)], np.concatenate(logits)))
        self.state.validation.append({"loss": loss, "auroc": auroc})
        if loss < self.state.best_loss:
            self.state.best_loss, self.state.best_epoch = loss, self.state.epoch
            self.best = {n: p.detach().cpu().clone() for n, p in self.trainable.items()}

    def _stalled(self) -> bool:
        state = self.state
        return bool(self.cells.held_out) and state.epoch - state.best_epoch >= self.options.patience

    def _batches(self, epoch: int) -> list[np.ndarray]:
        return self.cells.shuffled(self.options.batch_size, np.random.default_rng([self.engine.seed, epoch]))

    def _rate(self, step: int, total: int) -> None:
        """Linear warm-up, then a cosine to zero."""
        rise = max(round(self.options.warmup * total), 1)
        after = (step - rise) / max(total - rise, 1)
        factor = (step + 1) / rise if step < rise else 0.5 * (1 + math.cos(math.pi * min(after, 1)))
        for group, peak in zip(self.optimiser.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor

    @contextlib.contextmanager
    def _seeded(self, epoch: int, batch: int) -> Iterator[None]:
        """Give dropout a stream of its own in every pass, so that nothing random has to be stored."""
        number = int(np.random.SeedSequence([self.engine.seed, epoch, batch]).generate_state(1)[0])
        with torch.random.fork_rng():
            torch.manual_seed(number)
            yield

    def _shown(self) -> dict[str, str]:
        return {"val_auroc": f"{self.state.validation[-1]['auroc']:.3f}"} if self.state.validation else {}

    def _set(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.trainable.items():
                parameter.copy_(values[name])

    @property
    def _file(self) -> Path | None:
        """Checkpoint of this very training, so that several may share a folder."""
        root = self.options.checkpoint_dir
        name = hashlib.sha256(self.identity.encode()).hexdigest()[:16]
        return None if root is None else Path(root).expanduser() / f"{name}.safetensors"

    def _checkpoint(self) -> None:
        """Store everything that the rest of the training depends on, whole or not at all."""
        if self._file is None:
            return
        from safetensors.torch import save_file

        tensors = {f"now.{n}": p.detach().cpu().clone() for n, p in self.trainable.items()}
        tensors |= {f"best.{n}": p for n, p in self.best.items()}
        for name, parameter in self.trainable.items():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value.detach().cpu().clone()
        metadata = {"identity": self.identity, "state": json.dumps(asdict(self.state))}
        with atomic_path(self._file) as temporary:
            save_file(tensors, str(temporary), metadata)

    def _resume(self) -> None:
        """Take up the checkpoint of this training, if there is one."""
        if self._file is None or not self._file.is_file():
            return
        from safetensors import safe_open

        with safe_open(str(self._file), "pt") as stored:
            metadata = stored.metadata()
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        if metadata["identity"] != self.identity:
            return
        self.state = State(**json.loads(metadata["state"]))
        self._set({n: tensors[f"now.{n}"] for n in self.trainable})
        self.best = {n: tensors[f"best.{n}"] for n in self.trainable if f"best.{n}" in tensors}
        for name, parameter in self.trainable.items():
            if f"exp_avg.{name}" in tensors:
                self.optimiser.state[parameter] = {
                    "step": tensors[f"step.{name}"],
                    "exp_avg": tensors[f"exp_avg.{name}"].to(parameter.device),
                    "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(parameter.device),
                }

    def forget(self) -> None:
        """Remove the checkpoint of a training that is over."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)
