"""When a request is worth another try, and how long to wait before it: one rule for downloads and chat models."""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

#: Answers below 500 that may be other ones later: timeout, conflict, too early, too many requests.
_PASSING = (408, 409, 425, 429)


def passing(status: int) -> bool:
    """Whether the same request may succeed later.

    Parameters
    ----------
    status
        Status code of an HTTP answer.

    Examples
    --------
    >>> passing(429), passing(503), passing(404)
    (True, True, False)
    """
    return status in _PASSING or status >= 500


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to wait: a number, milliseconds or a date.

    Parameters
    ----------
    headers
        Headers of an HTTP answer, found whatever their case.

    Examples
    --------
    >>> retry_after({"Retry-After": "2.5"}), retry_after({"retry-after-ms": "300"}), retry_after({})
    (2.5, 0.3, None)
    """
    lower = {name.lower(): value for name, value in headers.items()}
    milliseconds, value = lower.get("retry-after-ms"), lower.get("retry-after")
    try:
        if milliseconds is not None:
            seconds = float(milliseconds) / 1000
        elif value is None:
            return None
        elif re.fullmatch(r"[\d.]+", value.strip()):
            seconds = float(value)
        else:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError):
        return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


class Backoff:
    """Waits that double up to a limit, each shortened at random so that clients spread out.

    Parameters
    ----------
    first
        Seconds before the second try.
    longest
        Most seconds.
    seed
        Seed of the jitter. By default each client draws its own, for clients with the same seed would not spread.

    Examples
    --------
    >>> backoff = Backoff(1.0, 30.0, seed=0)
    >>> [bool(0.5 * 2**n <= backoff.seconds(n) <= 2**n) for n in range(4)]
    [True, True, True, True]
    """

    def __init__(self, first: float, longest: float, seed: int | None = None) -> None:
        self.first, self.longest = first, longest
        self._jitter = random.Random(seed)

    def seconds(self, failures: int) -> float:
        """Seconds to wait after ``failures`` earlier waits."""
        return self._jitter.uniform(0.5, 1) * min(self.first * 2.0**failures, self.longest)
