"""The command line: ``scdrugmap --help``."""

from __future__ import annotations


def main() -> None:
    """Run the command line; it ends with one of the codes of :mod:`scdrugmap.cli._exit`."""
    from scdrugmap.cli._app import app

    app(prog_name="scdrugmap")
