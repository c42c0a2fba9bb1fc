"""The package's logger and progress bars."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


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


@contextmanager
def progress(total: int | None, description: str, unit: str, *, show: bool | None = None) -> Iterator[Any]:
    """Yield a ``tqdm`` bar (done, rate, time left); silent unless a terminal or notebook watches.

    Parameters
    ----------
    total
        Number of units of work, if known.
    description
        Text in front of the bar.
    unit
        What is counted: ``"cell"``, ``"B"`` ...
    show
        ``True`` or ``False`` to force; ``None`` shows it on a terminal at verbosity ``info`` and above
        or whenever the standard error is a terminal.
    """
    from tqdm.auto import tqdm

    disable = not sys.stderr.isatty() if show is None else not show
    bar = tqdm(total=total, desc=description, unit=unit, unit_scale=unit == "B", disable=disable, leave=False)
    try:
        yield bar
    finally:
        bar.close()
