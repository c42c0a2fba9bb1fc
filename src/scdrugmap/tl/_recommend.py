"""``sd.tl.recommend``: what each model can do with these cells on this machine, and whether one of them is better."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdrugmap import _anndata
from scdrugmap._device import Engine
from scdrugmap._errors import InputError, ScDrugMapError
from scdrugmap._keys import KEYS

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from scdrugmap.models.card import ModelCard

#: Representations that every model is held against.
REFERENCES = ("pca", "hvg")
#: Cells that the labelled probe looks at, at most.
PROBE_CELLS = 2000


@dataclass(frozen=True, eq=False)
class Recommendation:
    """What :func:`scdrugmap.tl.recommend` returns.

    Parameters
    ----------
    table
        One row per model.
    sentence
        What follows from it.
    winner
        The model whose interval lies above all others; ``None`` where intervals overlap or nothing was compared.
    """

    table: pd.DataFrame = field(repr=False)
    sentence: str
    winner: str | None = None

    def __str__(self) -> str:
        return f"{self.table.to_string(index=False)}\n\n{self.sentence}"


def recommend(
    adata: AnnData | MuData,
    models: str | Sequence[str] = "all",
    *,
    label_key: str = KEYS.response,
    study_key: str = KEYS.study,
    sample_key: str = KEYS.sample,
    commercial: bool = False,
    checkpoints: Mapping[str, str | PathLike[str]] | None = None,
    seconds: float = 2.0,
    probe: bool = True,
    n_cells: int = PROBE_CELLS,
    metric: str = "auroc",
    layer: str | None = None,
    device: str | None = None,
    precision: Any = None,
    rng: int | np.random.Generator | None = None,
    mod: str = "rna",
) -> Recommendation:
    """Say what each model can do with these cells on this machine, and name the best one only where it is one.

    Parameters
    ----------
    adata
        Raw counts, with labels or without; not changed. Nothing is downloaded.
    models
        Names, or ``"all"`` foundation models.
    label_key, study_key, sample_key
        Columns of ``obs``. Without samples and labels there is no probe.
    commercial
        Leave models out of the choice whose weights may not, or may not clearly, be used commercially.
    checkpoints
        Checkpoint by name of the model, where it is not in the cache.
    seconds
        Time that the speed of a model is measured for, after it was loaded; 0 measures none.
    probe
        With labels: hold a logistic head on each model's embedding against the baselines ``pca`` and ``hvg``, whole samples
        left out. A model takes part if its checkpoint is on this machine or its embedding in ``obsm``.
    n_cells
        Most cells of the probe.
    metric
        Metric of the probe.
    layer, device, precision, mod
        As in :func:`scdrugmap.tl.embed`.
    rng
        Seed of the choice of cells and of the folds.

    Returns
    -------
    Recommendation
        ``table``: species, coverage of the vocabulary, licence, parameters, memory and hours for all cells, the scores
        that the paper reports across studies (as reported), and the probe with its 95 % interval over samples; ``sentence``;
        ``winner``.

    Raises
    ------
    UnknownNameError
        For an unknown model.
    InputError
        For no cells, or a number out of range.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> advice = sd.tl.recommend(adata, ["scGPT"], seconds=0, rng=0)
    >>> advice.table["model"].tolist()
    ['scGPT', 'pca', 'hvg']
    """
    from scdrugmap._random import seed_of
    from scdrugmap.models import registry
    from scdrugmap.pp import gene_coverage

    cells = _anndata.resolve(adata, mod=mod)
    _anndata.refuse_empty(cells, genes=True)
    if seconds < 0 or n_cells < 1:
        raise InputError(
            "seconds or n_cells", (seconds, n_cells), "0 s or more, and one cell or more", "use 2 and 2000."
        )
    every = [c for c in map(registry.info, registry.keys()) if c.kind == "network"]
    names = [models] if isinstance(models, str) else list(models)
    cards = every if models == "all" else [registry.info(n) for n in names]
    cards = [c for c in cards if c.name not in REFERENCES]
    seed, engine = seed_of(rng), Engine(device, precision, progress=False)
    networks = [c.name for c in cards if c.kind == "network"]
    folders = dict(checkpoints or {})
    genes = gene_coverage(adata, networks, checkpoints=folders, layer=layer, mod=mod) if networks else pd.DataFrame()
    facts = [_facts(card, cells, genes) for card in [*cards, *map(registry.info, REFERENCES)]]
    for row, card in zip(facts, cards, strict=False):
        row |= _cost(card, folders.get(card.name), cells, layer, engine, seconds, seed)
        row["left_out"] = _unfit(card, row, commercial)
    table = pd.DataFrame(facts).astype({"n_parameters": "Int64"})
    scores, why = pd.DataFrame(), "the probe was not asked for"
    if probe:
        keys = {"label_key": label_key, "study_key": study_key, "sample_key": sample_key}
        scores, why = _probe(cells, cards, table, folders, keys, n_cells, metric, layer, engine, seed)
    table = table.merge(scores, on="model", how="left") if len(scores) else table
    sentence, winner = verdict(table, metric, why)
    return Recommendation(table, sentence, winner)


def _facts(card: ModelCard, cells: AnnData, genes: pd.DataFrame) -> dict[str, Any]:
    """What is known before anything runs."""
    from scdrugmap.genes import recognise

    row: dict[str, Any] = {"model": card.name, "kind": card.kind, "n_cells": cells.n_obs}
    found = genes[genes["model"] == card.name] if len(genes) else genes
    first = found.iloc[0] if len(found) else None
    seen = recognise(_anndata.gene_ids(cells).names)
    species = seen.species if seen.species_share > 0.5 else "unknown"
    return row | {
        "species": species,
        "species_fits": card.kind == "fitted" or "any" in card.species or species in ("unknown", *card.species),
        "of_vocabulary": np.nan if first is None else first["of_vocabulary"],
        "of_counts": np.nan if first is None else first["of_counts"],
        "n_parameters": card.n_parameters,
        "memory_gb": np.nan if card.n_parameters is None else card.n_parameters * 4 / 1e9,
        "cells_per_second": np.nan,
        "hours": np.nan,
        "licence": card.weights_licence,
        "commercial": {True: "yes", False: "no", None: "not said"}[card.commercial],
        "published_cross": _reported(card.name),
        "left_out": "",
        "note": "" if first is None else str(first["note"]),
    }


def _reported(name: str) -> str:
    """What the paper reports across data sets, with the rank among the models that it gives numbers for."""
    from scdrugmap.datasets import published_scores

    table = published_scores("3").query("strategy == 'frozen'").copy()
    groups = table.groupby(["by", "category"])["value"]
    table["rank"], table["of"] = groups.rank(ascending=False).astype(int), groups.transform("size")
    mine = table[table["model"] == name]
    return "; ".join(f"{r.category} {r.value:.3f} (rank {r.rank} of {r.of} reported)" for r in mine.itertuples())


def _cost(
    card: ModelCard, checkpoint: Any, cells: AnnData, layer: str | None, engine: Engine, seconds: float, seed: int
) -> dict[str, Any]:
    """Cells per second within a time limit, on the official size; random weights are as fast as trained ones."""
    import psutil

    from scdrugmap.models import registry

    if card.kind != "network" or seconds == 0:
        return {}
    room = psutil.virtual_memory().available
    need = (card.n_parameters or 0) * 4 * 1.5
    if need > room:
        return {"note": f"not measured: needs {need / 1e9:.1f} GB, {room / 1e9:.1f} GB are free"}
    genes = _anndata.gene_ids(cells)
    try:
        folder = checkpoint or _on_this_machine(card)
        cls: Any = registry.get(card.name)
        model = registry.load(card.name, folder) if folder else cls.random(genes, size="official")
        speed = timed(model, cells, layer, genes, engine, seconds, seed)
    except (ScDrugMapError, MemoryError, RuntimeError) as error:
        return {"note": f"not measured: {error}"}
    # Random weights know the genes of these cells alone, where a checkpoint has a table of all.
    parameters = card.n_parameters or sum(p.numel() for p in model.network.parameters())
    return {
        "n_parameters": parameters, "memory_gb": parameters * 4 / 1e9, "cells_per_second": speed,
        "hours": cells.n_obs / speed / 3600,
    }  # fmt: skip


def timed(
    model: Any, cells: AnnData, layer: str | None, genes: Any, engine: Engine, seconds: float, seed: int
) -> float:
    """Embed ever more cells, drawn at random, until the time is over; returns cells per second of the last round.

    Parameters
    ----------
    model, engine
        What runs, and where.
    cells, layer, genes
        Counts and their genes.
    seconds
        Limit; the first cell is embedded before the clock starts.
    seed
        Of the draw.
    """
    from scdrugmap.embedding.embed import embed_counts
    from scdrugmap.embedding.source import CountSource

    source = CountSource(_anndata.counts(cells, layer))
    order = np.random.default_rng(seed).permutation(cells.n_obs)
    embed_counts(model, CountSource(source[order[:1]]), genes, engine)
    start, n, speed = time.perf_counter(), 1, 0.0
    while True:
        begin = time.perf_counter()
        rows = np.sort(order[:n])
        embed_counts(model, CountSource(source[rows]), genes, engine)
        speed = len(rows) / (time.perf_counter() - begin)
        spent = time.perf_counter() - start
        if spent + 2 * n / speed > seconds or n >= cells.n_obs:
            return speed
        n = min(2 * n, cells.n_obs)


def _on_this_machine(card: ModelCard) -> Any:
    from scdrugmap import download

    return next((w for w in (download.where("checkpoints", v) for v in card.checkpoints[:1]) if w), None)


def _unfit(card: ModelCard, row: dict[str, Any], commercial: bool) -> str:
    """Why a model is no choice at all; empty if it is one."""
    reasons = []
    if commercial and card.commercial is not True:
        reasons.append(f"commercial use of its weights: {row['commercial']}")
    if not row["species_fits"]:
        reasons.append(f"made for {', '.join(card.species)}, not for {row['species']}")
    if row["of_vocabulary"] == 0:
        reasons.append("none of the genes is in its vocabulary")
    return "; ".join(reasons)


def _probe(
    cells: AnnData, cards: Sequence[ModelCard], table: pd.DataFrame, folders: Mapping[str, Any], keys: dict[str, str],
    n_cells: int, metric: str, layer: str | None, engine: Engine, seed: int,
) -> tuple[pd.DataFrame, str]:  # fmt: skip
    """Score a logistic head per representation with whole samples left out; or say why that cannot be done."""
    from scdrugmap._cohort import read_cohort
    from scdrugmap.tl._benchmark import benchmark

    for name in ("label_key", "sample_key"):
        if keys[name] not in cells.obs:
            return pd.DataFrame(), f"there is no obs[{keys[name]!r}]"
    cohort = read_cohort(cells, **keys, patient_key=None)
    rows = drawn(cohort.y, cohort.sample_codes, n_cells, seed)
    part = cells[rows].to_memory() if cells.isbacked else cells[rows].copy()
    models: dict[str, Any] = {}
    options: dict[str, Any] = {}
    unfit = set(table.loc[table["left_out"] != "", "model"])
    for card in cards:
        folder = folders.get(card.name) or (_on_this_machine(card) if card.kind == "network" else None)
        if card.name in unfit or card.kind == "prompt":
            continue
        if KEYS.embedding(card.key) in part.obsm:
            models[card.name] = KEYS.embedding(card.key)
        elif folder is not None or card.kind == "fitted":
            models[card.name] = card.name
            options[card.name] = {"checkpoint": folder, "device": engine.device} if folder is not None else {}
    models |= {name: name for name in REFERENCES}
    try:
        result = benchmark(
            part, models=models, head="logistic", n_folds=5, baselines=["all_sensitive"], layer=layer, rng=seed,
            embed_options=options, metrics=[metric], levels=("cell",), progress=False,
            label_key=keys["label_key"], study_key=keys["study_key"], sample_key=keys["sample_key"],
        )  # fmt: skip
    except InputError as error:
        return pd.DataFrame(), f"these labels and samples allow no probe ({error})"
    summary = result.summary(metrics=metric).query("model != 'all_sensitive'")
    if summary["value"].isna().all():
        return pd.DataFrame(), f"these labels and samples allow no probe ({'; '.join(set(summary['reason']))})"
    out = summary[["model", "value", "ci_low", "ci_high", "n_groups"]]
    return out.rename(columns={"value": metric, "n_groups": "probe_samples"}), ""


def drawn(y: np.ndarray, sample: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Labelled rows, at most ``n``, shared out evenly over the samples.

    Parameters
    ----------
    y, sample
        Labels (negative: none) and samples of the cells.
    n
        Most rows.
    seed
        Of the draw.
    """
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(y >= 0))
    place = pd.Series(sample[rows]).groupby(sample[rows]).cumcount().to_numpy()
    return np.sort(rows[np.argsort(place, kind="stable")][:n])


def verdict(table: pd.DataFrame, metric: str, why: str) -> tuple[str, str | None]:
    """One sentence, and the winner if its interval lies above those of all others.

    Parameters
    ----------
    table
        One row per model; with the columns ``metric``, ``ci_low``, ``ci_high`` where there was a probe.
    metric
        What was probed.
    why
        Why there was no probe.
    """
    choice = table[table["left_out"] == ""]
    if metric not in table:
        seen = choice.dropna(subset=["of_counts"]).sort_values("of_counts", ascending=False, kind="stable")
        best = (
            f"; {seen.iloc[0]['model']} sees most of the counts ({seen.iloc[0]['of_counts']:.0%})" if len(seen) else ""
        )
        return f"No model can be recommended over another, for {why}{best}.", None
    probed = choice.dropna(subset=[metric]).sort_values(metric, ascending=False, kind="stable")
    if probed.empty:
        return "No model can be recommended over another, for none could be probed.", None
    first = probed.iloc[0]
    shown = f"{first['model']} ({metric} {first[metric]:.2f}, {first['ci_low']:.2f} to {first['ci_high']:.2f})"
    rest = probed.iloc[1:]
    over = rest[~(rest["ci_high"] < first["ci_low"])]
    if len(rest) and over.empty and np.isfinite(first["ci_low"]):
        return f"{shown} is better than every other representation that was probed, on samples left out.", first[
            "model"
        ]
    names = ", ".join(over["model"]) or "the others"
    return (
        f"No winner: {shown} is the highest, and its interval overlaps with {names}; take the cheapest of them.",
        None,
    )
