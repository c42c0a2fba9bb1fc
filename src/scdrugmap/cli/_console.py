"""The console that results are printed to, the one that progress is shown on, and the two forms of a table: for people and for programs."""

from __future__ import annotations

import json
import sys
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

#: Wide enough for tables when the output goes into a file or a pipe.
console = Console(width=None if sys.stdout.isatty() else 150)
#: Progress never mixes with results that go into a file or a pipe.
progress = Console(stderr=True, width=None if sys.stderr.isatty() else 150)


def print_table(frame: Any, title: str, limit: int = 40, *, as_json: bool = False) -> None:
    """Print a data frame; long ones are cut with a word about it.

    Parameters
    ----------
    frame
        A data frame.
    title
        Shown above it.
    limit
        Most rows.
    as_json
        Print all rows as a JSON list instead, one object per row.
    """
    if as_json:
        return typer.echo(frame.to_json(orient="records", indent=1, date_format="iso", default_handler=str))
    table = Table(title=title, title_justify="left")
    for column in frame.columns:
        table.add_column(str(column), overflow="fold")
    for row in frame.head(limit).itertuples(index=False):
        table.add_row(*(_shown(v) for v in row))
    console.print(table)
    if len(frame) > limit:
        console.print(f"... and {len(frame) - limit} more rows")


def print_json(**values: Any) -> None:
    """Print one JSON object."""
    typer.echo(json.dumps(values, indent=1, default=str))


def _shown(value: Any) -> str:
    import pandas as pd

    if value is None or (not isinstance(value, str | list | tuple) and pd.isna(value)):
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
