"""Nobody's cells are replaced by their own annotated copy unasked."""

from __future__ import annotations

import sys

import typer

from scdrugmap._errors import SpecError
from scdrugmap.spec import RunSpec


def refuse_own_input(spec: RunSpec) -> None:
    """Raise if the output is the input, unless that is wanted: by flag, or by answer in a terminal.

    Parameters
    ----------
    spec
        What will run.

    Raises
    ------
    SpecError
        If the input would be replaced.
    """
    if getattr(spec, "overwrite", True) or spec.input.resolve() != spec.output.resolve():
        return
    if (
        sys.stdin.isatty()
        and sys.stderr.isatty()
        and typer.confirm(f"replace {spec.input} by its annotated copy?", err=True)
    ):
        return
    raise SpecError("output", str(spec.output), "another file than the input", "pass --overwrite, or another name.")
