"""The ``strategy="lora"`` of ``sd.tl.train``."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdrugmap import _anndata
from scdrugmap._errors import InputError, ScDrugMapWarning
from scdrugmap._keys import KEYS

if TYPE_CHECKING:
    from anndata import AnnData

    from scdrugmap.predictor.representation import Engine, Representation


def train_lora(
    main: AnnData,
    model: Any,
    rows: np.ndarray,
    y_all: np.ndarray,
    labels: np.ndarray | None,
    category: pd.Series | None,
    head: Any,
    trust: Any,
    seed: int,
    engine: Engine,
    *,
    checkpoint: str | Path | None,
    layer: str | None,
    context: str | None,
    options: Mapping[str, Any] | None,
    model_options: dict[str, Any],
) -> tuple[Representation, Any, np.ndarray]:
    """Train adapters and head; returns the representation, what was trained, and the rows that were used.

    Groups that calibration and conformal sets are measured on are held out of the training altogether.
    """
    from scdrugmap._cohort import both_classes
    from scdrugmap.embedding.source import CountSource
    from scdrugmap.heads.crossfit import grouped_folds, margins
    from scdrugmap.lora.adapters import LoRAOptions
    from scdrugmap.lora.fit import fit_lora, tokenise
    from scdrugmap.predictor.representation import FittedRepresentation
    from scdrugmap.predictor.training import Trained, held_out_metrics, learn_trust
    from scdrugmap.tl._train import open_model

    chosen = LoRAOptions.build(options)
    if engine.batch_size is not None and "batch_size" not in (options or {}):
        chosen = chosen.model_copy(update={"batch_size": engine.batch_size})
    representation = open_model(main, model, seed, checkpoint, layer, context, model_options)
    if isinstance(representation, FittedRepresentation):
        raise InputError("model", representation.label, "a network model for strategy='lora'", "use strategy='frozen'.")
    if not isinstance(model, str):
        # the caller's model stays without adapters
        representation.model = copy.deepcopy(representation.model)
    network = representation.model
    source, genes = CountSource(_anndata.counts(main, layer)), _anndata.gene_ids(main)
    cells = tokenise(network, source, genes, rows)
    usable = np.flatnonzero(cells.usable)
    if len(usable) < len(rows):
        warnings.warn(
            f"{len(rows) - len(usable)} of {len(rows)} labelled cells hold no gene that {network.card.name} knows and "
            "are not trained on.",
            ScDrugMapWarning,
            stacklevel=3,
        )
    y, kept = y_all[rows].astype(np.int64), rows[usable]
    both_classes(y_all[kept])
    groups = None if labels is None else labels[rows]
    contexts = _contexts(main, network, context, rows)
    fit_rows, apart = usable, np.empty(0, dtype=np.int64)
    if trust.held_out:
        folds = grouped_folds(y[usable], None if groups is None else groups[usable], trust.n_folds, seed)
        fit_rows, apart = usable[folds[0][0]], usable[folds[0][1]]
        if len(np.unique(y[apart])) < 2:
            raise InputError(
                "groups", "held-out groups of one class", "groups of both classes to calibrate on",
                "pass a smaller n_folds, or leave calibration and conformal sets out.",
            )  # fmt: skip
    fitted, report = fit_lora(
        network, cells, y, fit_rows, head, chosen, groups=groups, contexts=contexts, seed=seed, device=engine.device,
        precision=engine.precision, show=engine.progress,
    )  # fmt: skip
    representation.adapted = True
    representation.genes = [str(g) for g in cells.genes]
    losses = report.pop("training_loss")
    summary: dict[str, Any] = {"n_features": int(network.dim), "training_loss": losses[-1], "losses": losses}
    summary["validation"] = report.pop("validation")
    summary["lora"] = report
    X, margin = np.empty((0, network.dim), np.float32), None
    part = apart
    if trust.held_out or trust.ood:
        subset = main[rows[apart if not trust.ood else usable]]
        X = representation.features(subset, "rna", engine)
        part = apart if not trust.ood else usable
    if trust.held_out:
        margin = margins(fitted, X[np.isin(part, apart)])
        summary["held_out"] = {"cells": len(apart), **held_out_metrics(margin, y[apart])}
    trained_on = np.isin(part, fit_rows)
    learnt = learn_trust(
        X[trained_on], margin, y[apart], trust, None if groups is None else groups[part][trained_on],
        None if category is None else category.to_numpy()[rows][apart], seed,
    )  # fmt: skip
    return representation, Trained(fitted, *learnt, summary), kept


def _contexts(main: AnnData, network: Any, context: str | None, rows: np.ndarray) -> np.ndarray | None:
    """Which cells see each other, for models where they do."""
    if network.card.context != "group":
        return None
    column = context or (KEYS.sample if KEYS.sample in main.obs else None)
    if column is None:
        return None
    return _anndata.obs_column(main, column, "context").astype(str).to_numpy()[rows]
