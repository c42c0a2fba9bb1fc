"""Prompted models: every cell is asked about once, zero- and few-shot, and the answers serve every fold."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from scdrugmap import tl
from scdrugmap._cohort import encode
from scdrugmap._errors import InputError
from scdrugmap._files import atomic_path
from scdrugmap._keys import KEYS, SENSITIVE
from scdrugmap.study.chosen import Chosen
from scdrugmap.study.joined import chosen_rows
from scdrugmap.study.missing import Missing
from scdrugmap.study.spec import ReproduceSpec

#: Labelled cells of other series that examples are drawn from.
POOL = 400
#: Label of the prompt as the paper has it: ten genes, ten cells, the accession.
PUBLISHED_PROMPT = "published prompt"


class Answers:
    """Scores that a chat model gave, as a benchmark takes them: ``(train, test, seed) -> P(sensitive)``.

    Parameters
    ----------
    scores
        One per cell; NaN where there is no answer.
    """

    def __init__(self, scores: np.ndarray) -> None:
        self.scores = scores
        # The benchmark tells functions apart by their name.
        self.__qualname__ = f"answers-{hashlib.sha256(scores.tobytes()).hexdigest()}"

    def __call__(self, train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
        """Scores of the test cells; nothing is trained."""
        del train, seed
        return self.scores[test]


def ask(spec: ReproduceSpec, chosen: Chosen, cells: ad.AnnData, missing: Missing) -> dict[str, Answers]:
    """Ask each prompted model about the cells of each study.

    Parameters
    ----------
    spec, chosen
        The run.
    cells
        Joined studies of a collection.
    missing
        Gets what was not asked or not answered.

    Returns
    -------
    Answers by the name of the model and the number of examples per class.
    """
    out: dict[str, Answers] = {}
    spent = sum(pd.read_parquet(f)["cost"].iloc[0] for f in sorted((spec.store / "answers").rglob("*.parquet")))
    for card in chosen.prompted:
        for variant in variants(spec):
            scores = np.full(cells.n_obs, np.nan)
            for key in pd.unique(cells.obs["dataset"]):
                rows = _asked(spec, cells, key)
                target = spec.store / "answers" / str(key) / f"{card.key}-{variant.key}.parquet"
                with missing.leaves_the_rest(f"{card.name} ({variant.label}) on {key}"):
                    if not target.exists():
                        left = None if spec.budget is None else spec.budget - spent
                        found = _ask(spec, card, cells, rows, variant, left)
                        spent += found["cost"].iloc[0]
                        _keep(found, target)
                    frame = pd.read_parquet(target).set_index("cell")["score"]
                    scores[rows] = frame.reindex(cells.obs_names[rows]).to_numpy(dtype=float)
            if np.isfinite(scores).any():
                out[f"{card.name} ({variant.label})"] = Answers(scores)
            else:
                missing.note(f"{card.name} ({variant.label})", "no cell was answered")
    return out


@dataclass(frozen=True)
class Variant:
    """One way of asking: the prompt of the paper, or this package's with and without examples."""

    label: str
    key: str
    shots: int = 0
    published: bool = False


def variants(spec: ReproduceSpec) -> list[Variant]:
    """List the ways of asking of a run; the prompt of the paper holds no examples.

    Parameters
    ----------
    spec
        The run.
    """
    own = [Variant("zero-shot" if n == 0 else f"{n}-shot", f"{n}-shot", n) for n in spec.prompt_shots]
    if 0 not in spec.prompt_shots or "template" in (spec.prompt_options or {}):
        return own
    return [Variant(PUBLISHED_PROMPT, "published", published=True), *own]


def _asked(spec: ReproduceSpec, cells: ad.AnnData, key: Any) -> np.ndarray:
    """Rows of a study that are asked about."""
    rows = np.flatnonzero(cells.obs["dataset"] == key)
    if spec.prompt_cells is None or len(rows) <= spec.prompt_cells:
        return rows
    digest = int(hashlib.sha256(str(key).encode()).hexdigest()[:8], 16)
    return np.sort(np.random.default_rng([spec.seed, digest]).permutation(rows)[: spec.prompt_cells])


def _ask(
    spec: ReproduceSpec, card: Any, cells: ad.AnnData, rows: np.ndarray, variant: Variant, left: float | None
) -> pd.DataFrame:
    """One study; examples come from other series, so that no cell of the study is shown."""
    query = chosen_rows(cells, rows)
    del query.obs[KEYS.response]
    options: dict[str, Any] = {"allow_remote": True} | dict(spec.prompt_options or {})
    if spec.prices is not None:
        options |= {"prices": tuple(spec.prices)} | ({} if left is None else {"max_cost": max(left, 0.0)})
    if variant.published:
        options |= {"template": "scdrugmap", "source_key": KEYS.study, "show_accession": True}
    if variant.shots:
        series = query.obs[KEYS.study].iloc[0]
        others = np.flatnonzero((cells.obs[KEYS.study] != series).to_numpy())
        if not len(others):
            raise InputError("studies", "one series", "examples from another series", "add a study.")
        drawn = np.random.default_rng(spec.seed).permutation(others)[:POOL]
        options |= {"reference": chosen_rows(cells, np.sort(drawn)), "label_key": KEYS.response}
    try:
        tl.predict_response(
            query, model=card.name, strategy="prompt", n_shots=variant.shots, key_added="asked", rng=spec.seed,
            progress=False, **options,
        )  # fmt: skip
    except InputError as error:
        if error.argument != "max_cost" or left is None:
            raise
        found, expected = f"{max(left, 0.0):.4g} left of {spec.budget:g}", f"{error.expected} for these cells"
        raise InputError("budget", found, expected, "raise it, or ask about fewer cells: --prompt-cells.") from None
    score = query.obs["asked" + KEYS.score].to_numpy(dtype=float)
    call = query.obs["asked" + KEYS.pred]
    if (np.isnan(score) & call.notna().to_numpy()).any():
        score = np.where(call.isna(), np.nan, (call == SENSITIVE).astype(float))
    cost = float(query.uns["asked"][KEYS.provenance].get("cost", 0.0))
    return pd.DataFrame({"cell": query.obs_names.to_numpy(dtype=str), "score": score, "cost": cost})


def _keep(found: pd.DataFrame, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as scratch:
        found.to_parquet(scratch, index=False)


def coverage(answers: Mapping[str, Answers], cells: ad.AnnData) -> pd.DataFrame:
    """Share of cells with an answer, per model and study: what was not answered is nowhere counted as right or wrong.

    Parameters
    ----------
    answers
        By name.
    cells
        The cells.
    """
    y = encode(cells.obs[KEYS.response])
    rows = [
        {"model": name, "dataset": key, "n_cells": len(r), "answered": float(np.isfinite(a.scores[r]).mean()),
         "n_sensitive": int((y[r] == 1).sum())}
        for name, a in answers.items()
        for key, r in cells.obs.groupby("dataset", observed=True).indices.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)
