"""From a cohort to a representation, a head and everything that says how far to trust it: the model stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scdrugmap import _anndata
from scdrugmap._cohort import Cohort, both_classes
from scdrugmap._device import Engine
from scdrugmap._errors import InputError
from scdrugmap._keys import KEYS
from scdrugmap._logging import warn
from scdrugmap.heads.adapt import Adaptation
from scdrugmap.predictor.query import learn_reference
from scdrugmap.predictor.representation import (
    FittedRepresentation,
    ObsmRepresentation,
    Representation,
    open_representation,
)
from scdrugmap.predictor.training import Trained, Trust, train_head
from scdrugmap.trust.shift import ShiftReference


@dataclass(frozen=True, eq=False)
class Plan:
    """What to train; made once by the shell, handed down whole.

    Parameters
    ----------
    head
        Unfitted classifier.
    trust
        What the predictor learns about its own doubt.
    engine
        How to compute; holds the seed.
    model, use_rep
        What the head looks at; one of the two.
    checkpoint, options
        Of a model by name.
    layer, context, mod
        Where counts and columns are read.
    conformal_by
        Column with the Mondrian category.
    lora
        Options of adapters and their training.
    adapt
        How cells of a new study are brought to the training cells, see :mod:`scdrugmap.heads.adapt`.
    weight_key
        Column with the weight of each cell in training.
    """

    head: Any
    trust: Trust
    engine: Engine
    model: Any = None
    use_rep: Any = None
    checkpoint: str | Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    layer: str | None = None
    context: str | None = None
    mod: str = "rna"
    conformal_by: str | None = None
    lora: Mapping[str, Any] | None = None
    adapt: str = "none"
    weight_key: str | None = None

    def open(self, adata: Any) -> Any:
        """Return the representation of the model; a baseline is not fitted yet."""
        return open_representation(
            adata, self.model, self.engine, checkpoint=self.checkpoint, layer=self.layer, context=self.context,
            options=self.options,
        )  # fmt: skip

    def category(self, cohort: Cohort) -> np.ndarray | None:
        """Mondrian category of each cell."""
        if self.conformal_by is None:
            return None
        return pd.Series(cohort.columns[self.conformal_by]).astype(str).to_numpy()


@dataclass(frozen=True, eq=False)
class Fitted:
    """A representation, what was trained on it, the cells that were used, and what a query is compared with."""

    representation: Representation
    trained: Trained
    rows: np.ndarray
    cohort: Cohort
    shift: ShiftReference | None = None
    adaptation: Adaptation | None = None


def fit_frozen(data: Any, cohort: Cohort, plan: Plan) -> Fitted:
    """Compute features of the labelled cells and train the head on them.

    Parameters
    ----------
    data
        AnnData or MuData.
    cohort
        All of its cells.
    plan
        What to train.

    Raises
    ------
    InputError
        If cells have no embedding in ``obsm``, or too few have one.
    """
    rows = cohort.labelled
    known = cohort.take(rows)
    representation: Representation
    refit, trust = None, plan.trust
    if plan.use_rep is not None:
        representation = ObsmRepresentation.open(data, plan.use_rep, plan.mod)
        X = representation.features(data, plan.mod, plan.engine, rows=rows)
        _refuse_missing(X, representation.label)
    else:
        main = _anndata.reading(data, mod=plan.mod)
        representation = plan.open(main)
        if isinstance(representation, FittedRepresentation):
            refit = Refit(main, representation, rows, context=plan.context)
            trust = replace(trust, worth=not representation.model.uses_batch)  # those learn by gradients
            representation = refit.on(np.arange(len(rows)))
            X = refit.features(representation)
        else:
            X = representation.features(data, plan.mod, plan.engine, rows=rows)
    usable = ~np.isnan(X).any(axis=1)
    if not usable.all():
        warn(f"{int((~usable).sum())} of {len(usable)} labelled cells have no embedding and are not trained on.")
    used, places = known.take(usable), np.flatnonzero(usable)
    both_classes(used.y)
    adaptation, X_used = _adapted(X[usable], used.study, plan.adapt)
    trained = train_head(
        X_used,
        used.y,
        plan.head,
        trust,
        groups=used.groups,
        category=plan.category(used),
        refit=None
        if refit is None
        else lambda train: _adapted(refit(places[train])[usable], used.study, plan.adapt)[1],
        seed=plan.engine.seed,
        weight=None if plan.weight_key is None else used.columns[plan.weight_key].astype(float),
    )
    if refit is not None and refit.first.model.uses_batch:
        trained.summary["batch"] = refit.cells.batch_from
    main = _anndata.resolve(data, mod=plan.mod)
    shift = learn_reference(main, plan.layer, rows[usable], X_used, trained.head, plan.engine.seed)
    return Fitted(representation, trained, rows[usable], used, shift, adaptation)


def _adapted(X: np.ndarray, study: np.ndarray, how: str) -> tuple[Adaptation | None, np.ndarray]:
    """Return the adaptation to these training cells, and the cells under it."""
    if how == "none":
        return None, X
    adaptation = Adaptation.fit(X, study, how)
    return adaptation, adaptation(X, study, training=True)


class Refit:
    """Fits a baseline on some cells.

    Parameters
    ----------
    adata
        The cells.
    representation
        The baseline, fitted or not; its options count.
    rows
        Cells that may be fitted on; by default all.
    context, sample_key
        Columns of the batch, see :func:`scdrugmap._cohort.read_batch`.
    """

    def __init__(
        self,
        adata: Any,
        representation: FittedRepresentation,
        rows: np.ndarray | None = None,
        *,
        context: str | None = None,
        sample_key: str = KEYS.sample,
    ) -> None:
        from scdrugmap.embedding.cells import read_cells

        self.first = representation
        cells = read_cells(
            adata, representation.model, layer=representation.layer, context=context, sample_key=sample_key
        )
        cells = cells if rows is None else cells.take(rows)
        self.cells = replace(cells, X=cells.source)

    def on(self, rows: np.ndarray) -> FittedRepresentation:
        """Return the representation fitted on these rows."""
        from scdrugmap.embedding.embed import fit_model

        model, batch = self.first.model, self.cells.batch
        fresh = type(model)(recipe=model.recipe, **model.options.model_dump())
        fit_model(fresh, self.cells.source.take(rows), self.cells.genes, None if batch is None else batch[rows])
        return FittedRepresentation(fresh, layer=self.first.layer).canonical()

    def features(self, representation: FittedRepresentation) -> np.ndarray:
        """Return features of all cells."""
        from scdrugmap.embedding.embed import embed_cells

        return embed_cells(representation.model, self.cells, Engine()).values

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return features of all cells under a baseline that saw these rows only."""
        return self.features(self.on(rows))


def _refuse_missing(X: np.ndarray, label: str) -> None:
    """Refuse training cells without an embedding in ``obsm``."""
    bad = np.isnan(X).any(axis=1)
    if bad.any():
        raise InputError(
            f"obsm ({label})",
            f"NaN in {int(bad.sum())} of {len(X)} labelled cells",
            "an embedding of every labelled cell",
            "drop them: adata = adata[~np.isnan(adata.obsm[key]).any(axis=1)].copy()",
        )
