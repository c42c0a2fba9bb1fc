"""``scdrugmap datasets``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scdrugmap.cli._help import App

app = App(no_args_is_help=False, invoke_without_command=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Key = Annotated[str, typer.Argument(help="Study, for example GSE140440.")]


@app.callback()
def _list_by_default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_studies()


@app.command("list")
def list_studies(
    tissue: Annotated[str | None, typer.Option(help="Only this tissue.")] = None,
    collection: Annotated[str | None, typer.Option(help="primary or external.")] = None,
    json: Json = False,
) -> None:
    """List the curated studies.

    Example: scdrugmap datasets list --tissue Organoid
    """
    import scdrugmap as sd
    from scdrugmap.cli._console import print_table

    filters = {k: v for k, v in {"tissue": tissue, "collection": collection}.items() if v is not None}
    table = sd.datasets.catalogue(**filters).reset_index()
    wanted = ["key", "collection", "accession", "tissue", "cancer_type", "drug", "therapy_type", "n_cells"]
    columns = [c for c in wanted if c in table]
    print_table(table if json else table[columns], "studies", limit=100, as_json=json)


@app.command()
def info(key: Key) -> None:
    """Describe a study.

    Example: scdrugmap datasets info GSE140440
    """
    import scdrugmap as sd

    typer.echo(sd.datasets.info(key))


@app.command()
def fetch(
    key: Key,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the study as .h5ad.")] = None,
    accept_licence: Annotated[bool, typer.Option("--accept-licence", help="Accept the licence that is shown.")] = False,
) -> None:
    """Fetch a study, verify it and read it.

    Example: scdrugmap datasets fetch GSE140440 -o study.h5ad
    """
    import scdrugmap as sd
    from scdrugmap.datasets.files import check_writable, write_cells

    if output is not None:
        check_writable(output, ".h5ad")
    adata = sd.datasets.fetch(key, accept_licence=accept_licence)
    typer.echo(adata)
    if output is not None:
        write_cells(adata, output)


@app.command()
def where(key: Key) -> None:
    """Print the folder of a study.

    Example: scdrugmap datasets where GSE140440
    """
    from scdrugmap import download

    typer.echo(download.where("datasets", key))


@app.command()
def verify(
    key: Annotated[str | None, typer.Argument(help="Study; all if left out.")] = None, json: Json = False
) -> None:
    """Read studies again and compare them with their digests. Exit code 4 if a file is altered or missing.

    Example: scdrugmap datasets verify
    """
    from scdrugmap import download
    from scdrugmap.cli._verify import optional_files, tell

    tell(download.verify("datasets", key), optional_files("datasets"), as_json=json)


@app.command()
def rm(key: Key) -> None:
    """Delete a fetched study.

    Example: scdrugmap datasets rm GSE140440
    """
    from scdrugmap import download

    download.remove("datasets", key)
