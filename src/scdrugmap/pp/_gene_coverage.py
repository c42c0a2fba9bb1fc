"""``sd.pp.gene_coverage``: which genes the models know, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdrugmap import _anndata
from scdrugmap._errors import InputError, ScDrugMapError, UnknownNameError
from scdrugmap.embedding.source import CountSource
from scdrugmap.genes.identifiers import Genes
from scdrugmap.genes.mapping import coverage
from scdrugmap.models import registry
from scdrugmap.models.card import ModelCard, model_key

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from scdrugmap.models.base import NetworkModel

COLUMNS = [
    "model",
    "gene_id",
    "n_vocabulary",
    "n_genes",
    "n_found",
    "of_vocabulary",
    "of_genes",
    "of_counts",
    "note",
]


def gene_coverage(
    adata: AnnData | MuData,
    models: str | NetworkModel | Sequence[str | NetworkModel] = "all",
    *,
    checkpoints: Mapping[str, str | PathLike[str]] | None = None,
    layer: str | None = None,
    mod: str = "rna",
    chunk_size: int = 4096,
) -> pd.DataFrame:
    """Compare the genes of data with the vocabularies of the models.

    Nothing is downloaded and nothing is changed: a model whose checkpoint is not on this machine gets a row that says
    how to fetch it.

    Parameters
    ----------
    adata
        Annotated data.
    models
        A model by name or loaded, several of them, or ``"all"`` for every foundation model with a checkpoint.
    checkpoints
        Folder of the checkpoint in the official layout, by model name, where it is not in the cache.
    layer
        Layer that holds the raw counts; ``X`` if ``None``.
    mod
        Modality of a MuData.
    chunk_size
        Cells read at once.

    Returns
    -------
    A data frame with one row per model: ``model``, ``gene_id`` (kind of identifier), ``n_vocabulary``, ``n_genes`` (of
    the data), ``n_found``, their shares ``of_vocabulary``, ``of_genes``, ``of_counts`` (the part of all counts that
    the model sees), and a ``note``. Numbers are missing where a checkpoint is not there.

    Raises
    ------
    UnknownNameError
        A model is not known.
    InputError
        A model has no vocabulary, such as a baseline.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_cells=50, n_genes=50, rng=0)
    >>> int(sd.pp.gene_coverage(adata, "scGPT").loc[0, "n_genes"])
    50
    """
    data = _anndata.resolve(adata, mod=mod)
    counts = _anndata.counts(data, layer)
    loaded: dict[str, Any] = {}
    if isinstance(models, str) and models.lower() == "all":
        keys = registry.keys()
        cards = [card for card in map(registry.info, keys) if card.kind == "network"]
    else:
        wanted: list[Any] = list(models) if isinstance(models, Sequence) and not isinstance(models, str) else [models]
        cards = [registry.get(model).card for model in wanted]
        loaded = {m.card.key: m for m in wanted if not isinstance(m, str | type)}
        for card in cards:
            if card.kind != "network":
                fix = 'leave it out, or pass models="all".'
                raise InputError("models", card.name, "a foundation model with a vocabulary", fix)
    folders = _folders(checkpoints or {}, cards)
    genes, totals = _anndata.gene_ids(data), _totals(counts, chunk_size)
    rows = [_row(card, loaded.get(card.key, folders.get(card.key)), genes, totals) for card in cards]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.astype(dict.fromkeys(("n_vocabulary", "n_genes", "n_found"), "Int64"))


def _folders(given: Mapping[str, str | PathLike[str]], cards: Sequence[ModelCard]) -> dict[str, Path]:
    """Where each checkpoint is, for those that are there."""
    out: dict[str, Path] = {}
    known = {model_key(name): card.key for card in cards for name in (card.name, *card.aliases)}
    for name, folder in given.items():
        if model_key(name) not in known:
            raise UnknownNameError("checkpoints", name, [card.name for card in cards])
        path = Path(folder).expanduser()
        if not path.exists():
            raise InputError(f"checkpoints[{name!r}]", str(folder), "a folder or file that exists", "check the path.")
        out[known[model_key(name)]] = path
    from scdrugmap import download

    for card in cards:
        for variant in () if card.key in out else card.checkpoints[:1]:
            found = download.where("checkpoints", variant)
            if found is not None:
                out[card.key] = Path(found)
    return out


def _totals(counts: Any, chunk_size: int) -> np.ndarray:
    """Sum of every gene."""
    source = CountSource(counts)
    out = np.zeros(source.shape[1])
    for _, block in source.blocks(chunk_size):
        out += np.asarray(block.sum(axis=0, dtype=np.float64)).ravel()
    return out


def _row(card: ModelCard, source: Path | NetworkModel | None, genes: Genes, totals: np.ndarray) -> dict[str, Any]:
    """One model; its weights are let go before the next one."""
    row: dict[str, Any] = {"model": card.name, "gene_id": card.gene_id or "", "n_genes": len(genes), "note": ""}
    none = {"n_found": 0, "of_vocabulary": 0.0, "of_genes": 0.0, "of_counts": 0.0}
    if source is None:
        return row | {"note": f"the checkpoint is not on this machine: sd.models.fetch({card.name!r})"}
    try:
        model = registry.load(card.name, source) if isinstance(source, Path) else source
    except ScDrugMapError as error:
        return row | {"note": f"the checkpoint cannot be read: {error}"}
    try:
        names = model.gene_names(genes)
    except InputError as error:
        return row | none | {"note": str(error)}
    found = model.align(genes).target >= 0
    # Matching is the model's business; the rest is counting.
    words = dict.fromkeys(np.where(found, names, "").tolist(), 0)
    matched = coverage(np.where(found, names, ""), words, totals)
    n_vocabulary = coverage(names, model.vocabulary).n_vocabulary
    return row | {
        "n_vocabulary": n_vocabulary,
        "n_found": matched.n_found,
        "of_vocabulary": matched.n_found / n_vocabulary if n_vocabulary else float("nan"),
        "of_genes": float(found.mean()),
        "of_counts": matched.of_counts,
    }
