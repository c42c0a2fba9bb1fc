"""What a specification asks for: data sets of the catalogue and models, by name, or an error that names the unknown one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdrugmap import download
from scdrugmap.datasets._catalogue import catalogue, find_study, sources_of
from scdrugmap.download.catalog import normalise
from scdrugmap.models import registry
from scdrugmap.study.labels import read_labels
from scdrugmap.study.spec import ReproduceSpec

if TYPE_CHECKING:
    from scdrugmap.models.card import ModelCard

#: The ten models of the paper, in its order.
PAPER = (
    "tGPT", "scBERT", "Geneformer", "CellLM", "scFoundation", "scGPT", "CellPLM", "UCE", "Llama-3-8B", "GPT-4o-mini",
)  # fmt: skip
#: Figures on the primary and on the external collection; figure 1 shows the catalogue alone.
COLLECTIONS = {"2": "primary", "3": "primary", "4": "primary", "5": "primary", "6": "external"}

#: End of the registry keys of sources without labels: a person reads them off the descriptions of the samples.
UNLABELLED = "_geo"


@dataclass(frozen=True)
class Chosen:
    """Studies and models of a run.

    Parameters
    ----------
    table
        Rows of the catalogue that are fetched, with the column ``entry``: where the download layer has them.
    networks, fitted, prompted
        Cards of the models.
    collections
        Of the catalogue that the figures show.
    unlabelled
        Data sets whose source has no labels that a program can read, and that ``labels`` does not name: not fetched.
    """

    table: pd.DataFrame
    networks: list[ModelCard]
    fitted: list[ModelCard]
    prompted: list[ModelCard]
    collections: list[str]
    unlabelled: list[str] = field(default_factory=list)

    @property
    def cards(self) -> list[ModelCard]:
        """All models."""
        return [*self.networks, *self.fitted, *self.prompted]


def choose(spec: ReproduceSpec) -> Chosen:
    """Find the studies and models of a specification.

    Parameters
    ----------
    spec
        The specification.

    Raises
    ------
    UnknownNameError
        For a study or model that does not exist.
    """
    cards = list({c.name: c for c in map(registry.info, spec.models or PAPER)}.values())
    for name in spec.lora_models or ():
        registry.info(name)
    wanted = [f for f in spec.figures if f in COLLECTIONS]
    collections = [c for c in ("primary", "external") if c in {COLLECTIONS[f] for f in wanted}]
    if spec.predictors and "primary" not in collections:
        collections.insert(0, "primary")
    table = catalogue()
    if spec.studies is not None:
        keys = [k for name in spec.studies for k in _members(name, table)]
        table = table.loc[list(dict.fromkeys(keys))]
    table = table[table["collection"].isin(collections)].copy()
    if spec.studies is None:
        # The figure is of the first 17 of the external data sets; the others were added later.
        later = (table["collection"] == "external") & ~table["in_validation_17"]
        table = table[~later].copy()
    table["entry"] = [_entry(row, spec.source) for _, row in table.iterrows()]
    given = set(read_labels(spec.labels)["dataset"])
    # One that a person has put on this machine may hold labels, and costs nothing to open.
    bare = [
        e.endswith(UNLABELLED) and k not in given and download.where("datasets", e) is None
        for k, e in table["entry"].items()
    ]
    unlabelled, table = [str(k) for k in table.index[bare]], table[~np.array(bare, bool)].copy()
    kinds = {kind: [c for c in cards if c.kind == kind] for kind in ("network", "fitted", "prompt")}
    # What no figure shows is neither fetched nor asked.
    if not spec.predictors and not {"2", "3", "4", "6", "7"} & set(spec.figures):
        kinds["network"] = []
    if "5" not in spec.figures or "prompt" not in spec.strategy:
        kinds["prompt"] = []
    return Chosen(table, kinds["network"], kinds["fitted"], kinds["prompt"], [str(c) for c in collections], unlabelled)


def _members(name: str, table: pd.DataFrame) -> list[str]:
    """Keys that a name stands for; an accession stands for all data sets of its series."""
    same = table.index[table["accession"].map(normalise) == normalise(name)]
    return list(same) if len(same) else [str(find_study(name).name)]


def _entry(row: pd.Series, source: str) -> str:
    """Key of the download registry; empty if the source does not have the data set."""
    known = sources_of(row)
    wanted = ("published", "geo") if source == "auto" else (source,)
    return next((known[s] for s in wanted if s in known), "")


def options_of(spec: ReproduceSpec, name: str) -> dict[str, Any]:
    """Options of a model that the specification gives, under any spelling of its name.

    Parameters
    ----------
    spec
        The run.
    name
        Name on the card.
    """
    given = {registry.info(n).name: values for n, values in (spec.embed_options or {}).items()}
    return dict(given.get(name, {}))


def short_list(names: list[str], most: int = 6) -> str:
    """Names, cut where there are many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
