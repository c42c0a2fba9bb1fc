"""Work that runs ahead of whoever takes it: one thread, a bounded number of items, the same order and the same errors."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
#: How often a thread whose items nobody takes looks whether it is still wanted, in seconds.
_LOOK = 0.05


@dataclass(frozen=True)
class _Failed:
    """What ended the work."""

    error: BaseException


class _Over:
    """There are no more items."""


def ahead(items: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """Yield the items of an iterable that a thread of its own goes through.

    Parameters
    ----------
    items
        What is worked out ahead; only that thread touches it.
    depth
        Items that may wait. One more is being worked out, so that memory is bounded by ``depth + 1`` items beside the one in
        use.

    Raises
    ------
    BaseException
        What ``items`` raises, at the place where its next item would have come.

    Examples
    --------
    >>> list(ahead(range(3)))
    [0, 1, 2]
    """
    waiting: queue.Queue[Any] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: Any) -> bool:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=_LOOK)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    return
                del item  # or the last one would be held while the next is worked out
            put(_Over())
        except BaseException as error:  # noqa: BLE001  it is raised again where the item is asked for
            put(_Failed(error))

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(work,), name="scdrugmap-ahead", daemon=True)
    thread.start()
    try:
        while not isinstance(item := waiting.get(), _Over):
            if isinstance(item, _Failed):
                raise item.error
            yield item
            del item
    finally:
        stop.set()
        thread.join()
