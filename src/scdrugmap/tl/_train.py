"""``sd.tl.train``: from labelled cells to a predictor."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scdrugmap import __version__, _anndata
from scdrugmap._errors import InputError, InputTypeError, ScDrugMapWarning, UnknownNameError
from scdrugmap._keys import KEYS

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from scdrugmap.models.base import Model
    from scdrugmap.predictor.predictor import ResponsePredictor
    from scdrugmap.predictor.representation import Engine, Representation

STRATEGIES = ("frozen", "lora")
#: Columns whose values the summary of the training data lists.
_DESCRIBING = (KEYS.study, KEYS.drug, KEYS.tissue, KEYS.cancer_type, KEYS.time_point)


def train(
    adata: AnnData | MuData,
    model: str | Model | None = None,
    *,
    use_rep: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
    strategy: Literal["frozen", "lora"] = "frozen",
    label_key: str = "response",
    groups: str | None = None,
    head: Any = "mlp",
    head_options: Mapping[str, Any] | None = None,
    lora_options: Mapping[str, Any] | None = None,
    calibrate: Literal["sigmoid", "isotonic"] | None = None,
    conformal: bool | float = False,
    conformal_by: str | None = None,
    ood: bool = False,
    n_folds: int = 5,
    checkpoint: str | Path | None = None,
    layer: str | None = None,
    context: str | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    precision: Literal["auto", "float32", "bfloat16", "float16"] | None = None,
    rng: int | np.random.Generator | None = None,
    mod: str = "rna",
    progress: bool | None = None,
    **model_options: Any,
) -> ResponsePredictor:
    """Train a predictor of drug response on labelled cells.

    Parameters
    ----------
    adata
        Labelled cells, with raw counts (``model=``) or embeddings (``use_rep=``). It is not changed.
    model
        Foundation model or baseline, by name or loaded. A baseline is fitted on the labelled cells; a matching
        embedding in ``obsm`` is used instead of embedding again.
    use_rep
        Instead of ``model``: a key of ``obsm``, several keys, or a mapping of MuData modality to key; several
        representations are concatenated.
    strategy
        ``"frozen"``: the model stays as it is. ``"lora"``: low-rank adapters in the model are trained with the head.
    label_key
        Column of ``obs`` with ``resistant`` or ``sensitive``; cells without a label are not used.
    groups
        Column of ``obs`` (sample, patient ...) whose cells stay together in every inner split; by default ``sample``
        where there is such a column.
    head
        ``"mlp"`` (the published head), ``"logistic"``, or a scikit-learn classifier with ``predict_proba``.
    head_options
        Parameters of the head, for example ``{"standardize": True, "early_stopping": True}``.
    lora_options
        Fields of :class:`scdrugmap.response.LoRAOptions`: rank, epochs, learning rate, checkpoint folder ...
    calibrate
        Map scores to calibrated probabilities, fitted on held-out groups: ``"sigmoid"`` for few samples, ``"isotonic"``
        for many.
    conformal
        Learn class-conditional prediction sets with this coverage; ``True`` is 0.9.
    conformal_by
        Column of ``obs`` (tissue, drug ...) within each of whose values the coverage is to hold.
    ood
        Learn a flag for cells that lie far from all training cells.
    n_folds
        Folds of the cross-fitting behind calibration and sets.
    checkpoint
        Folder or file in the official layout, or a variant of the checkpoint registry.
    layer
        Layer of the raw counts; ``X`` if ``None``.
    context
        Column of ``obs`` for models whose cells see each other: cells with one label form one group.
    batch_size, device, precision, progress
        As in :func:`embed`.
    rng
        Seed of everything random; ``sd.settings.seed`` if ``None``.
    mod
        Modality of a MuData that holds labels and counts.
    **model_options
        ``recipe`` and the options of the model.

    Returns
    -------
    The predictor, with ``.predict(adata)``, ``.save(folder)`` and ``.card``.

    Raises
    ------
    InputError
        If labels are not of the two classes, or a class, or groups to hold out, or numbers in the embedding are
        missing.
    UnknownNameError
        For an unknown model, option, head or strategy.

    Notes
    -----
    Calibration and conformal sets rest on scores of cells whose group took no part in the head (and baseline) that
    scored them; the head itself is then trained on all labelled cells. With LoRA one part of the groups is held out
    instead, and takes no part in the training.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=1, rng=0)
    >>> predictor = sd.tl.train(adata, model="pca", groups="sample", rng=0)
    >>> predictor.predict(adata)["score"].between(0, 1).all()
    np.True_
    """
    from scdrugmap._cohort import both_classes, encode, refuse_absent
    from scdrugmap._random import seed_of
    from scdrugmap.heads.make import make_head
    from scdrugmap.predictor.predictor import ResponsePredictor
    from scdrugmap.predictor.representation import Engine
    from scdrugmap.predictor.training import Trust

    main = _anndata.resolve(adata, mod=mod)
    _anndata.refuse_empty(main)
    if strategy not in STRATEGIES:
        raise UnknownNameError("strategy", strategy, STRATEGIES, "Prompted models are not trained.")
    if (model is None) == (use_rep is None):
        raise InputError(
            "model or use_rep", (model, use_rep), "one of the two", "pass model='scGPT' or use_rep='X_scgpt'."
        )
    if use_rep is not None and (strategy == "lora" or checkpoint is not None or model_options):
        extra = "strategy='lora'" if strategy == "lora" else ", ".join([*model_options] or ["checkpoint"])
        raise InputError("use_rep", f"use_rep with {extra}", "model= for that", "pass model=<name> instead of use_rep.")
    seed = seed_of(rng)
    y_all = encode(_anndata.obs_column(main, label_key, "label_key"), "label_key")
    both_classes(y_all)
    rows = np.flatnonzero(y_all >= 0)
    group_key = groups or (KEYS.sample if KEYS.sample in main.obs else None)
    labels = None
    if group_key is not None:
        column = _anndata.obs_column(main, group_key, "groups")
        refuse_absent(column.isna().to_numpy() & (y_all >= 0), "groups", group_key, group_key)
        labels = column.astype(str).to_numpy()
    category = None if conformal_by is None else _anndata.obs_column(main, conformal_by, "conformal_by").astype(str)
    if conformal_by is not None and not conformal:
        raise InputError("conformal_by", conformal_by, "None without conformal sets", "pass conformal=0.9.")
    trust = Trust(calibrate, (0.9 if conformal is True else float(conformal)) if conformal else None, ood, n_folds)
    _check_groups(y_all[rows], labels if labels is None else labels[rows], trust, seed)
    made = make_head(head, random_state=seed, **dict(head_options or {}))
    engine = Engine(batch_size, device, precision, progress)
    training: dict[str, Any] = {
        "scdrugmap": __version__,
        "strategy": strategy,
        "head": head if isinstance(head, str) else type(head).__name__,
        "seed": seed,
        "label_key": label_key,
        "groups": group_key,
        "n_unlabelled": int((y_all < 0).sum()),
    }
    if strategy == "lora":
        from scdrugmap.tl._train_lora import train_lora

        if head != "mlp":
            raise InputError("head", head, "'mlp': adapters are trained through the head", "leave head out.")
        representation, trained, kept = train_lora(
            main, model, rows, y_all, labels, category, made, trust, seed, engine,
            checkpoint=checkpoint, layer=layer, context=context, options=lora_options, model_options=model_options,
        )  # fmt: skip
    else:
        if lora_options:
            raise InputError("lora_options", dict(lora_options), "None", "pass strategy='lora'.")
        representation, trained, kept = _train_frozen(
            adata, main, model, use_rep, rows, y_all, labels, category, made, trust, seed, engine,
            mod=mod, checkpoint=checkpoint, layer=layer, context=context, model_options=model_options,
        )  # fmt: skip
    training |= {**_describe(main.obs.iloc[kept], y_all[kept], labels, kept), **trained.summary}
    training["n_unusable"] = len(rows) - len(kept)
    return ResponsePredictor(
        trained.head,
        representation,
        calibration=trained.calibration,
        conformal=trained.conformal,
        ood=trained.ood,
        conformal_by=conformal_by,
        training=training,
    )


def _train_frozen(
    data: Any,
    main: AnnData,
    model: Any,
    use_rep: Any,
    rows: np.ndarray,
    y_all: np.ndarray,
    labels: np.ndarray | None,
    category: pd.Series | None,
    head: Any,
    trust: Any,
    seed: int,
    engine: Engine,
    *,
    mod: str,
    checkpoint: str | Path | None,
    layer: str | None,
    context: str | None,
    model_options: dict[str, Any],
) -> tuple[Representation, Any, np.ndarray]:
    """Compute features of the labelled cells and train the head; returns the rows that were used, too."""
    from scdrugmap.predictor.representation import FittedRepresentation, ObsmRepresentation
    from scdrugmap.predictor.training import train_head

    representation: Any
    refit = None
    if use_rep is not None:
        representation = ObsmRepresentation.open(data, use_rep, mod)
        X = representation.features(data, mod, engine)[rows]
        _refuse_missing(X, representation.label)
    else:
        subset = main if len(rows) == main.n_obs else main[rows]
        representation = open_model(subset, model, seed, checkpoint, layer, context, model_options)
        if isinstance(representation, FittedRepresentation):
            fit_rows = _Refit(subset, representation, None if labels is None else labels[rows], engine)
            representation, refit = fit_rows.on(np.arange(len(rows))), fit_rows
        X = representation.features(subset, mod, engine)
    usable = ~np.isnan(X).any(axis=1)
    if not usable.all():
        warnings.warn(
            f"{int((~usable).sum())} of {len(usable)} labelled cells have no embedding and are not trained on.",
            ScDrugMapWarning,
            stacklevel=4,
        )
    kept = rows[usable]
    from scdrugmap._cohort import both_classes

    both_classes(y_all[kept])
    trained = train_head(
        X[usable],
        y_all[kept],
        head,
        trust,
        groups=None if labels is None else labels[kept],
        category=None if category is None else category.to_numpy()[kept],
        refit=None if refit is None else lambda train: refit(np.flatnonzero(usable)[train])[usable],
        seed=seed,
    )
    return representation, trained, kept


class _Refit:
    """Fits a baseline on some of the labelled cells."""

    def __init__(self, adata: AnnData, representation: Any, labels: np.ndarray | None, engine: Engine) -> None:
        from scdrugmap.embedding.source import CountSource

        self.adata, self.first, self.labels, self.engine = adata, representation, labels, engine
        source = CountSource(_anndata.counts(adata, representation.layer))
        self.X, self.genes = source[slice(0, source.shape[0])], _anndata.gene_ids(adata)

    def on(self, rows: np.ndarray) -> Any:
        """Return the representation fitted on these rows."""
        from scdrugmap.predictor.representation import FittedRepresentation

        model = self.first.model
        fresh = type(model)(recipe=model.recipe, **model.options.model_dump())
        fresh.fit(self.X[rows], self.genes, batch=None if self.labels is None else self.labels[rows])
        return FittedRepresentation(fresh, layer=self.first.layer).canonical()

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return features of all cells under a baseline that saw these rows only."""
        return self.on(rows).features(self.adata, "rna", self.engine)


def open_model(
    adata: AnnData,
    model: Any,
    seed: int,
    checkpoint: str | Path | None,
    layer: str | None,
    context: str | None,
    options: dict[str, Any],
) -> Any:
    """Return the representation of a model by name or object; a baseline is not fitted yet."""
    from scdrugmap.models import registry
    from scdrugmap.predictor.representation import FittedRepresentation, NetworkRepresentation, as_checkpoint_text
    from scdrugmap.tl._embed import _check_species

    _anndata.refuse_empty(adata, genes=True)
    card = registry.get(model).card
    if card.kind == "prompt":
        raise InputError(
            "model", card.name, "a model with an embedding", "use sd.tl.predict_response(..., strategy='prompt')."
        )
    genes = _anndata.gene_ids(adata)
    _check_species(genes.names, card.species, card.name)
    _anndata.counts(adata, layer)
    if not isinstance(model, str) and (checkpoint is not None or options):
        raise InputError("model", "a loaded model", "its own checkpoint and options", "pass the name instead.")
    if card.kind == "fitted":
        if checkpoint is not None:
            raise InputError("checkpoint", str(checkpoint), f"None: {card.name} is fitted", "leave it out.")
        fitted = registry.get(model)(**{"seed": seed, **options}) if isinstance(model, str) else model
        return FittedRepresentation(fitted, layer=layer)
    loaded = registry.load(model, checkpoint, **{"seed": seed, **options}) if isinstance(model, str) else model
    return NetworkRepresentation.open(loaded, checkpoint=as_checkpoint_text(checkpoint), layer=layer, groups=context)


def _check_groups(y: np.ndarray, groups: np.ndarray | None, trust: Any, seed: int) -> None:
    """Find out before anything is embedded whether groups can be held out."""
    if not trust.held_out:
        return
    from scdrugmap.heads.crossfit import grouped_folds

    if groups is None:
        warnings.warn(
            "calibration and conformal sets split single cells, for there is neither groups= nor obs['sample']: cells of "
            "one sample on both sides make the predictor look surer than it is.",
            ScDrugMapWarning,
            stacklevel=3,
        )
    grouped_folds(y, groups, trust.n_folds, seed)


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


def _describe(obs: pd.DataFrame, y: np.ndarray, labels: np.ndarray | None, rows: np.ndarray) -> dict[str, Any]:
    """Summarise the training cells; no cell and no sample is named."""
    return {
        "n_cells": len(y),
        "n_resistant": int((y == 0).sum()),
        "n_sensitive": int((y == 1).sum()),
        "n_groups": 0 if labels is None else len(np.unique(labels[rows])),
        "columns": {c: sorted(map(str, obs[c].dropna().unique()))[:50] for c in _DESCRIBING if c in obs},
    }


def load_any(predictor: Any) -> ResponsePredictor:
    """Return a predictor that is given as such or as its folder."""
    from scdrugmap.predictor.predictor import ResponsePredictor, load_predictor

    if isinstance(predictor, ResponsePredictor):
        return predictor
    if isinstance(predictor, str | Path):
        return load_predictor(predictor)
    raise InputTypeError(
        "predictor", type(predictor).__name__, "a ResponsePredictor or its folder", "pass what sd.tl.train returned."
    )
