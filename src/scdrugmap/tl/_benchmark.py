"""``sd.tl.benchmark``: the shell over the evaluation."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scdrugmap import __version__, _anndata
from scdrugmap._device import Engine
from scdrugmap._errors import InputError, UnknownNameError
from scdrugmap._keys import KEYS, SAME_SAMPLE
from scdrugmap._logging import warn
from scdrugmap._metrics import Metrics, resolve_metrics
from scdrugmap._random import seed_of
from scdrugmap.evaluation.grid import inputs
from scdrugmap.evaluation.grid.contenders import Contender, Head
from scdrugmap.evaluation.grid.grid import make_partitions, run_grid, splits_of
from scdrugmap.evaluation.grid.work import BLOCK
from scdrugmap.evaluation.splits.cells import study_card
from scdrugmap.tl._benchmark_models import Asked

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from scdrugmap.evaluation.grid.runner import OnUnit
    from scdrugmap.evaluation.result.result import BenchmarkResult

STRATEGIES = ("frozen", "lora", "prompt")
_PUBLISHED: dict[str, Any] = {
    "split": "cell",
    "head": "published",
    "duplicates": "ignore",
    "group_context": "mark",
    "metrics": ("f1", "auroc", "accuracy", "precision", "recall"),
}
#: What a preset changes, where the caller left the default.
PRESETS: dict[str, dict[str, Any]] = {
    "published": _PUBLISHED,
    "published-code": _PUBLISHED | {"test_size": 0.2},
    "strict": {"levels": ("cell", "sample", "patient"), "baselines": inputs.BASELINES},
}
_DEFAULTS: dict[str, Any] = {
    "split": "auto", "head": "mlp", "duplicates": "merge", "group_context": "refuse", "metrics": None,
    "levels": ("cell", "sample"), "baselines": None, "test_size": None,
}  # fmt: skip


def benchmark(
    adata: AnnData | MuData,
    *,
    models: Any,
    strategy: str | Sequence[str] = "frozen",
    setting: str | Sequence[str] = "pooled",
    by: str | Sequence[str | None] | None = None,
    label_key: str = KEYS.response,
    study_key: str = KEYS.study,
    sample_key: str = KEYS.sample,
    patient_key: str = KEYS.patient,
    split: str | Sequence[str] = "auto",
    n_folds: int = 10,
    test_size: float | None = None,
    cv: Any = None,
    metrics: Metrics = None,
    levels: Sequence[str] = ("cell", "sample"),
    head: Any = "mlp",
    head_options: Mapping[str, Any] | None = None,
    baselines: Iterable[str] | None = None,
    adapt: str | Sequence[str] = "none",
    preset: str | None = None,
    duplicates: str = "merge",
    group_context: str = "refuse",
    layer: str | None = None,
    embed_options: Mapping[str, Mapping[str, Any]] | None = None,
    lora_options: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    precision: Literal["auto", "float32", "bfloat16", "float16"] | None = None,
    store: str | Path | None = None,
    n_jobs: int | None = None,
    rng: int | np.random.Generator | None = None,
    mod: str = "rna",
    progress: bool | None = None,
    on_unit: OnUnit | None = None,
) -> BenchmarkResult:
    """Compare models as predictors of drug response, on folds that do not leak.

    Labels are given per sample, so by default whole samples (``setting="pooled"``) or whole studies (``"cross"``) stand on
    one side of a split, copies of a cell stay together, and everything that is fitted sees training cells only. Trivial
    baselines stand in every table.

    Parameters
    ----------
    adata
        Cells with labels; not changed. Unlabelled cells take no part.
    models
        A name (``sd.models.list()``), a key of ``obsm``, a ``cells x features`` array, or a list of them; or a mapping from
        a name of your choice to any of those, to several keys of ``obsm`` side by side (of a MuData also as
        ``{"rna": "X_a", "prot": "X_b"}``), or to a function ``(train rows, test rows, seed) -> P(sensitive)``.
    strategy
        ``"frozen"`` (a head on the embedding), ``"lora"``, ``"prompt"``, or several. Arrays are always frozen.
    setting
        ``"pooled"`` (k folds inside each category), ``"cross"`` (train on all other studies of the category, test on
        the left-out one), or both.
    by
        Column of ``obs`` whose values are the categories, or a list of columns (``None`` in it: all cells together).
    label_key, study_key, sample_key, patient_key
        Columns of ``obs``. Labels are ``"sensitive"``/``"resistant"`` in any case. Samples (and patients) of different
        studies are different, whatever their names.
    split
        What stays whole: ``"sample"``, ``"study"``, ``"patient"`` or any column; with ``setting="cross"`` what is left out one by
        one. ``"cell"`` divides cells at random as the published protocol does: cells of one sample then stand on both
        sides, and every table says so. ``"auto"``: samples when pooled, studies across. A list asks for several.
    n_folds
        Folds when pooled; fewer where a class has fewer samples, for both sides need both classes.
    test_size
        With ``split="cell"``: one division with this share of test cells instead of folds.
    cv
        Folds of your own when pooled: a splitter of scikit-learn, whose ``groups`` are the samples (or what ``split``
        names), or a column of ``obs`` with the name of the fold that tests each cell. Folds that tear a sample apart
        are refused unless ``split="cell"``, and so are those that part copies of a cell.
    metrics
        ``None`` for all, names, or a mapping of names to ``(y, score, pred) -> float``; see
        :data:`scdrugmap.evaluation.METRICS`.
    levels
        ``"cell"``, and ``"sample"`` and ``"patient"`` for metrics of the mean score per sample or patient.
    head
        ``"mlp"`` (standardised and trained to convergence), ``"published"``, ``"logistic"``, a scikit-learn classifier,
        or a list of them.
    head_options
        Parameters of the head.
    baselines
        ``None`` for all that the data allow: ``all_sensitive`` (its F1 is 2p/(1+p)), ``majority``, ``random`` (in the training
        proportion), ``depth`` (number of counts and genes), ``hvg``, ``pca``, ``scvi`` (each with logistic regression), and
        ``sample_probe`` (how well does each representation recognise the sample?). An empty list for none.
    adapt
        How cells of a study that is not among the training cells are brought to them: ``"none"``, ``"study"`` (every
        feature standardised within each study), ``"coral"`` (the covariance of the test cells made that of the training
        cells), ``"pathways"`` (scores of gene programmes, standardised within each study, instead of the models), or a
        list of them, which are shown side by side. The labels of test cells take no part; rows say where test cells do.
    preset
        ``"published"``: random cells, copies not looked for, the published head and metrics. ``"published-code"``: the
        same with the one division in 80 and 20 % that the published code makes. ``"strict"``: all baselines
        and levels; what cannot be had is an error. Arguments that you pass win.
    duplicates
        ``"merge"``: samples or studies that share copies of a cell stay together. ``"ignore"``: do not look for copies.
    group_context
        For embeddings in which cells see each other across a split: ``"refuse"`` or ``"mark"`` every row.
    layer
        Layer of the raw counts; ``X`` if ``None``.
    embed_options
        Per model name, arguments of :func:`scdrugmap.tl.embed` (``checkpoint``, ``recipe`` ...), and of the fitted
        baselines (``{"scvi": {"max_epochs": 100}}``).
    lora_options
        As in :func:`scdrugmap.tl.train`, for ``strategy="lora"``.
    batch_size, device, precision
        As in :func:`scdrugmap.tl.embed`, for every model and head that computes with torch.
    store
        Folder of a run store. Every finished unit (one fold of one model) is kept; a call that was killed goes on there.
    n_jobs
        Processes; ``None`` takes ``joblib.parallel_config`` (also its ``"dask"`` backend) or ``sd.settings.n_jobs``.
    rng
        Seed of folds and heads; ``sd.settings.seed`` if ``None``.
    mod
        Modality of a MuData.
    progress
        Show a progress bar; by default on a terminal.
    on_unit
        Function that is called with each finished unit, the number of finished and of all units.

    Returns
    -------
    BenchmarkResult
        Table, intervals, comparisons, report. A category that cannot be evaluated is a row with the reason.

    Raises
    ------
    MissingKeyError, UnknownNameError, InputError
        On arguments that cannot be used, before anything is trained.

    Examples
    --------
    >>> import numpy as np, anndata as ad, scdrugmap as sd
    >>> rng = np.random.default_rng(0)
    >>> adata = ad.AnnData(rng.poisson(1, (80, 30)).astype("float32"))
    >>> adata.obs["sample"] = np.repeat([f"s{i}" for i in range(8)], 10)
    >>> adata.obs["response"] = np.repeat(["resistant", "sensitive"] * 4, 10)
    >>> adata.obsm["X_mine"] = rng.normal(size=(80, 4))
    >>> result = sd.tl.benchmark(adata, models="X_mine", n_folds=4, baselines=["all_sensitive"])
    >>> result.table.query("model == 'all_sensitive' and metric == 'f1'")["value"].round(3).unique().tolist()
    [0.667]
    """
    start = time.perf_counter()
    data = _anndata.reading(adata, mod=mod)
    given = {
        "split": split, "head": head, "duplicates": duplicates, "group_context": group_context, "metrics": metrics,
        "levels": levels, "baselines": baselines, "test_size": test_size,
    }  # fmt: skip
    args = _with_preset(preset, given)
    settings, splits = _names(setting), _names(args["split"])
    pairs = splits_of(settings, splits)
    columns: list[str | None] = [by] if by is None or isinstance(by, str) else list(by)
    records = resolve_metrics(args["metrics"])
    engine = Engine(device, precision, batch_size, progress, seed=seed_of(rng))
    kinds = {s for _, s in pairs}
    need = [k for k in ("sample", "study", "patient") if k in kinds]
    others = [s for s in kinds if s not in ("cell", "sample", "study", "patient")]
    own = [cv] if isinstance(cv, str) else []
    cells = inputs.read_cells(
        data, label_key=label_key, study_key=study_key, sample_key=sample_key, patient_key=patient_key,
        columns=list(dict.fromkeys([*(c for c in columns if c is not None), *others, *own])), need=need,
        duplicates=args["duplicates"], layer=layer,
    )  # fmt: skip
    _warn_unlabelled(cells.y, label_key)
    if "cell" in kinds:
        warn(f"split='cell': {SAME_SAMPLE}. Scores say how well a model knows the samples.")
    partitions = make_partitions(
        cells, pairs, columns, n_folds=n_folds, test_size=args["test_size"], seed=engine.seed, cv=cv
    )
    chosen = dict(head_options or {})
    place = None if "device" in chosen else device
    asked_heads = args["head"] if isinstance(args["head"], list | tuple) else [args["head"]]
    heads = [Head(h, chosen, place) for h in asked_heads]
    _check_heads(heads)
    trivial, counts, probe = inputs.baseline_contenders(args["baselines"], data, layer, embed_options)
    asked = Asked(
        adata, data, mod, heads, _strategies(strategy), layer, embed_options or {}, lora_options or {}, label_key,
        sample_key, engine, store,
    )  # fmt: skip
    contenders, counts = asked.contenders(models, counts)
    contenders, counts = asked.adapted(contenders, counts, _names(adapt))
    _refuse_missing(contenders, cells.y)
    contenders = [
        inputs.guard_context(c, inputs.group_column(c, data), partitions, args["group_context"]) for c in contenders
    ]
    absent = [f"{c.name}: {c.reason}" for c in trivial if c.reason]
    info = {
        "scdrugmap": __version__, "preset": preset or "", "settings": settings, "splits": sorted(kinds),
        "by": columns, "adapt": _names(adapt), "n_folds": int(n_folds), "test_size": args["test_size"],
        "cv": "" if cv is None else str(cv), "duplicates": args["duplicates"],
        "n_copies": _copies(cells.duplicates), "n_cells": int(data.n_obs), "n_labelled": int((cells.y >= 0).sum()),
        "studies": study_card(cells).to_dict("records"),
        "warnings": ([SAME_SAMPLE] if "cell" in kinds else []) + absent, "seconds_embedding": time.perf_counter() - start,
    }  # fmt: skip
    return run_grid(
        cells, [*contenders, *trivial], partitions, by=columns, metrics=records, levels=args["levels"], counts=counts,
        probe=probe, store=store, seed=engine.seed, n_jobs=n_jobs, info=info, show_progress=progress, on_unit=on_unit,
    )  # fmt: skip


def _names(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _strategies(strategy: str | Sequence[str]) -> list[str]:
    names = _names(strategy)
    for name in names:
        if name not in STRATEGIES:
            raise UnknownNameError("strategy", name, STRATEGIES)
    return names


def _check_heads(heads: Sequence[Head]) -> None:
    from scdrugmap.heads.make import make_head

    for head in heads:
        make_head(head.spec, random_state=0, **head.options)


def _with_preset(preset: str | None, given: dict[str, Any]) -> dict[str, Any]:
    if preset is None:
        return given
    if preset not in PRESETS:
        raise UnknownNameError("preset", preset, PRESETS)
    changes = PRESETS[preset]
    return {k: changes.get(k, v) if _same(v, _DEFAULTS[k]) else v for k, v in given.items()}


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and isinstance(a, str | tuple) and a == b)


def _warn_unlabelled(y: np.ndarray, label_key: str) -> None:
    missing = int((y < 0).sum())
    if missing == len(y):
        raise InputError("label_key", f"no label in obs[{label_key!r}]", "labelled cells", "pass another column.")
    if missing:
        warn(f"{missing} of {len(y)} cells have no label and take no part")


def _refuse_missing(contenders: Sequence[Contender], y: np.ndarray) -> None:
    """Refuse gaps among the numbers of a cell; a row of NaN alone is a cell without embedding."""
    rows = np.flatnonzero(y >= 0)
    for c in contenders:
        if c.X is None:
            continue
        # In parts: an embedding may be mapped from a file that is larger than the memory.
        parts = (c.X[rows[i : i + BLOCK]] for i in range(0, len(rows), BLOCK))
        bad = sum(int((~np.isfinite(X).all(axis=1) & ~np.isnan(X).all(axis=1)).sum()) for X in parts)
        if bad:
            raise InputError(
                "models", f"{c.name!r}: NaN or infinite values in {bad} of {len(rows)} labelled cells",
                "finite numbers, or a row of NaN alone for a cell without embedding", "embed again, or drop these cells.",
            )  # fmt: skip


def _copies(duplicates: np.ndarray | None) -> int | None:
    return None if duplicates is None else int(len(duplicates) - len(np.unique(duplicates)))
