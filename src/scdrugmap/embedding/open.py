"""The one way to open a model: by name, from a checkpoint, or as an object that is loaded or fitted already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scdrugmap._errors import InputError
from scdrugmap.embedding.cluster import Origin
from scdrugmap.genes.identifiers import Genes, recognise
from scdrugmap.models import registry
from scdrugmap.models.base import FittedModel, Model, NetworkModel


@dataclass(frozen=True, eq=False)
class Opened:
    """A model, and how it came about.

    Parameters
    ----------
    model
        Network model with weights, or fitted model.
    by_name
        Whether it was made here; a fitted model that was made here has seen no cell yet.
    origin
        How workers of a cluster load it; ``None`` sends the model itself.
    """

    model: NetworkModel | FittedModel
    by_name: bool
    origin: Origin | None = None


def open_model(
    model: str | Model,
    genes: Genes,
    *,
    checkpoint: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Opened:
    """Open a model for cells with these genes.

    Parameters
    ----------
    model
        Name, or a loaded or fitted model.
    genes
        Of the cells; their species is compared with the model's.
    checkpoint, options, seed
        Of a model by name.

    Raises
    ------
    InputError
        For a prompted model, genes of another species, or a checkpoint or options that the model does not take.
    """
    card = registry.get(model).card
    if card.kind == "prompt":
        raise InputError(
            "model", card.name, "a model that gives an embedding",
            "use sd.tl.predict_response(adata, model=..., strategy='prompt').",
        )  # fmt: skip
    check_species(genes.names, card.species, card.name)
    if isinstance(model, str):
        seeded = {"seed": seed, **(options or {})}
        if card.kind != "fitted":
            return Opened(registry.load(model, checkpoint, **seeded), True, Origin(checkpoint, seeded))
        if checkpoint is not None:
            raise InputError("checkpoint", str(checkpoint), f"None: {card.name} is fitted", "leave it out.")
        made: Any = registry.get(model)
        return Opened(made(**seeded), True)
    check_options(model, {**({} if checkpoint is None else {"checkpoint": checkpoint}), **(options or {})})
    assert isinstance(model, NetworkModel | FittedModel)
    return Opened(model, False)


def check_options(model: str | Model, options: Mapping[str, Any]) -> None:
    """Refuse options that a model does not take, before anything is read or computed.

    Parameters
    ----------
    model
        Name, or a model, whose options are its own.
    options
        ``recipe`` and further options.

    Raises
    ------
    UnknownNameError, InputError
        Naming the model.
    """
    if isinstance(model, str):
        cls = registry.get(model)
        if cls.card.kind != "prompt":
            cls._validated({k: v for k, v in options.items() if k != "recipe"})
    elif options:
        raise InputError(
            "model", f"a loaded model with {', '.join(options)}",
            "a loaded model, whose checkpoint and options are its own", "pass the name instead.",
        )  # fmt: skip


def check_species(names: np.ndarray, species: tuple[str, ...], model: str) -> None:
    """Refuse genes of a species that the model was not trained on.

    Raises
    ------
    InputError
        If most names are those of another species.
    """
    found = recognise(names)
    known = ("unknown", *species, *("mouse or rat" for s in species if s in ("mouse", "rat")))
    if "any" in species or found.species in known or found.species_share < 0.5:
        return
    raise InputError(
        "adata.var",
        f"gene names of {found.species} ({found.species_share:.0%} of them)",
        f"{' or '.join(species)} genes, which {model} was trained on",
        "map the genes to their human orthologues first (this package does not do that).",
    )
