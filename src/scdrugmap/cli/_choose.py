"""``scdrugmap recommend``: the table and the sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from scdrugmap.cli._console import console, print_table
from scdrugmap.datasets.files import check_writable, read_cells, write_frame

#: Columns for people; JSON and files hold all.
SHOWN = [
    "model", "species_fits", "of_counts", "n_parameters", "memory_gb", "cells_per_second", "hours", "commercial",
    "published_cross", "left_out", "note",
]  # fmt: skip


def run_recommend(input: Path, output: Path | None, *, as_json: bool, **arguments: Any) -> None:
    """Print and write what :func:`scdrugmap.tl.recommend` says.

    Parameters
    ----------
    input, output
        Files; the second is optional.
    as_json
        Print JSON.
    **arguments
        Of the tool.
    """
    import scdrugmap as sd

    if output is not None:
        check_writable(output, ".csv", ".parquet")
    advice = sd.tl.recommend(read_cells(input), **arguments)
    if output is not None:
        write_frame(advice.table, output, index=False)
    if as_json:
        rows = json.loads(advice.table.to_json(orient="records", default_handler=str))
        return typer.echo(json.dumps({"table": rows, "sentence": advice.sentence, "winner": advice.winner}, indent=1))
    probed = [c for c in advice.table if c in ("auroc", "ci_low", "ci_high")]
    print_table(advice.table[[*SHOWN[:-2], *probed, *SHOWN[-2:]]], "models for these cells")
    console.print(advice.sentence, soft_wrap=True)
