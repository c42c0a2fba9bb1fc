"""Fit adapters and head on the cells of a count matrix."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from scdrugmap import __version__
from scdrugmap._errors import InputError
from scdrugmap._keys import CLASSES
from scdrugmap.heads.batched import _inner_split
from scdrugmap.heads.mlp import MLPHead
from scdrugmap.lora.adapters import LoRAOptions, attach, check_gradients, mark_adapted, output_change
from scdrugmap.lora.training import Adapted, Trainer


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
    seed
        Of everything random.
    device, precision
        ``None`` follows the settings.
    show
        Whether a progress bar is shown.

    Returns
    -------
    The fitted head, and a report: gradients checked, change of the output, losses, validation.

    Raises
    ------
    InputError
        If an adapter gets no gradient, or training did not change the output.
    """
    from scdrugmap._device import pick_device, pick_precision

    torch_device = pick_device(device)
    arithmetic = pick_precision(precision, torch_device)
    fit_rows, held = rows, np.empty(0, dtype=np.int64)
    if _wants_validation(options, y, groups, rows):
        splitter = MLPHead(validation_fraction=options.validation_fraction)
        fit_rows, held = _inner_split(splitter, y, groups, rows, np.random.default_rng(seed))

    def collate(part: np.ndarray) -> Any:
        return model.collate(cells.tokens.take(part))

    def placed(part: np.ndarray) -> Any:
        return {k: v.to(torch_device) for k, v in collate(part).items()}

    model.to(torch_device)
    network = attach(model, options, seed)
    network.to(torch_device)
    longest = fit_rows[np.argsort(-cells.costs[fit_rows], kind="stable")][: min(8, options.batch_size)]
    checked = check_gradients(network, placed(longest), seed)
    pools = _pools(fit_rows, contexts)
    standard = _standard(network, placed, cells.costs, pools, options, head.standardize, model.dim, torch_device)
    sizes = [model.dim, *head.hidden, 1]
    module = Adapted(network, sizes, standard, seed).to(torch_device)
    trainer = Trainer(
        module,
        collate,
        cells.costs,
        y,
        _weights(y, fit_rows, options.class_weight or head.class_weight),
        pools,
        [p[i : i + options.batch_size] for p in _pools(held, contexts) for i in range(0, len(p), options.batch_size)],
        options,
        seed,
        torch_device,
        arithmetic,
        _identity(model, cells, y, fit_rows, held, head, options, seed, arithmetic),
        show,
    )
    state = trainer.run()
    network.eval()
    change = output_change(network, placed(longest))
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
        "precision": arithmetic,
    }
    return _as_head(module.cpu(), head, seed), report


def _wants_validation(options: LoRAOptions, y: np.ndarray, groups: np.ndarray | None, rows: np.ndarray) -> bool:
    """Whether groups are held out for early stopping: as asked, or where there are enough of them."""
    if options.early_stopping is not None:
        return options.early_stopping
    if groups is None:
        return False
    return min(len(np.unique(groups[rows][y[rows] == c])) for c in (0, 1)) >= 3


@torch.no_grad()
def _standard(
    network: Any,
    placed: Any,
    costs: np.ndarray,
    pools: list[np.ndarray],
    options: LoRAOptions,
    wanted: bool,
    dim: int,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of the base embedding over the training cells; zero and one where not wanted."""
    if not wanted:
        return torch.zeros(dim, device=device), torch.ones(dim, device=device)
    network.eval()
    size = options.batch_size
    ordered = [pool[np.argsort(costs[pool], kind="stable")] for pool in pools]
    parts = [network(placed(o[i : i + size])).double() for o in ordered for i in range(0, len(o), size)]
    values = torch.cat(parts)
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
    model: Any,
    cells: Tokenised,
    y: np.ndarray,
    rows: np.ndarray,
    held: np.ndarray,
    head: MLPHead,
    options: LoRAOptions,
    seed: int,
    precision: str,
) -> str:
    """Everything that decides how a training goes."""
    digest = hashlib.sha256()
    for array in (cells.tokens.offsets, cells.tokens.ids, cells.tokens.values, y, rows, held):
        if array is not None:
            digest.update(np.ascontiguousarray(array).tobytes())
    chosen = options.model_dump(mode="json", exclude={"checkpoint_dir", "checkpoint_every"})
    parts = {
        "version": __version__,
        "model": model.card.key,
        "digests": dict(model.digests),
        "model_options": model.options.model_dump(mode="json"),
        "data": digest.hexdigest(),
        "head": [list(head.hidden), head.standardize, str(head.class_weight)],
        "options": chosen,
        "seed": seed,
        "precision": precision,
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
