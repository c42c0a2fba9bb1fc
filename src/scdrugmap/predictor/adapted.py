"""From a cohort to adapters in the model and a head on top of them, trained together."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scdrugmap import _anndata
from scdrugmap._cohort import Cohort, both_classes
from scdrugmap._errors import InputError, ScDrugMapWarning
from scdrugmap.embedding.cells import read_cells
from scdrugmap.heads.crossfit import grouped_folds, margins
from scdrugmap.lora.adapters import LoRAOptions
from scdrugmap.lora.fit import Tokenised, fit_lora, tokenise
from scdrugmap.predictor.fitting import Fitted, Plan
from scdrugmap.predictor.query import FEW_CELLS, learn_reference, some_rows
from scdrugmap.predictor.representation import FittedRepresentation, NetworkRepresentation
from scdrugmap.predictor.training import Trained, held_out_metrics, learn_trust


@dataclass(frozen=True, eq=False)
class _Training:
    """Cells that take part, one row each: tokens, cohort, context, and their rows in the data."""

    tokens: Tokenised
    cohort: Cohort
    context: np.ndarray | None
    rows: np.ndarray


def fit_adapted(adata: Any, cohort: Cohort, plan: Plan) -> Fitted:
    """Train adapters and head.

    Groups that calibration and conformal sets are measured on are held out of the training altogether.

    Parameters
    ----------
    adata
        The AnnData.
    cohort
        All of its cells.
    plan
        What to train.

    Raises
    ------
    InputError
        For a model that is no network, or groups that cannot be held out.
    """
    options = LoRAOptions.build(plan.lora)
    if plan.engine.batch_size is not None and "batch_size" not in (plan.lora or {}):
        options = options.model_copy(update={"batch_size": plan.engine.batch_size})
    representation = plan.open(adata)
    if isinstance(representation, FittedRepresentation):
        raise InputError("model", representation.label, "a network model for strategy='lora'", "use strategy='frozen'.")
    if not isinstance(plan.model, str):
        # the caller's model stays without adapters
        representation.model = copy.deepcopy(representation.model)
    cells = _tokenised(adata, cohort, representation, plan)
    fit_rows, apart = _divided(cells.cohort, plan)
    head, report = fit_lora(
        representation.model, cells.tokens, cells.cohort.y.astype(np.int64), fit_rows, plan.head, options,
        groups=cells.cohort.groups, contexts=cells.context, seed=plan.engine.seed, device=plan.engine.device,
        precision=plan.engine.precision, show=plan.engine.progress,
    )  # fmt: skip
    representation.adapted = True
    representation.genes = [str(g) for g in cells.tokens.genes]
    losses = report.pop("training_loss")
    summary: dict[str, Any] = {
        "n_features": int(representation.model.dim),
        "training_loss": losses[-1],
        "losses": losses,
    }
    summary["validation"] = report.pop("validation")
    summary["lora"] = report
    trained = _with_trust(adata, cells, representation, plan, head, fit_rows, apart, summary)
    shown = some_rows(cells.rows, plan.engine.seed, FEW_CELLS)
    X = representation.features(adata, plan.mod, plan.engine, rows=shown)
    shift = learn_reference(adata, plan.layer, shown, X, head, plan.engine.seed)
    return Fitted(representation, trained, cells.rows, cells.cohort, shift)


def _tokenised(adata: Any, cohort: Cohort, representation: NetworkRepresentation, plan: Plan) -> _Training:
    """Tokenise the labelled cells and drop those without a gene that the model knows."""
    network, rows = representation.model, cohort.labelled
    cells = read_cells(adata, network, layer=plan.layer, context=plan.context)
    tokens = tokenise(network, cells.source, cells.genes, rows)
    usable = np.flatnonzero(tokens.usable)
    if len(usable) < len(rows):
        warnings.warn(
            f"{len(rows) - len(usable)} of {len(rows)} labelled cells hold no gene that {network.card.name} knows and "
            "are not trained on.",
            ScDrugMapWarning,
            stacklevel=4,
        )
        tokens = replace(tokens, tokens=tokens.tokens.take(usable), costs=tokens.costs[usable])
        rows = rows[usable]
    used = cohort.take(rows)
    both_classes(used.y)
    return _Training(tokens, used, None if cells.context is None else cells.context[rows], rows)


def _divided(cohort: Cohort, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Cells to train on, and cells of other groups to measure doubt on."""
    everything = np.arange(len(cohort.y))
    if not plan.trust.held_out:
        return everything, np.empty(0, dtype=np.int64)
    folds = grouped_folds(cohort.y.astype(np.int64), cohort.groups, plan.trust.n_folds, plan.engine.seed)
    fit_rows, apart = folds[0]
    if len(np.unique(cohort.y[apart])) < 2:
        raise InputError(
            "groups", "held-out groups of one class", "groups of both classes to calibrate on",
            "pass a smaller n_folds, or leave calibration and conformal sets out.",
        )  # fmt: skip
    return fit_rows, apart


def _with_trust(
    adata: Any,
    cells: _Training,
    representation: NetworkRepresentation,
    plan: Plan,
    head: Any,
    fit_rows: np.ndarray,
    apart: np.ndarray,
    summary: dict[str, Any],
) -> Trained:
    """Learn calibration and sets on the cells apart, and the out-of-domain flag on the others."""
    trust, cohort = plan.trust, cells.cohort
    part = np.arange(len(cohort.y)) if trust.ood else apart
    X, margin = np.empty((len(part), representation.model.dim), np.float32), None
    if trust.held_out or trust.ood:
        main = _anndata.resolve(adata, mod=plan.mod)
        X = representation.features(main, plan.mod, plan.engine, rows=cells.rows[part])
    held, taught = cohort.take(apart), np.isin(part, fit_rows)
    why = "adapters learnt from all groups: calibrate= or conformal= hold some out"
    folds: list[tuple[np.ndarray, np.ndarray]] = []
    y = held.y.astype(np.int64)
    if trust.held_out:
        margin = margins(head, X[np.isin(part, apart)])
        summary["held_out"] = {"cells": len(apart), **held_out_metrics(margin, held.y)}
        folds, why = _crossing(held, plan)
    doubt = learn_trust(
        X[taught], margin, y, trust, None if cohort.groups is None else cohort.groups[part][taught],
        plan.category(held), plan.engine.seed, held_groups=held.groups, folds=folds, why=why,
    )  # fmt: skip
    return Trained(head, doubt, summary | {"worth": doubt.worth})


def _crossing(held: Cohort, plan: Plan) -> tuple[list[tuple[np.ndarray, np.ndarray]], str]:
    """Folds of the held-out cells, in which calibration and sets are fitted and tested in turn; or why there are none."""
    if held.groups is None:
        return [], "there is neither groups= nor obs['sample']"
    try:
        return grouped_folds(held.y.astype(np.int64), held.groups, plan.trust.n_folds, plan.engine.seed), ""
    except InputError as error:
        return [], f"{error.found} among the held-out groups"
