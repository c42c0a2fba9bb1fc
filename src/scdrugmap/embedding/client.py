"""Which cluster this process should use; importing this needs neither dask nor torch."""

from __future__ import annotations

import sys
from typing import Any


def active_client() -> Any | None:
    """Return the ``dask.distributed`` client of joblib's context, or the one that is open in this process.

    ``None`` without a client, and inside a task, which does its own work.

    Examples
    --------
    >>> active_client() is None
    True
    """
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        distributed.get_worker()
    except ValueError:
        pass
    else:
        return None
    from joblib.parallel import get_active_backend

    client = getattr(get_active_backend()[0], "client", None)
    if client is None:
        try:
            client = distributed.default_client()
        except ValueError:
            return None
    return client if client.status == "running" and not client.asynchronous else None
