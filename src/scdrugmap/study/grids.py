"""The benchmarks of the study: as published, as the published code does it, and without leaks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd

from scdrugmap import tl
from scdrugmap._errors import InputError
from scdrugmap._files import atomic_path
from scdrugmap._keys import KEYS
from scdrugmap.evaluation.result.files import load
from scdrugmap.evaluation.result.result import BenchmarkResult
from scdrugmap.models import registry
from scdrugmap.study.answers import Answers
from scdrugmap.study.chosen import Chosen, options_of
from scdrugmap.study.joined import opened
from scdrugmap.study.missing import Missing
from scdrugmap.study.spec import ReproduceSpec

if TYPE_CHECKING:
    from scdrugmap.models.card import ModelCard

#: Head of the paper.
PUBLISHED = "published"
#: Epochs of the published fine-tuning where they are not three.
EPOCHS = {"tGPT": 2}
#: Repeats of the draw of shots.
REPEATS = 3


@dataclass(frozen=True)
class Job:
    """One benchmark.

    Parameters
    ----------
    collection, preset, setting, strategy
        Which.
    model
        For fine-tuning, which is done model by model.
    """

    collection: str
    preset: str
    setting: str
    strategy: str
    model: str = ""

    @property
    def name(self) -> str:
        """Name of its folder."""
        parts = [self.collection, self.preset, self.setting, self.strategy, registry.info(self.model).key] if (
            self.model
        ) else [self.collection, self.preset, self.setting, self.strategy]  # fmt: skip
        return "-".join(parts)

    @property
    def split(self) -> str:
        """What stays whole."""
        return "study" if self.setting == "cross" else "sample" if self.preset == "strict" else "cell"


def jobs(spec: ReproduceSpec, chosen: Chosen, collection: str) -> list[Job]:
    """List the benchmarks of a collection in the order of the run.

    Parameters
    ----------
    spec, chosen
        The run.
    collection
        Of the catalogue.
    """
    out = []
    for preset in spec.presets:
        for setting in spec.setting:
            if preset == "published-code" and setting == "cross":
                continue  # the published code has nothing across studies
            for strategy in spec.strategy:
                if not _shown(spec, collection, setting, strategy):
                    continue
                models = [c.name for c in tuned(spec, chosen)] if strategy == "lora" else [""]
                out += [Job(collection, preset, setting, strategy, m) for m in models]
    return out


def _shown(spec: ReproduceSpec, collection: str, setting: str, strategy: str) -> bool:
    """Whether a figure shows it: 2 is pooled, 3 across studies, 5 prompted, 6 the frozen and pooled validation."""
    if collection == "external":
        return setting == "pooled" and strategy == "frozen" and "6" in spec.figures
    figure = "5" if strategy == "prompt" else {"pooled": "2", "cross": "3"}[setting]
    return figure in spec.figures


def tuned(spec: ReproduceSpec, chosen: Chosen) -> list[ModelCard]:
    """Models that are fine-tuned."""
    named = None if spec.lora_models is None else {registry.info(n).name for n in spec.lora_models}
    return [c for c in chosen.networks if c.lora_targets and (named is None or c.name in named)]


def run_job(
    job: Job, spec: ReproduceSpec, chosen: Chosen, cells: ad.AnnData, checkpoints: Mapping[str, Path],
    answers: Mapping[str, Answers],
) -> BenchmarkResult | None:  # fmt: skip
    """Run one benchmark, or go on with it; ``None`` if there is nothing to compare.

    Parameters
    ----------
    job
        Which.
    spec, chosen, cells, checkpoints, answers
        The run and what it has.
    """
    store = spec.store / "grid" / job.name
    common: dict[str, Any] = {
        "setting": job.setting, "split": job.split, "preset": job.preset, "n_folds": spec.n_folds, "rng": spec.seed,
        "store": store, "n_jobs": spec.n_jobs, "progress": False, "by": [b for b in spec.by if _has(cells, b)],
        "baselines": [b for b in spec.baselines if job.preset == "strict" or b != "sample_probe"],
    }  # fmt: skip
    if job.strategy == "frozen":
        models: dict[str, str] = {c.name: key for c in chosen.networks if (key := KEYS.embedding(c.key)) in cells.obsm}
        models |= {c.name: c.name for c in chosen.fitted}
        common["baselines"] = [b for b in common["baselines"] if b not in models]
        # The size of a leak is a difference of splits alone: the published head takes part in both.
        common["head"] = [PUBLISHED, "mlp"] if job.preset == "strict" else PUBLISHED
        return tl.benchmark(cells, models=models, **common) if models else None
    common["baselines"], common["head"] = ["all_sensitive"], PUBLISHED
    if job.strategy == "prompt":
        if not answers:
            return None
        # The coverage table tells how many are not answered; those say nothing about right and wrong.
        answered = np.all([np.isfinite(a.scores) for a in answers.values()], axis=0)
        labels = cells.obs[KEYS.response].where(answered)
        asked = opened(str(cells.filename), cells.obs.assign(**{KEYS.response: labels}))
        return tl.benchmark(asked, models=dict(answers), **common)
    if job.model not in checkpoints:
        return None
    options: dict[str, Any] = {"checkpoint": checkpoints[job.model]} | options_of(spec, job.model)
    options |= {k: v for k, v in (("device", spec.device), ("batch_size", spec.batch_size)) if v is not None}
    common["by"] = [b for b in spec.lora_by or spec.by if _has(cells, b)]
    lora = {"epochs": EPOCHS.get(job.model, 3)} | dict(spec.lora_options or {})
    bare = opened(str(cells.filename), cells.obs)
    return tl.benchmark(
        bare, models=job.model, strategy="lora", lora_options=lora, embed_options={job.model: options}, **common
    )


def _has(cells: ad.AnnData, column: str) -> bool:
    return column in cells.obs and bool(cells.obs[column].notna().any())


def few_shot(spec: ReproduceSpec, chosen: Chosen, cells: ad.AnnData, missing: Missing) -> pd.DataFrame:
    """Zero- and few-shot transfer to each series of each category, on the frozen embeddings.

    Parameters
    ----------
    spec, chosen, cells
        The run and its cells.
    missing
        Gets the curves that failed.
    """
    tables = []
    folder = spec.store / "few_shot" / str(cells.obs["collection"].iloc[0])
    for by in (b for b in spec.by if _has(cells, b)):
        for category in cells.obs[by].cat.categories:
            rows = np.flatnonzero(cells.obs[by] == category)
            series = pd.unique(cells.obs[KEYS.study].iloc[rows])
            for target in series if len(series) > 1 else ():
                for card in chosen.networks:
                    key = KEYS.embedding(card.key)
                    if key not in cells.obsm:
                        continue
                    place = {"by": by, "category": category, "target": target, "model": card.name}
                    file = folder / f"{_plain(f'{by}-{category}-{target}-{card.key}')}.parquet"
                    with missing.leaves_the_rest(f"few-shot curve of {card.name} on {target} ({by} {category})"):
                        if not file.exists():
                            _curve(spec, cells, rows, key, str(target), file)
                        tables.append(pd.read_parquet(file).assign(**place))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _curve(spec: ReproduceSpec, cells: ad.AnnData, rows: np.ndarray, key: str, target: str, file: Path) -> None:
    """Write one curve; where it cannot be drawn, one row with the reason."""
    part = ad.AnnData(
        X=np.ones((len(rows), 1), np.float32), obs=cells.obs.iloc[rows].copy(), obsm={key: cells.obsm[key][rows]}
    )
    try:
        table = tl.few_shot_curve(
            part, use_rep=key, target=target, shots=spec.shots, n_repeats=REPEATS, head="logistic", rng=spec.seed,
            progress=False,
        )  # fmt: skip
    except InputError as error:
        table = pd.DataFrame({"n_shots": [0], "metric": ["f1"], "value": [np.nan], "reason": [str(error)]})
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as scratch:
        table.to_parquet(scratch, index=False)


def _plain(text: str) -> str:
    """Text as a file name; what is lost of it is told apart by its digest."""
    import hashlib
    import re

    return f"{re.sub(r'[^A-Za-z0-9]+', '_', text)[:80]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@contextlib.contextmanager
def workers(address: str | None) -> Iterator[None]:
    """Run grids on the workers of a Dask scheduler, where one is named.

    Parameters
    ----------
    address
        As ``dask.distributed.Client`` takes it.
    """
    if address is None:
        yield
        return
    import joblib
    from dask.distributed import Client

    with Client(address), joblib.parallel_config(backend="dask", n_jobs=-1):
        yield


def finished(spec: ReproduceSpec, job: Job) -> BenchmarkResult | None:
    """Return the result of a benchmark that is done, for those who only read.

    Parameters
    ----------
    spec, job
        Which.
    """
    folder = spec.store / "grid" / job.name
    return BenchmarkResult(**load(folder)) if (folder / "result" / "result.json").is_file() else None
