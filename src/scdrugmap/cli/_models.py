"""``scdrugmap models``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scdrugmap.cli._help import App

app = App(no_args_is_help=False, invoke_without_command=True)
Name = Annotated[str, typer.Argument(help="Model, or key of the checkpoint registry.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Accept = Annotated[bool, typer.Option("--accept-licence", help="Accept the licence that is shown.")]


@app.callback()
def _list_by_default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_models()


@app.command("list")
def list_models(json: Json = False) -> None:
    """List all models.

    Example: scdrugmap models list
    """
    import scdrugmap as sd
    from scdrugmap.cli._console import print_table

    table = sd.models.list().reset_index()
    columns = ["name", "kind", "year", "dim", "n_parameters", "gene_id", "context", "weights_licence"]
    print_table(table if json else table[columns], "models", as_json=json)


@app.command()
def info(name: Name) -> None:
    """Describe a model: what it is, what it needs, its licence and checkpoints.

    Example: scdrugmap models info scGPT
    """
    import scdrugmap as sd

    typer.echo(sd.models.info(name))


@app.command()
def fetch(name: Name, accept_licence: Accept = False) -> None:
    """Fetch an official checkpoint.

    Example: scdrugmap models fetch scGPT
    """
    import scdrugmap as sd

    typer.echo(sd.models.fetch(name, accept_licence=accept_licence))


@app.command()
def where(name: Name) -> None:
    """Print the folder of a checkpoint.

    Example: scdrugmap models where scGPT
    """
    import scdrugmap as sd

    typer.echo(sd.models.where(name))


@app.command()
def verify(
    name: Annotated[str | None, typer.Argument(help="Model or key; all if left out.")] = None, json: Json = False
) -> None:
    """Read checkpoints again and compare them with their digests. Exit code 4 if a file is altered or missing.

    Example: scdrugmap models verify
    """
    import scdrugmap as sd
    from scdrugmap import download
    from scdrugmap.cli._verify import optional_files, tell

    frame = download.verify("checkpoints") if name is None else sd.models.verify(name)
    tell(frame, optional_files("checkpoints"), as_json=json)


@app.command()
def register(name: Name, path: Annotated[Path, typer.Argument(help="File or folder that you have.")]) -> None:
    """Tell scdrugmap about a checkpoint that is already on this machine.

    Example: scdrugmap models register scGPT checkpoints/scGPT
    """
    from scdrugmap import download

    typer.echo(download.register_local("checkpoints", name, path))


@app.command()
def rm(name: Name) -> None:
    """Delete a fetched checkpoint.

    Example: scdrugmap models rm scGPT
    """
    import scdrugmap as sd

    sd.models.remove(name)
