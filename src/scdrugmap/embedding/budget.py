"""How many padded tokens one forward pass may hold: a model's own number on a processor, free memory on a card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

#: A card is first given this many times the tokens of a processor, whose caches the activations should fit.
FIRST = 4
#: Beyond this many times those tokens a card is no faster.
MOST = 64
#: Share of the free memory that passes may fill; what a pass takes grows faster than its tokens where lengths differ.
SHARE = 0.5


class Memory(Protocol):
    """Memory of a device."""

    def free(self) -> int:
        """Bytes that may still be taken."""

    def forget(self) -> None:
        """Measure from now on."""

    def taken(self) -> int:
        """Most bytes that were in use at a time since, over those in use when measuring began."""


@dataclass
class CardMemory:
    """Memory of a CUDA device."""

    device: torch.device
    before: int = 0

    def free(self) -> int:
        """Free bytes, with those that PyTorch holds in reserve."""
        reserve = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return int(torch.cuda.mem_get_info(self.device)[0]) + reserve

    def forget(self) -> None:
        """Measure from now on."""
        torch.cuda.reset_peak_memory_stats(self.device)
        self.before = torch.cuda.memory_allocated(self.device)

    def taken(self) -> int:
        """Peak since :meth:`forget`."""
        return int(torch.cuda.max_memory_allocated(self.device)) - self.before


class Budget:
    """Padded tokens of one forward pass.

    Parameters
    ----------
    own
        The model's number for a processor.
    memory
        Of the card; ``None`` on a processor, where the number stays.

    Examples
    --------
    >>> budget = Budget(1000, None)
    >>> budget.halve(600)
    >>> budget.tokens
    300
    """

    def __init__(self, own: int, memory: Memory | None) -> None:
        self.own, self.memory = own, memory
        self.tokens = own if memory is None else own * FIRST
        self.settled = memory is None
        self.halved = False

    def begin(self) -> None:
        """A pass begins."""
        if self.memory is not None and not self.settled:
            self.memory.forget()

    def end(self, tokens: int) -> None:
        """A pass over so many padded tokens went well: the first tells what one takes."""
        if self.memory is None or self.settled or tokens < self.own:
            return
        each = max(self.memory.taken() / tokens, 1)
        self.tokens = int(min(max(SHARE * self.memory.free() / each, 1), self.own * MOST))
        self.settled = True

    def halve(self, tokens: int) -> None:
        """A pass over so many padded tokens found too little memory."""
        self.tokens = max(min(self.tokens, tokens) // 2, 1)
        self.settled = self.halved = True
