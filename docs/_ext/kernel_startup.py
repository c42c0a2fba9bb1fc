"""Runs in the kernel of every page before its first cell: output as a terminal shows it, without places on this machine."""

import subprocess
import warnings

from IPython.core.magic import register_cell_magic


@register_cell_magic
def bash(line, cell):
    """Print everything at once: IPython's own magic hands it over in pieces, which the pages break into lines."""
    done = subprocess.run(["bash", "-c", cell], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, end="")
    done.check_returncode()


warnings.formatwarning = lambda message, category, *place, **more: f"{category.__name__}: {message}\n"
