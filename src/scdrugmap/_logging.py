"""The package's logger, warnings and progress bars."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scdrugmap._errors import ScDrugMapWarning

_PACKAGE = str(Path(__file__).parent) + os.sep


def get_logger() -> logging.Logger:
    """Return the logger ``scdrugmap`` at the level of ``settings.verbosity``."""
    from scdrugmap.settings import settings

    logger = logging.getLogger("scdrugmap")
    logger.setLevel(settings.verbosity.upper())
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    return logger


def warn(text: str, category: type[Warning] = ScDrugMapWarning) -> None:
    """Warn at the line of the caller's own code: the first frame outside this package.

    Parameters
    ----------
    text
        The warning.
    category
        Its class.
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)


def watched() -> bool:
    """Whether someone sees a progress bar: on a terminal, or in a notebook."""
    if sys.stderr.isatty():
        return True
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and hasattr(shell, "kernel")


@contextmanager
def progress(total: int | None, description: str, unit: str, *, show: bool | None = None) -> Iterator[Any]:
    """Yield a ``tqdm`` bar (done, rate, time left); silent unless a terminal or a notebook watches.

    Parameters
    ----------
    total
        Number of units of work, if known.
    description
        Text in front of the bar.
    unit
        What is counted: ``"cell"``, ``"B"`` ...
    show
        ``True`` or ``False`` to force; ``None`` shows it on a terminal and in a notebook.
    """
    from tqdm.auto import tqdm

    disable = not watched() if show is None else not show
    bar = tqdm(total=total, desc=description, unit=unit, unit_scale=unit == "B", disable=disable, leave=False)
    try:
        yield bar
    finally:
        bar.close()
