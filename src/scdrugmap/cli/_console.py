"""The one console that the commands print to."""

from __future__ import annotations

import sys

from rich.console import Console

#: Wide enough for tables when the output goes into a file or a pipe.
console = Console(width=None if sys.stdout.isatty() else 150)
