"""``sd.tl.train``: from labelled cells to a predictor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scdrugmap import __version__, _anndata
from scdrugmap._device import Engine
from scdrugmap._errors import InputError, InputTypeError, UnknownNameError
from scdrugmap._keys import KEYS
from scdrugmap._logging import warn

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from scdrugmap._cohort import Cohort
    from scdrugmap.models.base import Model
    from scdrugmap.predictor.predictor import ResponsePredictor

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
    groups: str | Literal[False] | None = None,
    head: Any = "mlp",
    head_options: Mapping[str, Any] | None = None,
    lora_options: Mapping[str, Any] | None = None,
    adapt: Literal["none", "study", "coral", "pathways"] = "none",
    study_key: str = "study",
    weight_key: str | None = None,
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
        Foundation model or baseline, by name or loaded. A baseline is fitted on the labelled cells. An embedding of
        these very cells that lies in ``obsm`` or in the cache is used instead of embedding again.
    use_rep
        Instead of ``model``: a key of ``obsm``, several keys, or a mapping of MuData modality to key; several
        representations are concatenated.
    strategy
        ``"frozen"``: the model stays as it is. ``"lora"``: low-rank adapters in the model are trained with the head.
    label_key
        Column of ``obs`` with ``resistant`` or ``sensitive``; cells without a label are not used.
    groups
        Column of ``obs`` (sample, patient ...) whose cells stay together in every inner split; by default ``sample``
        where there is such a column. ``False`` splits single cells.
    head
        ``"mlp"`` (standardised, trained to convergence), ``"published"`` (the published head), ``"logistic"``, or a
        scikit-learn classifier with ``predict_proba``.
    head_options
        Parameters of the head, for example ``{"epochs": 20}``.
    lora_options
        Fields of :class:`scdrugmap.response.LoRAOptions`: rank, epochs, learning rate, checkpoint folder ...
    adapt
        How cells of a new study are brought to the training cells, without their labels: ``"study"`` (every feature
        standardised within each study), ``"coral"`` (their covariance made that of the training cells), ``"pathways"``
        (scores of gene programmes, standardised within each study, instead of ``model`` or ``use_rep``) or ``"none"``.
        The predictor then looks at all cells of a query together: it needs ten or more of each study.
    study_key
        Column of ``obs`` with the study, for ``adapt``; without it all cells are one study.
    weight_key
        Column of ``obs`` with the weight of each cell in training.
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
        Column of ``obs`` for models whose cells see each other: cells with one label form one group. For the baseline
        ``scvi``: the batch, as in :func:`embed`.
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
    The predictor, with ``.predict(adata)``, ``.save(folder)``, ``.card`` and ``.worth``: what it reached on groups
    that it had not seen.

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
    instead, and takes no part in the training. The worth rests on the same scores, and is measured wherever two groups
    of each class or more can be held out. Calibration that is no better there than a constant is left out, with a
    warning; a predictor that is no better than none is returned with a warning.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_cells=200, n_genes=200, n_studies=1, rng=0)
    >>> predictor = sd.tl.train(adata, model="pca", groups="sample", rng=0)
    >>> predictor.predict(adata)["score"].between(0, 1).all()
    np.True_
    """
    from scdrugmap._cohort import both_classes, read_cohort
    from scdrugmap._random import seed_of
    from scdrugmap.heads.adapt import check_adapt
    from scdrugmap.heads.make import head_on, make_head
    from scdrugmap.predictor.adapted import fit_adapted
    from scdrugmap.predictor.fitting import Plan, fit_frozen
    from scdrugmap.predictor.predictor import ResponsePredictor
    from scdrugmap.predictor.training import Trust

    check_adapt(adapt)
    if adapt != "none" and strategy == "lora":
        raise InputError("adapt", adapt, "'none' with strategy='lora'", "pass strategy='frozen'.")
    if adapt == "pathways":
        model, use_rep, checkpoint, model_options, adapt = "pathways", None, None, {}, "study"
    main = _anndata.reading(adata, mod=mod)
    _anndata.refuse_empty(main)
    _check_arguments(model, use_rep, strategy, head, checkpoint, lora_options, model_options)
    engine = Engine(device, precision, batch_size, progress, seed=seed_of(rng))
    if conformal_by is not None:
        _anndata.obs_column(main, conformal_by, "conformal_by")
        if not conformal:
            raise InputError("conformal_by", conformal_by, "None without conformal sets", "pass conformal=0.9.")
    columns = [key for key in (conformal_by, weight_key) if key is not None]
    if weight_key is not None:
        _check_weights(main, weight_key, strategy)
    keys: dict[str, Any] = {} if adapt == "none" else {"study_key": study_key}
    cohort = read_cohort(main, label_key=label_key, patient_key=None, columns=columns, groups=groups, **keys)
    both_classes(cohort.y)
    trust = Trust(calibrate, (0.9 if conformal is True else float(conformal)) if conformal else None, ood, n_folds)
    _check_groups(cohort.take(cohort.labelled), trust, engine.seed)
    made = make_head(head, random_state=engine.seed, **dict(head_options or {}))
    made = made if getattr(made, "device", None) else head_on(made, device)
    plan = Plan(
        made, trust, engine, model, use_rep, checkpoint,
        model_options, layer, context, mod, conformal_by, lora_options, adapt, weight_key,
    )  # fmt: skip
    fitted = fit_adapted(main, cohort, plan) if strategy == "lora" else fit_frozen(adata, cohort, plan)
    doubt = fitted.trained.doubt
    training: dict[str, Any] = {
        "scdrugmap": __version__, "strategy": strategy, "head": head if isinstance(head, str) else type(head).__name__,
        "seed": engine.seed, "label_key": label_key, "groups": cohort.groups_key,
        "n_unlabelled": int((cohort.y < 0).sum()), **_describe(main.obs.iloc[fitted.rows], fitted.cohort),
        **fitted.trained.summary, "n_unusable": len(cohort.labelled) - len(fitted.rows),
    }  # fmt: skip
    return ResponsePredictor(
        fitted.trained.head,
        fitted.representation,
        calibration=doubt.calibration,
        conformal=doubt.conformal,
        ood=doubt.ood,
        errors=doubt.errors,
        shift=fitted.shift,
        conformal_by=conformal_by,
        training=training | ({} if adapt == "none" else {"adapt": adapt, "study_key": study_key}),
        adaptation=fitted.adaptation,
    )


def _check_arguments(
    model: Any, use_rep: Any, strategy: str, head: Any, checkpoint: Any, lora_options: Any, model_options: Any
) -> None:
    """Refuse arguments that do not fit together."""
    if strategy not in STRATEGIES:
        raise UnknownNameError("strategy", strategy, STRATEGIES, "Prompted models are not trained.")
    if (model is None) == (use_rep is None):
        raise InputError(
            "model or use_rep", (model, use_rep), "one of the two", "pass model='scGPT' or use_rep='X_scgpt'."
        )
    if use_rep is not None and (strategy == "lora" or checkpoint is not None or model_options):
        extra = "strategy='lora'" if strategy == "lora" else ", ".join([*model_options] or ["checkpoint"])
        raise InputError("use_rep", f"use_rep with {extra}", "model= for that", "pass model=<name> instead of use_rep.")
    if strategy == "lora" and head not in ("mlp", "published"):
        raise InputError("head", head, "'mlp' or 'published': adapters are trained through the head", "leave head out.")
    if strategy != "lora" and lora_options:
        raise InputError("lora_options", dict(lora_options), "None", "pass strategy='lora'.")


def _check_weights(main: AnnData, key: str, strategy: str) -> None:
    """Refuse weights that are no numbers of 0 or more, and those that would be forgotten."""
    values = pd.to_numeric(_anndata.obs_column(main, key, "weight_key"), errors="coerce").to_numpy(dtype=float)
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise InputError("weight_key", f"obs[{key!r}]", "finite numbers of 0 or more", "fill or correct the column.")
    if strategy == "lora":
        raise InputError("weight_key", key, "None with strategy='lora'", "leave it out.")


def _check_groups(cohort: Cohort, trust: Any, seed: int) -> None:
    """Find out before anything is embedded whether groups can be held out."""
    if not trust.held_out:
        return
    from scdrugmap.heads.crossfit import grouped_folds

    if cohort.groups is None:
        warn(
            "calibration and conformal sets split single cells, for there is neither groups= nor obs['sample']: cells of "
            "one sample on both sides make the predictor look surer than it is."
        )
    grouped_folds(cohort.y, cohort.groups, trust.n_folds, seed)


def _describe(obs: pd.DataFrame, cohort: Cohort) -> dict[str, Any]:
    """Summarise the training cells; no cell and no sample is named."""
    from scdrugmap.predictor.origin import LISTED

    return {
        "n_cells": len(cohort.y),
        "n_resistant": int((cohort.y == 0).sum()),
        "n_sensitive": int((cohort.y == 1).sum()),
        "n_groups": 0 if cohort.groups is None else len(np.unique(cohort.groups)),
        "columns": {c: sorted(map(str, obs[c].dropna().unique()))[:LISTED] for c in _DESCRIBING if c in obs},
    }


def load_any(predictor: Any, checkpoint: str | Path | None = None) -> ResponsePredictor:
    """Return a predictor that is given as such or as its folder, with its checkpoint at another place if asked for."""
    from scdrugmap.predictor.predictor import ResponsePredictor, load_predictor

    if isinstance(predictor, ResponsePredictor):
        if checkpoint is not None:
            fix = "pass the folder of the predictor, or load_predictor(path, checkpoint=...)."
            raise InputError("checkpoint", str(checkpoint), "None with a predictor that is loaded already", fix)
        return predictor
    if isinstance(predictor, str | Path):
        return load_predictor(predictor, checkpoint=checkpoint)
    raise InputTypeError(
        "predictor", type(predictor).__name__, "a ResponsePredictor or its folder", "pass what sd.tl.train returned."
    )
