"""Fit adapters and head on the cells of a count matrix."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from scdrugmap import __version__
from scdrugmap._device import Engine, pick_device, pick_precision
from scdrugmap._errors import InputError
from scdrugmap._keys import CLASSES
from scdrugmap.heads.mlp import MLPHead
from scdrugmap.heads.tasks import inner_split
from scdrugmap.lora.adapters import LoRAOptions, attach, check_gradients, mark_adapted, output_change
from scdrugmap.lora.checkpointing import checkpointed
from scdrugmap.lora.training import Adapted, Trainer, TrainingCells


@dataclass(frozen=True, eq=False)
class Tokenised:
    """Token sequences of cells and what else the training needs to know about them."""

    tokens: Any
    costs: np.ndarray
    genes: np.ndarray

    @property
    def usable(self) -> np.ndarray:
        """Whether each cell has a gene that the model knows."""
        return np.asarray(self.tokens.usable)


def tokenise(model: Any, source: Any, genes: Any, rows: np.ndarray, block: int = 2048) -> Tokenised:
    """Tokenise some rows of a count matrix, once for all epochs.

    Parameters
    ----------
    model
        A network model.
    source
        ``CountSource``.
    genes
        Identifiers of its columns.
    rows
        Row numbers.
    block
        Rows read at a time.

    Returns
    -------
    Sequences in the order of ``rows``.

    Raises
    ------
    InputError
        If the model knows no gene, or the values are none that it can use.
    """
    from scdrugmap.embedding.runner import no_known_gene
    from scdrugmap.models.kit.counts import Counts
    from scdrugmap.models.kit.tokens import Tokens
    from scdrugmap.models.kit.values import check_values

    if model.sequential:
        raise InputError(
            "recipe", model.recipe, "a recipe whose cells do not depend on file order", "leave recipe out for LoRA."
        )
    alignment = model.align(genes)
    if len(alignment.ids) == 0:
        raise no_known_gene(model, genes)

    def counts(survey: Any) -> Any:
        for start in range(0, len(rows), block):
            part = rows[start : start + block]
            X = source[part]
            check_values(X, counts=model.card.needs_counts, model=model.card.name)
            yield Counts(alignment.apply(X), alignment.ids, alignment.genes, part, survey)

    survey = model.survey(lambda: counts(None))
    tokens = Tokens.concatenate([model.tokenize(c) for c in counts(survey)])
    return Tokenised(tokens, model.costs(tokens), alignment.genes)


def fit_lora(
    model: Any,
    cells: Tokenised,
    y: np.ndarray,
    rows: np.ndarray,
    head: MLPHead,
    options: LoRAOptions,
    *,
    groups: np.ndarray | None = None,
    contexts: np.ndarray | None = None,
    seed: int = 0,
    device: str | None = None,
    precision: str | None = None,
    show: bool | None = None,
    engine: Engine | None = None,
) -> tuple[MLPHead, dict[str, Any]]:
    """Train adapters in ``model`` and a head on its embedding, together.

    Parameters
    ----------
    model
        A network model without adapters; it carries the trained ones afterwards.
    cells
        Of :func:`tokenise`.
    y
        0 or 1 for every cell of ``cells``.
    rows
        Cells to train on.
    head
        Unfitted head; its layers, ``standardize`` and ``class_weight`` count.
    options
        Of adapters and training.
    groups
        Group of every cell; the inner validation split keeps them whole.
    contexts
        Group of cells that see each other, for models with such groups.
    seed, device, precision, show
        Seed of everything random, hardware, arithmetic and progress bar, where no ``engine`` holds them.
    engine
        All of these in one.

    Returns
    -------
    The fitted head, and a report: gradients checked, change of the output, losses, validation.

    Raises
    ------
    InputError
        If an adapter gets no gradient, or training did not change the output.
    """
    engine = engine or Engine(device, precision, progress=show, seed=seed)
    place = pick_device(engine.device)
    engine = replace(engine, device=str(place), precision=pick_precision(engine.precision, place))
    fit_rows, held = _split(options, y, groups, rows, engine.seed)
    data = TrainingCells(
        collate=lambda part: model.collate(cells.tokens.take(part)),
        costs=cells.costs,
        y=y,
        weight=_weights(y, fit_rows, options.class_weight or head.class_weight),
        pools=_pools(fit_rows, contexts),
        held_out=_pools(held, contexts),
    )
    identity = _identity(model, cells, data, head, options, engine)
    model.to(place)
    network = attach(model, options, engine.seed)
    network.to(place)
    longest = fit_rows[np.argsort(-cells.costs[fit_rows], kind="stable")][: min(8, options.batch_size)]
    checked = check_gradients(network, data.batch(longest, place), engine.seed)
    standard = (torch.zeros(model.dim), torch.ones(model.dim))
    if head.standardize:
        mean, scale = _standard(network, data, options.batch_size, place)
        standard = (mean, scale.square().mean().sqrt().expand_as(scale) if head.standardize == "overall" else scale)
    module = Adapted(network, [model.dim, *head.hidden, 1], standard, engine.seed).to(place)
    trainer = Trainer(module, data, options, engine, identity)
    with checkpointed(network, options.gradient_checkpointing):
        state = trainer.run()
    change = output_change(network.eval(), data.batch(longest, place))
    model.to(torch.device("cpu"))
    network.to("cpu").eval()
    mark_adapted(model)
    trainer.forget()
    report = {
        "r": options.r,
        "alpha": options.alpha,
        "dropout": options.dropout,
        "target_modules": list(options.target_modules or model.card.lora_targets),
        "adapter_tensors_with_gradient": checked,
        "largest_change_of_output": change,
        "trainable_parameters": sum(p.numel() for n, p in network.named_parameters() if "lora_" in n),
        "steps": state.step,
        "epochs": state.epoch,
        "training_loss": state.train_loss,
        "validation": state.validation,
        "best_epoch": state.best_epoch if len(held) else state.epoch,
        "precision": engine.precision,
    }
    return _as_head(module.cpu(), head, engine.seed), report


def _split(
    options: LoRAOptions, y: np.ndarray, groups: np.ndarray | None, rows: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to validate on; the latter are none where no early stopping takes place."""
    if not _wants_validation(options, y, groups, rows):
        return rows, np.empty(0, dtype=np.int64)
    return inner_split(y, groups, rows, options.validation_fraction, np.random.default_rng(seed))


def _wants_validation(options: LoRAOptions, y: np.ndarray, groups: np.ndarray | None, rows: np.ndarray) -> bool:
    """Whether groups are held out for early stopping: as the option says, or where there are enough of them."""
    if options.early_stopping is not None:
        return options.early_stopping
    if groups is None:
        return False
    return min(len(np.unique(groups[rows][y[rows] == c])) for c in (0, 1)) >= 3


@torch.no_grad()
def _standard(network: Any, cells: TrainingCells, size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of the base embedding over the training cells."""
    network.eval()
    ordered = [pool[np.argsort(cells.costs[pool], kind="stable")] for pool in cells.pools]
    batches = [pool[i : i + size] for pool in ordered for i in range(0, len(pool), size)]
    values = torch.cat([network(cells.batch(rows, device)).double() for rows in batches])  # (cells, width)
    scale = values.std(0, unbiased=False)
    return values.mean(0).float(), torch.where(scale > 1e-12, scale, 1.0).float()


def _pools(rows: np.ndarray, contexts: np.ndarray | None) -> list[np.ndarray]:
    """Rows that may share a batch."""
    if contexts is None or not len(rows):
        return [rows] if len(rows) else []
    return [rows[contexts[rows] == c] for c in np.unique(contexts[rows])]


def _weights(y: np.ndarray, rows: np.ndarray, class_weight: Any) -> np.ndarray:
    """Weight of every cell; class weights are measured on the training cells."""
    if class_weight is None:
        return np.ones(len(y))
    if class_weight == "balanced":
        counts = np.bincount(y[rows], minlength=2)
        return (len(rows) / (2 * np.maximum(counts, 1)))[y]
    return np.array([float(class_weight.get(CLASSES[c], class_weight.get(c, 1.0))) for c in (0, 1)])[y]


def _identity(
    model: Any, cells: Tokenised, data: TrainingCells, head: MLPHead, options: LoRAOptions, engine: Engine
) -> str:
    """Everything that decides how a training goes."""
    digest = hashlib.sha256()
    tokens = [cells.tokens.offsets, cells.tokens.ids, cells.tokens.values]
    for array in (*tokens, data.y, *data.pools, np.array([len(p) for p in data.pools]), *data.held_out):
        if array is not None:
            digest.update(np.ascontiguousarray(array).tobytes())
    chosen = options.model_dump(mode="json", exclude={"checkpoint_dir", "checkpoint_every", "gradient_checkpointing"})
    parts = {
        "version": __version__,
        "model": model.card.key,
        "digests": dict(model.digests),
        "model_options": model.options.model_dump(mode="json"),
        "data": digest.hexdigest(),
        "head": [list(head.hidden), head.standardize, str(head.class_weight)],
        "options": chosen,
        "seed": engine.seed,
        "precision": engine.precision,
    }
    return json.dumps(parts, sort_keys=True, default=str)


def _as_head(module: Adapted, head: MLPHead, seed: int) -> MLPHead:
    """The trained head as the estimator that frozen strategies use."""
    state: dict[str, np.ndarray] = {}
    linear = [m for m in module.head if isinstance(m, torch.nn.Linear)]
    for i, layer in enumerate(linear):
        state[f"layers.{i}.weight"] = layer.weight.detach().float().numpy().T.copy()
        state[f"layers.{i}.bias"] = layer.bias.detach().float().numpy().copy()
    if head.standardize:
        state["scaler.mean"], state["scaler.scale"] = module.mean.numpy().copy(), module.scale.numpy().copy()
    params = {**head.get_params(), "random_state": seed}
    return MLPHead.from_state(state, list(CLASSES), **params)
