"""How many threads small tensor operations get."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

#: Below this many floating-point operations per step, waiting for a second thread costs more than it gives:
#: on a busy machine each operation then waits for a time slice.
WORTH_THREADS = 2e9


@contextmanager
def threads_for(flops: float) -> Iterator[None]:
    """Run with one thread where a step is small, and with the caller's number where it is large.

    Parameters
    ----------
    flops
        Floating-point operations of one step.
    """
    import torch

    before = torch.get_num_threads()
    try:
        if flops < WORTH_THREADS:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)
