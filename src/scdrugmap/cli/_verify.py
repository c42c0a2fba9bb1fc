"""The verdict on files of the cache, for models and for studies."""

from __future__ import annotations

from typing import Any

import typer

from scdrugmap.cli._console import print_table
from scdrugmap.cli._exit import PARTLY, REFUSED


def tell(frame: Any, optional: set[str], *, as_json: bool) -> None:
    """Print what was found; end with 3 if nothing could be verified, with 4 if a file is altered or missing.

    Parameters
    ----------
    frame
        As of :func:`scdrugmap.download.verify`.
    optional
        ``key/file`` of files that need not be there.
    as_json
        Print JSON.
    """
    names = frame["key"] + "/" + frame["file"]
    shown = frame[(frame["state"] != "absent") | ~names.isin(optional)]
    print_table(shown.drop(columns="kind"), "files", limit=1000, as_json=as_json)
    bad = shown[shown["state"] != "ok"]
    good = int((shown["state"] == "ok").sum())
    if bad.empty and good:
        return typer.echo(f"{good} of {good} files verified", err=as_json)
    counts = ", ".join(f"{n} {state}" for state, n in bad["state"].value_counts().items())
    typer.echo(f"{good} of {len(shown)} files verified" + (f"; {counts}" if counts else ": nothing is there"), err=True)
    raise typer.Exit(PARTLY if good else REFUSED)


def optional_files(kind: Any) -> set[str]:
    """``key/file`` of the files that an entry can do without."""
    from scdrugmap import download

    return {f"{e.key}/{f.name}" for e in download.entries(kind).values() for f in e.files if not f.required}
