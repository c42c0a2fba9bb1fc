"""A shelf of predictors: one per drug class and tissue, packed only where it beats its floor on studies left out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from scdrugmap import tl
from scdrugmap._errors import ScDrugMapError
from scdrugmap._files import write_json
from scdrugmap._keys import KEYS
from scdrugmap.study.chosen import Chosen, options_of
from scdrugmap.study.joined import chosen_rows
from scdrugmap.study.missing import Missing
from scdrugmap.study.spec import ReproduceSpec

#: What a predictor is judged by; its floor is the value of calling every cell sensitive.
METRIC = "f1"
HEAD = "logistic"


def shelves(cells: ad.AnnData) -> Iterator[tuple[str, str, np.ndarray]]:
    """Drug class, tissue and rows of each pair; the therapy types stand for classes that have one series only.

    Parameters
    ----------
    cells
        Joined studies.
    """
    seen: set[bytes] = set()
    for column in ("drug_class", "drug_type"):
        for (drug, tissue), rows in cells.obs.groupby([column, KEYS.tissue], observed=True).indices.items():
            rows = np.sort(np.asarray(rows))
            if drug and rows.tobytes() not in seen:
                seen.add(rows.tobytes())
                yield str(drug), str(tissue), rows


def pack(
    spec: ReproduceSpec, chosen: Chosen, cells: ad.AnnData, checkpoints: Mapping[str, Path], missing: Missing
) -> pd.DataFrame:
    """Judge, train and pack the predictors.

    Parameters
    ----------
    spec, chosen, cells, checkpoints
        The run and what it has.
    missing
        Gets the predictors that failed for another reason than their scores.

    Returns
    -------
    One row per drug class and tissue: score on left-out studies with interval and floor, whether it was packed, and why not.
    """
    rows = []
    for drug, tissue, members in shelves(cells):
        name = re.sub(r"[^a-z0-9]+", "-", f"{drug} {tissue}".lower()).strip("-")
        with missing.leaves_the_rest(f"predictor {name}"):
            part = chosen_rows(cells, members)
            part.obsm = {key: np.asarray(X[members]) for key, X in cells.obsm.items()}
            part.uns = dict(cells.uns)
            row = {"predictor": name, "drug_class": drug, "tissue": tissue, "n_cells": part.n_obs}
            found = _one(spec, chosen, part, checkpoints, name)
            rows.append(row | found)
            if found["packed"] and spec.push_to:
                with missing.leaves_the_rest(f"push of predictor {name}"):
                    rows[-1]["hub"] = _pushed(spec, name)
    return pd.DataFrame(rows)


def _one(
    spec: ReproduceSpec, chosen: Chosen, part: ad.AnnData, checkpoints: Mapping[str, Path], name: str
) -> dict[str, Any]:
    """Score of the best representation on left-out studies, and its predictor if it beats the floor."""
    series = part.obs[KEYS.study].nunique()
    refused = {"packed": False, "n_studies": series}
    if series < 2:
        return refused | {"why": "one series only: no study can be left out"}
    found = judged(spec, chosen, part, checkpoints, name)
    if found["value"].isna().all():
        return refused | {"why": "; ".join(sorted(set(found["reason"])))}
    best = found.sort_values("value", ascending=False, kind="stable").iloc[0]
    score = {c: float(best[c]) for c in ("value", "ci_low", "ci_high", "floor")} | {
        "model": best["model"], "n_candidates": len(found),
    }  # fmt: skip
    if np.isnan(score["ci_low"]):
        return refused | score | {
            "why": f"{METRIC} {score['value']:.3f} on {series} left-out studies has no interval: the best of "
            f"{score['n_candidates']} representations may have been lucky"
        }  # fmt: skip
    if not score["ci_low"] > score["floor"]:
        return refused | score | {
            "why": f"{METRIC} {score['value']:.3f} ({score['ci_low']:.3f} to {score['ci_high']:.3f}) on left-out studies does "
            f"not beat calling every cell sensitive, {score['floor']:.3f}"
        }  # fmt: skip
    folder = spec.store / "predictors" / name
    if not (folder / "README.md").is_file():
        _train(spec, part, checkpoints, score, folder)
    return refused | score | {"packed": True, "why": "", "folder": str(folder.relative_to(spec.store)), "hub": ""}


def _pushed(spec: ReproduceSpec, name: str) -> str:
    """Address of the commit on the hub; a predictor that is there is not pushed again."""
    from scdrugmap.predictor.predictor import load_predictor

    folder, repo = spec.store / "predictors" / name, f"{spec.push_to}/{name}"
    record = folder.with_suffix(".pushed.json")
    known = json.loads(record.read_text()) if record.is_file() else {}
    if known.get("repo") != repo:
        predictor = load_predictor(folder)
        try:
            known = {"repo": repo, "commit": predictor.push_to_hub(repo)}
        except ScDrugMapError:
            raise
        except Exception as error:  # the hub's client raises what its own client raises
            text = f"{repo} was not accepted by the hub ({error}). Fix: look at the network, the token and the owner."
            raise ScDrugMapError(text) from error
        write_json(record, known)
    return str(known["commit"])


def judged(
    spec: ReproduceSpec, chosen: Chosen, part: ad.AnnData, checkpoints: Mapping[str, Path], name: str
) -> pd.DataFrame:
    """Leave each study out in turn, with every representation.

    Parameters
    ----------
    spec, chosen, part, checkpoints
        The run and the cells of the shelf.
    name
        Of the run store.
    """
    models = {
        c.name: KEYS.embedding(c.key)
        for c in chosen.networks
        if KEYS.embedding(c.key) in part.obsm and c.name in checkpoints
    }
    result = tl.benchmark(
        part, models=models | {"pca": "pca"}, setting="cross", head=HEAD, baselines=["all_sensitive"], metrics=[METRIC],
        levels=("cell",), rng=spec.seed, store=spec.store / "shelf" / name, progress=False,
    )  # fmt: skip
    return result.summary(metrics=METRIC).query("model != 'all_sensitive'")


def _train(
    spec: ReproduceSpec, part: ad.AnnData, checkpoints: Mapping[str, Path], score: dict[str, Any], folder: Path
) -> None:
    """Train on all studies of the shelf, calibrated on samples left out, and write it with its card."""
    options: dict[str, Any] = {}
    if score["model"] in checkpoints:
        options = options_of(spec, score["model"]) | {
            "checkpoint": checkpoints[score["model"]],
            "batch_size": spec.batch_size,
            "device": spec.device,
        }
    samples = part.obs.groupby(KEYS.response, observed=True)[KEYS.sample].nunique().min()
    predictor = tl.train(
        part, model=score["model"], head=HEAD, groups=KEYS.sample, calibrate="sigmoid", conformal=True, ood=True,
        n_folds=int(np.clip(samples, 2, 5)), rng=spec.seed, progress=False, **options,
    )  # fmt: skip
    interval = f"{score['ci_low']:.3f} to {score['ci_high']:.3f}"
    predictor.training["leave_study_out"] = {
        "metric": METRIC, "value": score["value"], "95 % interval over left-out studies": interval,
        "calling every cell sensitive": score["floor"],
        "chosen among representations by this value": score["n_candidates"],
    }  # fmt: skip
    predictor.training["not_for"] = [
        "decisions about patients",
        "drugs, tissues and species other than those of the training data",
        "cells that the out-of-domain flag marks",
        "telling treated from untreated cells: in many of these studies the resistant cells are the treated ones",
    ]
    predictor.save(folder, overwrite=True)
