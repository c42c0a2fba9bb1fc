"""The command line: ``scdrugmap --help``."""

from __future__ import annotations

import sys
import warnings
from typing import Any


def main() -> None:
    """Run the command line; it ends with one of the codes of :mod:`scdrugmap.cli._exit`."""
    from scdrugmap.cli._app import app

    python = warnings.showwarning

    def say(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        """Print our own warnings as a sentence: a file and a line of code help nobody here."""
        from scdrugmap._errors import ScDrugMapWarning

        if issubclass(category, ScDrugMapWarning):
            print(f"warning: {message}", file=sys.stderr)
        else:
            python(message, category, *place, **more)

    warnings.showwarning = say
    app(prog_name="scdrugmap")
