"""``scdrugmap bench``: the table of this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from scdrugmap.cli._console import print_table, progress
from scdrugmap.cli._exit import FAILED, PARTLY
from scdrugmap.datasets.files import check_writable, write_frame

#: Columns for people; JSON and files hold all.
SHOWN = ["model", "cells", "cells_per_second", "gflops", "matmul_gflops", "ratio", "network_share", "waiting_share",
         "feed_per_second", "memory_gb", "note"]  # fmt: skip


def run_bench(output: Path | None, *, as_json: bool, models: list[str], **arguments: Any) -> None:
    """Print and write what :func:`scdrugmap.testing.bench` measures.

    Parameters
    ----------
    output
        File for the table; optional.
    as_json
        Print JSON.
    models
        Names; one may hold several, divided by commas.
    **arguments
        Of the function.
    """
    import os
    import platform

    import scdrugmap as sd

    if output is not None:
        check_writable(output, ".csv", ".parquet")
    names = [part for name in models for part in name.split(",") if part] or None
    table = sd.testing.bench(names, show=lambda name: progress.print(f"measuring {name} ..."), **arguments)
    if output is not None:
        write_frame(table, output, index=False)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    if as_json:
        rows = json.loads(table.to_json(orient="records"))
        typer.echo(json.dumps({"machine": machine, "version": sd.__version__, "table": rows}, indent=1))
    else:
        print_table(table[SHOWN], f"speed on {machine}")
    missed = int(table["cells_per_second"].isna().sum())
    if missed:
        raise typer.Exit(FAILED if missed == len(table) else PARTLY)
