"""From the catalogue to labelled cells: fetch, check, harmonise, embed, join; each step is kept and not done twice."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd

from scdrugmap import datasets, download, pp, tl
from scdrugmap._cohort import encode
from scdrugmap._errors import DownloadError, InputError
from scdrugmap._files import atomic_file, atomic_path, write_json
from scdrugmap._keys import KEYS
from scdrugmap.download import ledger
from scdrugmap.models import registry
from scdrugmap.study.chosen import Chosen, options_of
from scdrugmap.study.labels import read_labels, with_labels
from scdrugmap.study.missing import Missing
from scdrugmap.study.spec import ReproduceSpec

#: Columns that the categories of the paper are values of, and where the catalogue has them as the paper counts them.
CATEGORIES = {
    "tissue": "tissue_published", "drug_type": "therapy_type_published", "cancer_type": "cancer_type_published",
    "regimen": "regimen",
}  # fmt: skip
#: Columns that the joined cells keep.
KEPT = [KEYS.response, KEYS.sample, KEYS.study, "dataset", "collection", "drug_class", *CATEGORIES]


def prepare_studies(spec: ReproduceSpec, chosen: Chosen, missing: Missing) -> dict[str, Path]:
    """Fetch, check and harmonise every study.

    Parameters
    ----------
    spec, chosen
        The run.
    missing
        Gets the studies that cannot be had.

    Returns
    -------
    File of labelled cells by key.
    """
    out: dict[str, Path] = {}
    given = read_labels(spec.labels)
    for key, row in chosen.table.iterrows():
        name, target = str(key), spec.store / "studies" / f"{key}.h5ad"
        with missing.leaves_the_rest(f"study {name}"):
            if not row["entry"]:
                raise DownloadError(f"no source of kind {spec.source!r} in the registry")
            if not target.exists():
                adata = datasets.fetch(name, source=spec.source, accept_licence=True, progress=False)
                adata = _labelled(with_labels(adata, given[given["dataset"] == name]))
                _checked(adata, target.with_suffix(".check.json"))
                pp.harmonize_genes(adata)
                _describe(adata, name, row)
                target.parent.mkdir(parents=True, exist_ok=True)
                with atomic_path(target) as scratch:
                    adata.write_h5ad(scratch)
            out[name] = target
    return out


def _labelled(adata: ad.AnnData) -> ad.AnnData:
    """Cells with a label; the others would only cost time."""
    if KEYS.response not in adata.obs:
        raise InputError(
            "study", "no labels in the source", "labelled cells", "add labels by hand and benchmark it alone."
        )
    known = encode(adata.obs[KEYS.response]) >= 0
    if not known.any():
        raise InputError("study", "no labelled cell in the source", "labelled cells", "see sd.pp.harmonize_response.")
    return adata[known].copy()


def _checked(adata: ad.AnnData, target: Path) -> None:
    """Refuse a study that is not fit for use; keep what was found."""
    report = pp.check(adata)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, report.to_dict())
    if not report.ok:
        found = "; ".join(f"{f.slot}: {f.message}" for f in report.errors)
        raise InputError("study", found, "counts and genes that can be used", "see the report of the check.")


def _describe(adata: ad.AnnData, key: str, row: pd.Series) -> None:
    """Add the categories of the paper; a sample is one of its series."""
    facts = {name: row[column] for name, column in CATEGORIES.items()}
    for name, value in (facts | {k: row[k] for k in ("collection", "drug_class")} | {"dataset": key}).items():
        adata.obs[name] = pd.Categorical([value or None] * adata.n_obs)
    series = str(row["accession"])
    adata.obs[KEYS.study] = pd.Categorical([series] * adata.n_obs)
    samples = adata.obs[KEYS.sample] if KEYS.sample in adata.obs else pd.Series("", index=adata.obs_names)
    text = samples.astype(object).where(samples.notna(), "").astype(str)
    adata.obs[KEYS.sample] = pd.Categorical(text.where(text.str.startswith(series), f"{key}:" + text))
    adata.obs_names = [f"{key}:{name}" for name in adata.obs_names]


def fetch_checkpoints(chosen: Chosen, missing: Missing) -> dict[str, Path]:
    """Fetch the checkpoint of every model with weights; returns their folders by name.

    Parameters
    ----------
    chosen
        The models.
    missing
        Gets those that cannot be had.
    """
    out: dict[str, Path] = {}
    for card in chosen.networks:
        with missing.leaves_the_rest(f"model {card.name}"):
            out[card.name] = download.fetch("checkpoints", card.checkpoints[0], accept_licence=True, progress=False)
    return out


def embed_studies(
    spec: ReproduceSpec, studies: Mapping[str, Path], checkpoints: Mapping[str, Path], missing: Missing
) -> None:
    """Embed every study once with every model; a killed run goes on inside a study.

    Parameters
    ----------
    spec
        The run.
    studies, checkpoints
        Files by key, folders by name of the model.
    missing
        Gets the pairs that failed.
    """
    for name, folder in checkpoints.items():
        card = registry.info(name)
        if all(embedding_file(spec, key, card.key).exists() for key in studies):
            continue
        model: Any = None
        with missing.leaves_the_rest(f"model {name}"):
            model = registry.load(name, folder, **options_of(spec, name))
        for key, file in studies.items() if model is not None else ():
            target = embedding_file(spec, key, card.key)
            if target.exists():
                continue
            with missing.leaves_the_rest(f"embedding of {key} with {name}"):
                parts = spec.store / "embeddings" / f".{key}-{card.key}"
                adata = ad.read_h5ad(file, backed="r")
                tl.embed(
                    adata, model, key_added="found", context=KEYS.sample if card.context == "group" else None,
                    store=parts, batch_size=spec.batch_size, device=spec.device, rng=spec.seed, progress=False,
                )  # fmt: skip
                target.parent.mkdir(parents=True, exist_ok=True)
                with atomic_file(target) as out:
                    np.save(out, np.asarray(adata.obsm["X_found"], dtype=np.float32))
                shutil.rmtree(parts, ignore_errors=True)


def embedding_file(spec: ReproduceSpec, key: str, model: str) -> Path:
    """Where the embedding of a study lies.

    Parameters
    ----------
    spec, key, model
        The run, and the keys of study and model.
    """
    return spec.store / "embeddings" / key / f"{model}.npy"


def digests(spec: ReproduceSpec, studies: Mapping[str, Path], checkpoints: Mapping[str, Path]) -> dict[str, Any]:
    """SHA-256 of everything that went in: files of studies and checkpoints, by name.

    Parameters
    ----------
    spec, studies, checkpoints
        The run and its files.
    """
    from scdrugmap import __version__

    records = ledger.read()
    out: dict[str, Any] = {"scdrugmap": __version__, "studies": {}, "checkpoints": {}}
    for key, file in studies.items():
        with h5py.File(file, "r") as handle:
            provenance = dict(handle["uns"][KEYS.provenance]) if KEYS.provenance in handle["uns"] else {}
            value = provenance["sha256"][()] if "sha256" in provenance else b""
        text = value.decode() if isinstance(value, bytes) else str(value)
        out["studies"][key] = text or _sha256(file)
    for name in checkpoints:
        prefix = f"checkpoints/{registry.info(name).checkpoints[0]}/"
        out["checkpoints"][name] = {
            k.removeprefix(prefix): r.get("sha256", "") for k, r in sorted(records.items()) if k.startswith(prefix)
        }
    return json.loads(json.dumps(out, default=str))


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
