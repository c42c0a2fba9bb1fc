"""Checkpoints by name: thin shells over the download layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scdrugmap._errors import InputError
from scdrugmap.models.card import model_key
from scdrugmap.models.registry import get, usable

if TYPE_CHECKING:
    import pandas as pd


def _variant(name: str) -> str:
    """Key of the checkpoint registry, from a key or from the name of a model."""
    from scdrugmap import download

    if model_key(name) not in map(model_key, download.entries("checkpoints")):
        usable()  # plug-ins bring entries of their own
    if model_key(name) not in map(model_key, download.entries("checkpoints")):
        card = get(name).card
        if not card.checkpoints:
            raise InputError(
                "name", name, "a model with a checkpoint", f"{card.name} is {card.kind}: nothing to fetch."
            )
        return card.checkpoints[0]
    return download.find("checkpoints", name).key


def fetch(name: str, *, accept_licence: bool = False, progress: bool | None = None) -> Path:
    """Fetch an official checkpoint, verify it and return its folder.

    Parameters
    ----------
    name
        Name of a model (its default checkpoint) or a key of the checkpoint registry.
    accept_licence
        Needed where the licence of the weights has to be accepted; the message shows it.
    progress
        Show a progress bar; by default on a terminal.

    Returns
    -------
    Folder in the official layout, as ``checkpoint=`` of :func:`scdrugmap.tl.embed` takes it.

    Raises
    ------
    LicenceError
        If the licence has to be accepted first, or access requested.
    DownloadError
        If no source delivers the file; the message says what to do by hand.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> sd.models.fetch("hvg")
    Traceback (most recent call last):
    scdrugmap._errors.InputError: ...
    """
    from scdrugmap import download

    return download.fetch("checkpoints", _variant(name), accept_licence=accept_licence, progress=progress)


def where(name: str) -> Path | None:
    """Return the folder of a fetched or registered checkpoint, ``None`` if it is not on this machine.

    Parameters
    ----------
    name
        Name of a model (its default checkpoint) or a key of the checkpoint registry.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> sd.models.where("scGPT") is None
    True
    """
    from scdrugmap import download

    return download.where("checkpoints", _variant(name))


def verify(name: str) -> pd.DataFrame:
    """Read a fetched checkpoint again and compare it with its recorded sizes and digests.

    Parameters
    ----------
    name
        Name of a model (its default checkpoint) or a key of the checkpoint registry.

    Returns
    -------
    One row per file with what was expected and found.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> sd.models.verify("hvg")
    Traceback (most recent call last):
    scdrugmap._errors.InputError: ...
    """
    from scdrugmap import download

    return download.verify("checkpoints", _variant(name))


def remove(name: str) -> int:
    """Delete a fetched checkpoint.

    Parameters
    ----------
    name
        Name of a model (its default checkpoint) or a key of the checkpoint registry.

    Returns
    -------
    Bytes that were freed.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> sd.models.remove("scGPT")
    0
    """
    from scdrugmap import download

    return download.remove("checkpoints", _variant(name))
