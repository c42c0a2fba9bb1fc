"""The command line: ``scdrugmap --help``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; errors of the user's making end with exit code 2 and one sentence."""
    from scdrugmap._errors import ScDrugMapError
    from scdrugmap.cli._app import app

    try:
        app(prog_name="scdrugmap")
    except (ScDrugMapError, OSError) as error:
        print(f"scdrugmap: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("scdrugmap: interrupted; call it again to go on where a store is given", file=sys.stderr)
        sys.exit(130)
