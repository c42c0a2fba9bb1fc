"""Checkpoints by name: thin shells over the download layer."""

from __future__ import annotations

from pathlib import Path

from scdrugmap.models.registry import get


def _variant(name: str) -> str:
    from scdrugmap._errors import InputError

    if "/" in name:
        return name
    card = get(name).card
    if not card.checkpoints:
        raise InputError("name", name, "a model with a checkpoint", f"{card.name} is {card.kind}: nothing to fetch.")
    return card.checkpoints[0]


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


def where(name: str) -> Path:
    """Return the folder where a checkpoint is or would be kept."""
    from scdrugmap import download

    return download.where("checkpoints", _variant(name))


def verify(name: str) -> None:
    """Check the files of a fetched checkpoint against their recorded sizes and digests."""
    from scdrugmap import download

    download.verify("checkpoints", _variant(name))


def remove(name: str) -> None:
    """Delete a fetched checkpoint."""
    from scdrugmap import download

    download.remove("checkpoints", _variant(name))
