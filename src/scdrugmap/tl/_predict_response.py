"""``sd.tl.predict_response``: predictions into ``obs``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scdrugmap import __version__, _anndata
from scdrugmap._errors import InputError, UnknownNameError
from scdrugmap._keys import CLASS_COLOURS, KEYS
from scdrugmap._logging import warn

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from scdrugmap.models.base import Model
    from scdrugmap.predictor.predictor import ResponsePredictor
    from scdrugmap.trust.shift import Verdict

STRATEGIES = ("frozen", "lora", "prompt")
ON_SHIFT = ("warn", "abstain", "ignore")


def predict_response(
    adata: AnnData | MuData,
    predictor: ResponsePredictor | str | Path | None = None,
    *,
    model: str | Model | None = None,
    use_rep: Any = None,
    checkpoint: str | Path | None = None,
    reference: AnnData | MuData | None = None,
    strategy: Literal["frozen", "lora", "prompt"] = "frozen",
    key_added: str = "response",
    n_shots: int = 0,
    shot_unit: Literal["cell", "sample"] = "cell",
    shot_weight: float | None = 1.0,
    adapt: Literal["none", "study", "coral", "pathways"] = "none",
    label_key: str = "response",
    sample_key: str | None = None,
    conformal: bool | float | None = None,
    ood: bool | None = None,
    abstain: float | Literal["set"] | None = None,
    on_shift: Literal["warn", "abstain", "ignore"] = "warn",
    layer: str | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    precision: Literal["auto", "float32", "bfloat16", "float16"] | None = None,
    rng: int | np.random.Generator | None = None,
    mod: str = "rna",
    copy: bool = False,
    progress: bool | None = None,
    **options: Any,
) -> AnnData | MuData | None:
    """Predict for every cell whether it is resistant or sensitive.

    Parameters
    ----------
    adata
        The cells, with raw counts or with the embeddings that the predictor was trained on.
    predictor
        A predictor or its folder; or none, and ``model`` (or ``use_rep``) with ``reference``.
    model, use_rep
        As in :func:`train`, which is called with ``reference``; for ``strategy="prompt"`` the chat model.
    checkpoint
        As in :func:`train`; with the folder of a predictor, where the checkpoint that it was trained on lies now.
    reference
        Labelled cells to train on, or to take the examples of a prompt from.
    strategy
        ``"frozen"``, ``"lora"`` or ``"prompt"``, which is what a chat model means.
    key_added
        First part of the names that are written.
    n_shots
        Few-shot: labelled cells (or samples) per class of ``adata`` itself that join the training. For
        ``strategy="prompt"`` the examples per class in a prompt.
    shot_unit
        Whether shots are cells or whole samples.
    shot_weight
        Weight of all shots together relative to all cells of ``reference``; ``None`` gives every cell the weight one.
    adapt
        As in :func:`train`; a predictor that is given has its own.
    label_key
        Column of ``obs`` with the labels of ``reference``, and of ``adata`` where shots are drawn.
    sample_key
        Column of ``obs`` with samples: writes a table of the fraction of resistant cells per sample. It also says
        what a sample is for ``shot_unit="sample"``.
    conformal
        Write prediction sets: with the coverage of the predictor (``True``) or with another one. By default they are
        written if the predictor has them.
    ood
        Write the out-of-domain flag; by default if the predictor has it.
    abstain
        Leave ``<key>_pred`` missing for unsure cells: where the likelier class is less probable than this number, or
        (``"set"``) where the prediction set does not hold exactly one class.
    on_shift
        What happens where the query as a whole is unlike the training data (``uns["<key>"]["shift"]`` says so before
        any call is made): ``"warn"`` warns, draws scores three quarters of the way to the share of sensitive cells in
        training and lets every prediction set hold both classes; ``"abstain"`` makes no call on top of that;
        ``"ignore"`` changes nothing.
    layer
        Layer of the raw counts; by default the layer that the predictor was trained on, else ``X``.
    batch_size, device, precision, progress
        As in :func:`embed`.
    rng
        Seed of training and of the draw of shots; ``sd.settings.seed`` if ``None``.
    mod
        Modality of a MuData.
    copy
        Return a modified copy.
    **options
        Further arguments of :func:`train`, or of the prompt for ``strategy="prompt"``.

    Returns
    -------
    ``None``, or the copy. Writes:

    ``obs["<key>_pred"]``
        Categorical with the categories ``resistant`` and ``sensitive``; missing for a cell without embedding, and for
        one that the predictor abstains from.
    ``obs["<key>_score"]``
        P(sensitive), float32.
    ``obs["<key>_status"]``
        For ``strategy="prompt"``: whether the cell was answered, refused or not readable.
    ``obs["<key>_set"]``
        ``"resistant"``, ``"sensitive"``, ``"resistant|sensitive"`` or ``""``.
    ``obs["<key>_ood"]``
        Whether the cell lies far from all training cells.
    ``uns["<key>_pred_colors"]``
        The colours of the two classes, which scanpy's figures take up.
    ``uns["<key>"]``
        ``params``, ``provenance``, ``shots`` (names of the cells that were used as examples), ``samples``, ``shift``
        (the verdict, ``"in domain"``, ``"shifted"`` or ``"cannot tell"``, its reason and figures; see
        :meth:`ResponsePredictor.judge`) and ``worth`` (what the predictor reached on groups that it had not seen).

    Columns of a MuData's modality are mirrored as ``<mod>:<key>_pred`` and so on.

    Raises
    ------
    InputError
        If arguments do not fit together, or the cells do not fit the predictor. Nothing is written then.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_cells=300, n_genes=200, n_studies=2, rng=0)
    >>> known = adata.obs["study"] == adata.obs["study"].unique()[0]
    >>> query = adata[~known].copy()
    >>> sd.tl.predict_response(query, model="pca", reference=adata[known].copy(), head="logistic", rng=0)
    >>> query.obs["response_pred"].cat.categories.tolist()
    ['resistant', 'sensitive']
    """
    from scdrugmap._random import seed_of
    from scdrugmap.tl._embed import check_key

    if strategy not in STRATEGIES:
        raise UnknownNameError("strategy", strategy, STRATEGIES)
    if on_shift not in ON_SHIFT:
        raise UnknownNameError("on_shift", on_shift, ON_SHIFT)
    check_key(key_added)
    if strategy == "frozen" and is_prompted(model):
        strategy = "prompt"
    if strategy == "prompt":
        refused = {
            "predictor": predictor, "use_rep": use_rep, "sample_key": sample_key, "conformal": conformal, "ood": ood,
            "abstain": abstain, "adapt": None if adapt == "none" else adapt, "batch_size": batch_size, "device": device,
            "precision": precision, "checkpoint": checkpoint,
        }  # fmt: skip
        _refuse_given(refused)
        from scdrugmap.tl._prompt_response import prompt_response

        return prompt_response(
            adata, model=model, reference=reference, key_added=key_added, n_shots=n_shots, label_key=label_key,
            layer=layer, rng=rng, mod=mod, copy=copy, progress=progress, **options,
        )  # fmt: skip
    _check_abstain(abstain)
    edit = _anndata.edit(adata, copy=copy, mod=mod)
    seed = seed_of(rng)
    main = _anndata.reading(edit.root, mod=mod)
    samples = None if sample_key is None else _anndata.obs_column(main, sample_key, "sample_key").astype(str)
    shots = np.empty(0, dtype=np.int64)
    if predictor is not None:
        given = {
            "model": model, "use_rep": use_rep, "reference": reference, "n_shots": n_shots or None,
            "adapt": None if adapt == "none" else adapt, **options,
        }  # fmt: skip
        trained = _given(predictor, checkpoint, given)
    else:
        trained, shots = _train_here(
            edit.root, main, model, use_rep, reference, strategy, n_shots, shot_unit, shot_weight, label_key, samples, seed, mod,
            {"layer": layer, "checkpoint": checkpoint, "batch_size": batch_size, "device": device, "precision": precision, "progress": progress,
             "adapt": adapt, "conformal": bool(conformal) if conformal is None else conformal, "ood": bool(ood), **options},
        )  # fmt: skip
    if (conformal or abstain == "set") and trained.conformal is None:
        raise InputError("conformal", conformal, "a predictor with prediction sets", "train with conformal=0.9.")
    if ood and trained.ood is None:
        raise InputError("ood", ood, "a predictor with an out-of-domain flag", "train with ood=True.")
    coverage = float(conformal) if conformal is not None and not isinstance(conformal, bool) else None
    engine: dict[str, Any] = {"batch_size": batch_size, "device": device, "precision": precision, "progress": progress}
    frame, verdict = trained.predict_and_judge(edit.root, mod=mod, layer=layer, coverage=coverage, **engine)
    shifted = _heed(frame, verdict, trained, on_shift)
    missing = frame["score"].isna().to_numpy()
    if missing.any():
        warn(f"{int(missing.sum())} of {len(frame)} cells have no embedding; their prediction is missing.")
    abstained = _abstained(frame, abstain)
    if shifted and on_shift == "abstain":
        abstained = frame["score"].notna().to_numpy()
    frame.loc[abstained, "pred"] = np.nan
    record = _record(trained, coverage, abstain, int(missing.sum()), int(abstained.sum()), seed, strategy)
    record |= {"shift": verdict.record(), "worth": trained.worth}
    record["params"]["on_shift"] = on_shift
    record["shots"] = edit.adata.obs_names[shots].to_numpy(dtype=str)
    if samples is not None:
        record["samples"] = _sample_table(frame["score"], samples, trained, shifted)
    if conformal is False:
        frame = frame.drop(columns="set", errors="ignore")
    if ood is False:
        frame = frame.drop(columns="ood", errors="ignore")
    suffix = {"pred": KEYS.pred, "score": KEYS.score, "set": KEYS.set, "ood": KEYS.ood}
    for column in frame:
        edit.adata.obs[key_added + suffix[str(column)]] = frame[column].array
    edit.adata.uns[key_added] = record
    edit.adata.uns[f"{key_added}{KEYS.pred}_colors"] = list(CLASS_COLOURS)
    return edit.finish([key_added + suffix[str(column)] for column in frame])


def _heed(frame: pd.DataFrame, verdict: Verdict, trained: ResponsePredictor, on_shift: str) -> bool:
    """Say what the verdict and the worth are, and take a query that is shifted out of its certainty."""
    from scdrugmap._cohort import call
    from scdrugmap._keys import CLASSES
    from scdrugmap._logging import get_logger
    from scdrugmap.trust.conformal import SET_TEXT
    from scdrugmap.trust.shift import SHIFTED, flattened
    from scdrugmap.trust.worth import statement

    get_logger().info("query: %s (%s)", verdict.verdict, verdict.reason)
    get_logger().info(statement(trained.worth))
    if trained.worth.get("below_floor"):
        warn(statement(trained.worth) + ".")
    if verdict.verdict != SHIFTED or on_shift == "ignore":
        return False
    done = "no cell is called" if on_shift == "abstain" else "scores are drawn towards the share of sensitive cells in "
    done += "" if on_shift == "abstain" else "training, and no prediction set excludes a class"
    warn(
        f"THE QUERY IS UNLIKE THE TRAINING DATA: {verdict.reason}. A call on it means nothing: {done}. "
        "on_shift='ignore' leaves everything as the head says."
    )
    n, sensitive = trained.training.get("n_cells", 0), trained.training.get("n_sensitive", 0)
    frame["score"] = flattened(frame["score"].to_numpy(), sensitive / n if n else 0.5)
    codes = np.where(frame["score"].isna(), -1, call(frame["score"], trained.threshold))
    frame["pred"] = pd.Categorical.from_codes(codes, categories=list(CLASSES))
    if "set" in frame:
        frame["set"] = np.where(frame["score"].isna(), frame["set"], SET_TEXT[True, True])
    return True


def _sample_table(score: pd.Series, samples: pd.Series, trained: ResponsePredictor, shifted: bool) -> pd.DataFrame:
    """Calls of samples, with the doubt that held-out groups of the training have taught."""
    from scdrugmap.trust.samples import SampleErrors, sample_calls

    errors = trained.errors
    if shifted:
        errors = SampleErrors(np.empty(0))  # what held in training says nothing here
    elif errors is None:
        warn(
            "no groups were held out in training: the intervals of samples are about their cells alone, not about how "
            "patients differ. Train with groups=."
        )
    return sample_calls(score, samples, threshold=trained.threshold, errors=errors)


def _given(predictor: Any, checkpoint: Any, beside: Mapping[str, Any]) -> ResponsePredictor:
    """Return the predictor that was passed; nothing that would train another one may stand beside it."""
    from scdrugmap.tl._train import load_any

    extra = [name for name, value in beside.items() if value is not None]
    if extra:
        raise InputError("predictor", f"predictor with {', '.join(extra)}", "either", "leave one of the two out.")
    return load_any(predictor, checkpoint)


def _refuse_given(arguments: Mapping[str, Any]) -> None:
    """Refuse what a chat model cannot be told."""
    for name, value in arguments.items():
        if value is not None:
            raise InputError(name, value, "None with strategy='prompt'", "leave it out.")


def is_prompted(model: Any) -> bool:
    """Whether this is the name of a chat model that the registry knows."""
    from scdrugmap.models import registry

    try:
        return isinstance(model, str) and registry.get(model).card.kind == "prompt"
    except UnknownNameError:
        return False


def _train_here(
    root: Any,
    adata: AnnData,
    model: Any,
    use_rep: Any,
    reference: Any,
    strategy: Any,
    n_shots: int,
    shot_unit: Any,
    shot_weight: float | None,
    label_key: str,
    samples: pd.Series | None,
    seed: int,
    mod: str,
    options: dict[str, Any],
) -> tuple[ResponsePredictor, np.ndarray]:
    """Train on the reference, on shots of the query, or on both; also returns the rows of the shots."""
    from scdrugmap.tl._train import train

    if reference is None and not n_shots:
        raise InputError(
            "predictor", None, "a predictor, a folder, or model= with reference=", "pass sd.tl.train(...)'s result."
        )
    if reference is not None:
        _anndata.refuse_empty(_anndata.reading(reference, mod=mod, argument="reference"), "reference")
    if n_shots < 0:
        raise InputError("n_shots", n_shots, "0 or more", "pass 4.")
    if not n_shots:
        arguments = {"strategy": strategy, "label_key": label_key, "rng": seed, "mod": mod, **options}
        return train(reference, model, use_rep=use_rep, **arguments), np.empty(0, dtype=np.int64)
    from scdrugmap._cohort import encode
    from scdrugmap.predictor.few_shot import draw_shots

    if samples is None and KEYS.sample in adata.obs:
        samples = adata.obs[KEYS.sample].astype(str)
    y = encode(_anndata.obs_column(adata, label_key, "label_key"))
    rows = draw_shots(y, n_shots, samples=None if samples is None else samples.to_numpy(), unit=shot_unit, rng=seed)
    if shot_weight is not None and not shot_weight > 0:
        raise InputError("shot_weight", shot_weight, "None, or more than 0", "pass 1.")
    training = _with_shots(reference, root, adata, rows, mod, options.get("groups"))
    if reference is not None and shot_weight is not None and strategy != "lora":
        obs = _anndata.resolve(training, mod=mod).obs
        shot = (obs["_origin"] == "query").to_numpy()
        labelled = (encode(obs[label_key]) >= 0).sum() - shot.sum()
        obs["_weight"] = np.where(shot, shot_weight * labelled / shot.sum(), 1.0)
        options = options | {"weight_key": "_weight"}
    arguments = {"strategy": strategy, "label_key": label_key, "rng": seed, "mod": mod, **options}
    return train(training, model, use_rep=use_rep, **arguments), rows


def _with_shots(
    reference: Any, root: Any, adata: AnnData, rows: np.ndarray, mod: str, groups: str | None
) -> AnnData | MuData:
    """Put the shots behind the reference, modality by modality where both have several."""
    main = None if reference is None else _anndata.reading(reference, mod=mod, argument="reference")
    joined = _joined(main, adata[rows], groups)
    if not _anndata.is_mudata(root) or not (reference is None or _anndata.is_mudata(reference)):
        return joined
    from mudata import MuData

    parts = {mod: joined}
    for name in root.mod:
        if name != mod and (reference is None or name in reference.mod):
            mine = root.mod[name]
            shots = mine[mine.obs_names.isin(adata.obs_names[rows])]
            parts[name] = _joined(None if reference is None else reference.mod[name], shots, None)
    return MuData(parts)


def _joined(reference: AnnData | None, shots: AnnData, groups: str | None) -> AnnData:
    """Concatenate; equal names of groups in the two are different groups."""
    import anndata as ad

    shots = shots.to_memory() if shots.isbacked else shots.copy()
    if reference is None:
        return shots
    # genes that one of the two lacks are not expressed there, as they are for a model that embeds it alone
    joined = ad.concat(
        {"reference": reference, "query": shots}, join="outer", merge="first", uns_merge="same", fill_value=0,
        label="_origin", index_unique="-",
    )  # fmt: skip
    column = groups or (KEYS.sample if KEYS.sample in joined.obs else None)
    if column is not None and column in joined.obs:
        joined.obs[column] = joined.obs["_origin"].astype(str) + ":" + joined.obs[column].astype(str)
    return joined


def _check_abstain(abstain: Any) -> None:
    if abstain is None or abstain == "set":
        return
    if not isinstance(abstain, int | float) or not 0.5 <= abstain <= 1:
        raise InputError("abstain", abstain, "None, 'set' or a probability from 0.5 to 1", "pass abstain=0.8.")


def _abstained(frame: pd.DataFrame, abstain: Any) -> np.ndarray:
    """Cells with a score on which no call is made."""
    known = frame["score"].notna().to_numpy()
    if abstain is None:
        return np.zeros(len(frame), dtype=bool)
    if abstain == "set":
        return known & ~frame["set"].isin(["resistant", "sensitive"]).to_numpy()
    score = frame["score"].to_numpy()
    return known & (np.maximum(score, 1 - score) < abstain)


def _record(
    trained: ResponsePredictor,
    coverage: float | None,
    abstain: Any,
    missing: int,
    abstained: int,
    seed: int,
    strategy: str,
) -> dict[str, Any]:
    """What ``uns`` says about the predictions, in types that an h5ad file holds."""
    training: Mapping[str, Any] = trained.training
    provenance: dict[str, Any] = {
        "scdrugmap": __version__,
        "representation": trained.representation.label,
        "head": str(training.get("head", type(trained.head).__name__)),
        "trained_on_cells": int(training.get("n_cells", 0)),
        "calibration": trained.calibration.method if trained.calibration else "",
        "cells_without_embedding": missing,
        "cells_abstained": abstained,
    }
    digests = getattr(trained.representation, "digests", None)
    if digests:
        provenance["checkpoint_sha256"] = dict(digests)
    params: dict[str, Any] = {"strategy": str(training.get("strategy", strategy)), "seed": seed}
    params |= {"threshold": trained.threshold, "abstain": "" if abstain is None else str(abstain)}
    if trained.conformal is not None:
        params["coverage"] = trained.conformal.coverage if coverage is None else coverage
    return {"params": params, "provenance": provenance}
