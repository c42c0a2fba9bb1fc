"""``scdrugmap cache``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scdrugmap._errors import SpecError
from scdrugmap.cli._console import print_json, print_table
from scdrugmap.cli._help import App

app = App(no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
#: What each row of ``cache size`` is, and how it is cleared.
KINDS = {
    "embeddings": "finished embeddings: scdrugmap cache clear",
    "prompting": "answers of chat models: scdrugmap cache clear --kind prompting",
    "predictors": "predictors from a hub: fetched again when they are needed",
    "checkpoints": "weights of models: scdrugmap models rm",
    "datasets": "studies: scdrugmap datasets rm",
}


@app.command("list")
def list_entries(json: Json = False) -> None:
    """List the cached embeddings, those used last first.

    Example: scdrugmap cache list
    """
    from scdrugmap.embedding import cache

    table = cache.listing()
    if not json:
        table = table.assign(key=table["key"].str[:12], size=[_words(n) for n in table["size"]])
    print_table(table, f"embeddings in {cache.folder()}", limit=100, as_json=json)


@app.command()
def size(json: Json = False) -> None:
    """Say how much the cache holds, by kind.

    Example: scdrugmap cache size
    """
    import pandas as pd

    from scdrugmap.settings import settings

    root = Path(settings.cache_dir).expanduser()
    sizes = {kind: _size(root / kind) for kind in KINDS}
    if json:
        return print_json(folder=str(root), limit=int(settings.embedding_cache_size), **sizes)
    rows = [(kind, _words(sizes[kind]), what) for kind, what in KINDS.items()]
    print_table(pd.DataFrame(rows, columns=["kind", "size", "what"]), f"{root}: {_words(sum(sizes.values()))}")
    typer.echo(f"embeddings are kept up to {_words(settings.embedding_cache_size)} (settings.embedding_cache_size)")


@app.command()
def clear(
    kind: Annotated[str, typer.Option(help="embeddings, or prompting: answers that may have cost money.")] = (
        "embeddings"
    ),
    older_than: Annotated[float | None, typer.Option(help="Only what was not used for this many days.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete cached embeddings or answers.

    Example: scdrugmap cache clear --older-than 30 --yes
    """
    from scdrugmap.embedding import cache as embeddings
    from scdrugmap.prompting import cache as answers

    rooms: dict[str, Any] = {"embeddings": embeddings, "prompting": answers}
    if kind not in rooms:
        raise SpecError("--kind", kind, "embeddings or prompting", "downloads go with 'models rm' and 'datasets rm'.")
    if older_than is not None and older_than < 0:
        raise SpecError("--older-than", older_than, "a number of days", "leave it out for everything.")
    which = "all" if older_than is None else f"those not used for {older_than:g} days:"
    if not yes:
        typer.confirm(f"Delete {which} {kind} in {rooms[kind].folder()}?", abort=True)
    typer.echo(f"freed {_words(rooms[kind].clear(older_than=older_than))}")


def _size(folder: Path) -> int:
    """Bytes of the files of a folder; a link counts as itself."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_symlink() or path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def _words(n: int) -> str:
    from pydantic import ByteSize

    return ByteSize(n).human_readable(decimal=True, separator=" ")
