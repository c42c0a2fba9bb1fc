"""The one reader of the argument ``rng``."""

from __future__ import annotations

import numpy as np

from scdrugmap._errors import InputTypeError


def seed_of(rng: int | np.random.Generator | None) -> int:
    """Return the seed that an argument ``rng`` stands for.

    Parameters
    ----------
    rng
        A non-negative integer is the seed; a generator is asked for one; ``None`` is ``settings.seed``.

    Raises
    ------
    InputTypeError
        For anything else.

    Examples
    --------
    >>> seed_of(3)
    3
    """
    if rng is None:
        from scdrugmap.settings import settings

        return settings.seed
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(2**31))
    if isinstance(rng, int | np.integer) and not isinstance(rng, bool) and rng >= 0:
        return int(rng)
    raise InputTypeError("rng", repr(rng), "None, a non-negative int or a numpy Generator", "pass rng=0.")
