"""How the command line ends: one sentence on standard error and a code that a script can read."""

from __future__ import annotations

import sys
from typing import Any

import typer

from scdrugmap._errors import (
    CheckpointError,
    InputError,
    InputTypeError,
    MissingKeyError,
    OutputError,
    ScDrugMapError,
    SpecError,
    UnknownNameError,
)
from scdrugmap.cli._help import Group

DONE, FAILED, USAGE, REFUSED, PARTLY, INTERRUPTED = 0, 1, 2, 3, 4, 130


def code_of(error: BaseException) -> int:
    """Exit code of an error: wrong usage, refused input, or any other failure (network, licence, disk).

    Parameters
    ----------
    error
        What ended the command.
    """
    from scdrugmap.spec import PREPARE, TOOLS, extra_of

    if isinstance(error, SpecError | UnknownNameError | OutputError | InputTypeError):
        return USAGE
    if isinstance(error, MissingKeyError | CheckpointError):
        return REFUSED
    if isinstance(error, InputError):
        groups = {n: extra_of(f)["group"] for spec in (PREPARE | TOOLS).values() for n, f in spec.model_fields.items()}
        return REFUSED if groups.get(error.argument.split()[0], "data") == "data" else USAGE
    return FAILED


class Commands(Group):
    """The commands; an error of the user's making ends with its code and one sentence."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except (ScDrugMapError, OSError) as error:
            print(f"scdrugmap: {error}", file=sys.stderr)
            raise typer.Exit(code_of(error)) from None
        except KeyboardInterrupt:
            print("scdrugmap: interrupted; call it again to go on where a store is given", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
