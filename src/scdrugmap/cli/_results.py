"""``scdrugmap results``: the results of several labs as one, and as a site."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scdrugmap.cli._help import App

app = App(no_args_is_help=True)


@app.command()
def merge(
    sources: Annotated[
        list[Path], typer.Argument(help="Run stores, or folders that benchmark -o, merge or reproduce wrote.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; sd.load_result opens it.")],
) -> None:
    """Join results without counting anything twice. Exit code 3 if two of them give different numbers for one unit.

    Example: scdrugmap results merge lab_a lab_b -o joined
    """
    from scdrugmap.cli._console import console
    from scdrugmap.evaluation.result.merge import merge_results

    result = merge_results(sources, output)
    blocks = len(result.info["blocks"])
    console.print(f"wrote {output}: {len(result.units)} units on {blocks} set{'s' * (blocks != 1)} of cells")


@app.command()
def export(
    results: Annotated[Path, typer.Argument(help="Folder with results.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Drug-response leaderboard",
) -> None:
    """Write the leaderboard as a static site that needs no server and loads nothing from elsewhere.

    Example: scdrugmap results export results -o site
    """
    from scdrugmap.cli._console import console
    from scdrugmap.evaluation.result.result import load_result
    from scdrugmap.evaluation.result.site import export_site

    console.print(f"wrote {export_site(load_result(results), output, title=title)}")
