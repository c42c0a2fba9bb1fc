"""``sd.tl.few_shot_curve``: how much do a few labels of the target study help?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scdrugmap import _anndata
from scdrugmap._errors import InputError
from scdrugmap._keys import CLASSES

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from scdrugmap.models.base import Model


def few_shot_curve(
    adata: AnnData | MuData,
    model: str | Model | None = None,
    *,
    target: str,
    use_rep: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
    shots: Sequence[int] = (0, 1, 2, 4, 8, 16),
    unit: Literal["cell", "sample"] = "cell",
    n_repeats: int = 5,
    label_key: str = "response",
    study_key: str = "study",
    sample_key: str = "sample",
    head: Any = "mlp",
    head_options: Mapping[str, Any] | None = None,
    shot_weight: float | None = 1.0,
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
) -> pd.DataFrame:
    """Score heads that were trained on other studies and on a growing number of labels of the target study.

    Within a repeat, more shots contain the fewer, and all are judged on the same cells: those of the target that no
    number of shots uses. Zero shots is transfer from the other studies alone.

    Parameters
    ----------
    adata
        Labelled cells of the target and, where there are any, of other studies. It is not changed.
    model, use_rep, head, head_options, checkpoint, layer, context
        As in :func:`train`; a baseline is fitted on the other studies (on the target where there are none).
    target
        Value of ``study_key`` that is the target.
    shots
        Numbers of labelled cells, or samples, per class.
    unit
        Whether shots are cells or whole samples. Labels are mostly given per sample: one labelled cell of a sample
        tells a lot about the others, which the column ``shared_samples`` reports.
    n_repeats
        Draws.
    label_key, study_key, sample_key
        Columns of ``obs``.
    shot_weight
        Weight of all shots together relative to all other training cells, which is 1 by default, so that few shots are
        not drowned by many cells of other studies; ``None`` gives every cell the weight one.
    batch_size, device, precision, progress
        As in :func:`embed`.
    rng
        Seed of draws and heads.
    mod
        Modality of a MuData.
    **model_options
        ``recipe`` and the options of the model.

    Returns
    -------
    Tidy table, one row per number of shots, repeat and metric: ``n_shots``, ``unit``, ``repeat``, ``metric`` (``f1``,
    ``auroc``, ``auprc``, ``balanced_accuracy``; positive class sensitive), ``value``, ``n_train``, ``n_test``,
    ``shared_samples`` (share of test cells whose sample also gave shots) and ``reason`` (why a value is undefined).

    Raises
    ------
    InputError
        If the target is not there or has too few units for the shots, or zero shots are asked for without any other
        study.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=2, rng=0)
    >>> target = adata.obs["study"].unique()[0]
    >>> table = sd.tl.few_shot_curve(adata, "pca", target=target, shots=[0, 2], n_repeats=1, head="logistic", rng=0)
    >>> table["n_shots"].unique().tolist()
    [0, 2]
    """
    from scdrugmap._cohort import both_classes, read_cohort
    from scdrugmap._device import Engine
    from scdrugmap._random import seed_of
    from scdrugmap.heads.fit import fit_folds
    from scdrugmap.heads.make import make_head
    from scdrugmap.predictor.few_shot import shot_order

    main = _anndata.reading(adata, mod=mod)
    _anndata.refuse_empty(main)
    if (model is None) == (use_rep is None):
        raise InputError("model or use_rep", (model, use_rep), "one of the two", "pass model='scGPT'.")
    if not isinstance(shots, Sequence | np.ndarray) or not len(shots) or min(shots) < 0 or n_repeats < 1:
        raise InputError("shots", shots, "numbers of 0 or more, and a repeat", "pass shots=(0, 1, 2, 4).")
    seed = seed_of(rng)
    need = ("study", "sample") if unit == "sample" else ("study",)
    cohort = read_cohort(
        main, label_key=label_key, study_key=study_key, sample_key=sample_key, patient_key=None, need=need
    )
    y, study = cohort.y, cohort.study
    both_classes(y)
    samples = cohort.sample if unit == "sample" or sample_key in main.obs else None
    at_target = (study == str(target)) & (y >= 0)
    source = np.flatnonzero((study != str(target)) & (y >= 0))
    if not at_target.any():
        known = ", ".join(map(repr, np.unique(study)[:10]))
        raise InputError("target", target, f"a study with labelled cells ({known})", "pass one of them.")
    if 0 in shots and len(np.unique(y[source])) < 2:
        raise InputError("shots", 0, "1 or more: the other studies hold no cells of both classes", "leave 0 out.")
    plans = []
    for repeat in range(n_repeats):
        order = shot_order(np.where(at_target, y, -1), samples, unit, np.random.default_rng([seed, repeat]))
        plans += _plan(order, sorted(set(shots)), repeat, at_target, unit)
    engine = Engine(device, precision, batch_size, progress, seed=seed)
    fit_rows = source if len(source) else np.flatnonzero(at_target)
    X = _features(
        adata, main, model, use_rep, fit_rows, engine, mod, checkpoint, layer, context, model_options, sample_key
    )
    usable = ~np.isnan(X).any(axis=1)
    trains, weights = [], []
    for _, _, drawn, _ in plans:
        rows = np.concatenate([source, drawn])
        weight = np.ones(len(y))
        if shot_weight is not None and len(drawn) and len(source):
            weight[drawn] = shot_weight * len(source) / len(drawn)
        trains.append(rows[usable[rows]])
        weights.append(weight)
    made = make_head(head, random_state=seed, **dict(head_options or {}))
    heads = fit_folds(made, np.nan_to_num(X), y, trains, samples, None if shot_weight is None else weights)
    table = []
    for (n, repeat, drawn, test), rows, fitted in zip(plans, trains, heads, strict=True):
        judged = test[usable[test]]
        shared = 0.0 if samples is None else float(np.isin(samples[judged], samples[drawn]).mean())
        for metric, (value, reason) in _scores(fitted, X[judged], y[judged]).items():
            table.append((n, unit, repeat, metric, value, len(rows), len(judged), shared, reason))
    columns = ["n_shots", "unit", "repeat", "metric", "value", "n_train", "n_test", "shared_samples", "reason"]
    return pd.DataFrame(table, columns=columns)


def _plan(
    order: tuple[list[np.ndarray], list[np.ndarray]], shots: list[int], repeat: int, at_target: np.ndarray, unit: str
) -> list[tuple[int, int, np.ndarray, np.ndarray]]:
    """Rows of the shots for each number of them, and the rows that all are judged on."""
    most = max(shots)
    for name, units in zip(CLASSES, order, strict=True):
        if len(units) <= most:
            raise InputError(
                "shots",
                most,
                f"fewer than {len(units)}, the {name} {unit}s of the target, so that some are left to judge on",
                "pass smaller numbers.",
            )
    drawn = [np.concatenate([np.empty(0, np.int64), *(r for u in order for r in u[:n])]) for n in shots]
    test = np.setdiff1d(np.flatnonzero(at_target), drawn[-1])
    return [(n, repeat, rows, test) for n, rows in zip(shots, drawn, strict=True)]


def _features(
    data: Any,
    main: AnnData,
    model: Any,
    use_rep: Any,
    fit_rows: np.ndarray,
    engine: Any,
    mod: str,
    checkpoint: Any,
    layer: str | None,
    context: str | None,
    options: dict[str, Any],
    sample_key: str,
) -> np.ndarray:
    """Features of all cells; a baseline is fitted on ``fit_rows``."""
    from scdrugmap.predictor.fitting import Refit
    from scdrugmap.predictor.representation import FittedRepresentation, ObsmRepresentation, open_representation

    if use_rep is not None:
        return ObsmRepresentation.open(data, use_rep, mod).features(data, mod, engine)
    representation = open_representation(
        main, model, engine, checkpoint=checkpoint, layer=layer, context=context, options=options
    )
    if isinstance(representation, FittedRepresentation):
        return Refit(main, representation, context=context, sample_key=sample_key)(fit_rows)
    return representation.features(main, mod, engine)


def _scores(head: Any, X: np.ndarray, y: np.ndarray) -> dict[str, tuple[float, str]]:
    """Value and, where it is undefined, the reason, per metric of one head on the test cells."""
    from scdrugmap._cohort import call
    from scdrugmap._metrics import evaluate

    p = head.predict_proba(X)[:, 1]
    return evaluate(y, p, call(p), ["f1", "auroc", "auprc", "balanced_accuracy"])
