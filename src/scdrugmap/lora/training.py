"""The training loop of adapters and head: resumable, the same whether interrupted or not."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
        embedding = self.network(batch).float()
        return self.head((embedding - self.mean) / self.scale).squeeze(1)


class Trainer:
    """Trains an :class:`Adapted` module on tokens.

    Parameters
    ----------
    module
        Network and head; what requires a gradient is trained.
    collate
        Turns a selection of cells into a batch on the CPU.
    costs
        Length of every cell, so that cells of like length share a batch.
    y, weight
        Target and weight of every cell.
    pools
        Rows that may share a batch: one pool of all, or one per group for models whose cells see each other.
    held_out
        Rows for validation; may be empty.
    options, seed
        Of the training.
    device, precision
        Where and in which arithmetic.
    identity
        Text that identifies data, model and options: a checkpoint of another training is not taken up.
    show
        Whether a progress bar is shown.
    """

    def __init__(
        self,
        module: Adapted,
        collate: Any,
        costs: np.ndarray,
        y: np.ndarray,
        weight: np.ndarray,
        pools: list[np.ndarray],
        held_out: list[np.ndarray],
        options: LoRAOptions,
        seed: int,
        device: torch.device,
        precision: str,
        identity: str,
        show: bool | None,
    ) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        # the arithmetic of an earlier training in this process must not decide that of this one
        AcceleratorState._reset_state(reset_partial_state=True)
        mixed = {"bfloat16": "bf16", "float16": "fp16"}.get(precision, "no")
        self.accelerator = Accelerator(
            cpu=device.type == "cpu", mixed_precision=mixed, gradient_accumulation_steps=options.accumulate
        )
        self.collate, self.costs, self.pools, self.held_out = collate, costs, pools, held_out
        self.y, self.weight = torch.as_tensor(y, dtype=torch.float32), torch.as_tensor(weight, dtype=torch.float32)
        self.options, self.seed, self.identity, self.show = options, seed, identity, show
        self.plain = module
        self.trainable = {n: p for n, p in module.named_parameters() if p.requires_grad}
        head = [p for n, p in self.trainable.items() if n.startswith("head.")]
        rest = [p for n, p in self.trainable.items() if not n.startswith("head.")]
        groups = [{"params": rest, "lr": options.lr}, {"params": head, "lr": options.head_lr or options.lr}]
        optimiser = torch.optim.AdamW(groups, weight_decay=options.weight_decay)
        self.module, self.optimiser = self.accelerator.prepare(module, optimiser)
        self.peaks = [options.lr, options.head_lr or options.lr]
        self.state = State()
        self.best: dict[str, Tensor] = {}

    def run(self) -> State:
        """Train, from a checkpoint where there is one; the best parameters are in the module afterwards."""
        self._resume()
        options = self.options
        total = options.epochs * self._steps_per_epoch()
        with progress(total, "LoRA", "step", show=self.show and self.accelerator.is_main_process) as bar:
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
        mine = slice(self.accelerator.process_index, None, self.accelerator.num_processes)
        rounds = [
            batches[i : i + self.accelerator.num_processes]
            for i in range(0, len(batches), self.accelerator.num_processes)
        ]
        # every process takes the same number of batches: the last round is filled from the first
        rounds[-1] = (rounds[-1] + batches)[: self.accelerator.num_processes]
        for i, rows in ((i, r[mine][0]) for i, r in enumerate(rounds)):
            if i < state.batches_done:
                continue
            self._rate(state.step, total)
            with self._seeded(state.epoch, i):
                loss, stepped = self._learn(rows, last=i == len(rounds) - 1)
            state.running += loss
            state.batches_done = i + 1
            if stepped:
                state.step += 1
                bar.update(1)
                bar.set_postfix(loss=f"{state.running / state.batches_done:.4f}", **self._shown())
                if state.step % self.options.checkpoint_every == 0:
                    self._checkpoint()
        state.train_loss.append(state.running / len(rounds))
        state.epoch, state.batches_done, state.running = state.epoch + 1, 0, 0.0

    def _training_mode(self) -> None:
        """Switch dropout on: of the adapters, and of the network itself where that was asked for."""
        self.module.train()
        if not self.options.base_dropout:
            self.plain.network.eval()
            for name, part in self.plain.network.named_modules():
                if "lora_dropout" in name:
                    part.train()

    def _learn(self, rows: np.ndarray, *, last: bool) -> tuple[float, bool]:
        """Forward and backward; a step where enough passes have gathered."""
        accelerator = self.accelerator
        self.gathered = getattr(self, "gathered", 0) + 1
        step = last or self.gathered == self.options.accumulate
        hold = contextlib.nullcontext() if step else accelerator.no_sync(self.module)
        with hold:
            loss = self._loss(self.module(self._batch(rows)), rows)
            accelerator.backward(loss)
        if step:
            accelerator.clip_grad_norm_(list(self.trainable.values()), self.options.max_grad_norm)
            self.optimiser.step()
            self.optimiser.zero_grad()
            self.gathered = 0
        return float(loss.detach()), step

    def _loss(self, logit: Tensor, rows: np.ndarray) -> Tensor:
        """Weighted mean cross-entropy."""
        y, weight = self.y[rows].to(logit.device), self.weight[rows].to(logit.device)
        each = nn.functional.binary_cross_entropy_with_logits(logit.float(), y, reduction="none")
        return (each * weight).sum() / weight.sum()

    @torch.no_grad()
    def _validate(self) -> None:
        """Score the held-out cells in evaluation mode and keep the best parameters."""
        if not self.held_out:
            return
        logits, losses, weights = [], 0.0, 0.0
        self.plain.eval()
        for rows in self.held_out:
            with self.accelerator.autocast():
                logit = self.plain(self._batch(rows)).float()
            weight = float(self.weight[rows].sum())
            losses, weights = losses + float(self._loss(logit, rows)) * weight, weights + weight
            logits.append(logit.cpu().numpy())
        from sklearn.metrics import roc_auc_score

        loss, y = losses / weights, self.y[np.concatenate(self.held_out)].numpy()
        auroc = float(roc_auc_score(y, np.concatenate(logits)))
        self.state.validation.append({"loss": loss, "auroc": auroc})
        if loss < self.state.best_loss:
            self.state.best_loss, self.state.best_epoch = loss, self.state.epoch
            self.best = {n: p.detach().cpu().clone() for n, p in self.trainable.items()}

    def _stalled(self) -> bool:
        state = self.state
        return bool(self.held_out) and state.epoch - state.best_epoch >= self.options.patience

    def _batches(self, epoch: int) -> list[np.ndarray]:
        """Batches of an epoch: shuffled, cells of like length together within a window of a few batches."""
        rng = np.random.default_rng([self.seed, epoch])
        size, out = self.options.batch_size, []
        for pool in self.pools:
            order = rng.permutation(pool)
            for start in range(0, len(order), size * 16):
                window = order[start : start + size * 16]
                window = window[np.argsort(self.costs[window], kind="stable")]
                out += [window[i : i + size] for i in range(0, len(window), size)]
        return [out[i] for i in rng.permutation(len(out))]

    def _steps_per_epoch(self) -> int:
        batches = len(self._batches(0))
        rounds = -(-batches // self.accelerator.num_processes)
        return -(-rounds // self.options.accumulate)

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
        number = int(
            np.random.SeedSequence([self.seed, epoch, batch, self.accelerator.process_index]).generate_state(1)[0]
        )
        with torch.random.fork_rng():
            torch.manual_seed(number)
            yield

    def _batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        return {k: v.to(self.accelerator.device, non_blocking=True) for k, v in self.collate(rows).items()}

    def _shown(self) -> dict[str, str]:
        return {"val_auroc": f"{self.state.validation[-1]['auroc']:.3f}"} if self.state.validation else {}

    def _set(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.trainable.items():
                parameter.copy_(values[name])

    @property
    def _folder(self) -> Path | None:
        """Checkpoint of this very training, so that several may share a folder."""
        root = self.options.checkpoint_dir
        return (
            None if root is None else Path(root).expanduser() / hashlib.sha256(self.identity.encode()).hexdigest()[:16]
        )

    def _checkpoint(self) -> None:
        """Store everything that the rest of the training depends on, whole or not at all."""
        if self._folder is None or not self.accelerator.is_main_process:
            return
        from safetensors.torch import save_file

        tensors = {f"now.{n}": p.detach().cpu().clone() for n, p in self.trainable.items()}
        tensors |= {f"best.{n}": p for n, p in self.best.items()}
        for name, parameter in self.trainable.items():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value.detach().cpu().clone()
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{self._folder.name}.", dir=self._folder.parent))
        save_file(tensors, str(fresh / "state.safetensors"))
        (fresh / "state.json").write_text(json.dumps({"identity": self.identity, **asdict(self.state)}))
        old = self._folder.with_name(self._folder.name + ".old")
        if self._folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            self._folder.replace(old)
        fresh.replace(self._folder)
        shutil.rmtree(old, ignore_errors=True)

    def _resume(self) -> None:
        """Take up the checkpoint of this training, if there is one."""
        if self._folder is None:
            return
        candidates = [self._folder, self._folder.with_name(self._folder.name + ".old")]
        found = next((c for c in candidates if (c / "state.json").is_file()), None)
        if found is None:
            return
        from safetensors.torch import load_file

        stored = json.loads((found / "state.json").read_text())
        if stored.pop("identity") != self.identity:
            return
        self.state = State(**stored)
        tensors = load_file(str(found / "state.safetensors"))
        self._set({n: tensors[f"now.{n}"] for n in self.trainable})
        self.best = {n: tensors[f"best.{n}"] for n in self.trainable if f"best.{n}" in tensors}
        for name, parameter in self.trainable.items():
            if f"exp_avg.{name}" in tensors:
                device = parameter.device
                self.optimiser.state[parameter] = {
                    "step": tensors[f"step.{name}"],
                    "exp_avg": tensors[f"exp_avg.{name}"].to(device),
                    "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(device),
                }

    def forget(self) -> None:
        """Remove the checkpoint of a training that is over."""
        if self._folder is not None and self.accelerator.is_main_process:
            shutil.rmtree(self._folder, ignore_errors=True)
