"""Several cards in one machine: one worker process per card, over the same matrix and the same store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from scdrugmap._errors import InputError


@contextmanager
def one_per_card(cards: Sequence[str] | None = None, *, threads: int = 4) -> Iterator[Any]:
    """Open a Dask client with one worker process per card of this machine.

    While it is open, :func:`scdrugmap.tl.embed` spreads the chunks of a Dask array over the cards, with or without ``store``.

    Parameters
    ----------
    cards
        Cards as ``CUDA_VISIBLE_DEVICES`` names them, one worker for each; by default all. An empty name is a worker without
        a card.
    threads
        Threads of each process, which read and tokenise beside the card.

    Yields
    ------
    The client.

    Raises
    ------
    InputError
        If there is no card and none is named.

    Examples
    --------
    >>> from scdrugmap.embedding.cards import one_per_card
    >>> with one_per_card() as client:  # doctest: +SKIP
    ...     sd.tl.embed(adata, "scgpt", store="embedding")
    """
    import distributed
    import torch

    if cards is None:
        cards = [str(i) for i in range(torch.cuda.device_count())]
    if not cards:
        raise InputError(
            "cards", "no card in this machine", "one or more", "leave the client out: the processor is used."
        )
    workers = {
        i: {
            "cls": distributed.Nanny,
            # A worker sees its own card alone, under the name cuda:0.
            "options": {"nthreads": threads, "env": {"CUDA_VISIBLE_DEVICES": card}, "name": f"card-{i}"},
        }
        for i, card in enumerate(cards)
    }
    scheduler = {"cls": distributed.Scheduler, "options": {"dashboard": False}}
    with distributed.SpecCluster(workers, scheduler) as cluster, distributed.Client(cluster) as client:
        yield client
