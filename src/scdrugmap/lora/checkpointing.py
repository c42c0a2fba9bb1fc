"""Gradient checkpointing: layers keep their input alone and are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from scdrugmap._errors import InputError

#: Names under which networks list their layers.
_LISTS = ("blocks", "layers")


@contextmanager
def checkpointed(network: nn.Module, wanted: bool = True) -> Iterator[int]:
    """Let the layers of a network forget their activations while the context lasts; yields how many do.

    The gradients are the same: what is computed again draws the same dropout.

    Parameters
    ----------
    network
        Its layers stand in a list named ``blocks`` or ``layers``; those that do so anyway are left as they are.
    wanted
        ``False`` changes nothing.

    Raises
    ------
    InputError
        If the network has no such list.

    Examples
    --------
    >>> net = nn.Module()
    >>> net.blocks = nn.ModuleList([nn.Linear(2, 2)])
    >>> with checkpointed(net) as n:
    ...     n
    1
    """
    blocks = _blocks(network) if wanted else []
    if wanted and not blocks:
        raise InputError(
            "lora_options['gradient_checkpointing']", "a network without a list of layers",
            "layers in a ModuleList named 'blocks' or 'layers'", "leave the option out.",
        )  # fmt: skip
    blocks = [b for b in blocks if not getattr(b, "keeps_input_alone", False)]
    for block in blocks:
        # An attribute of the instance goes before the method of its class.
        block.forward = partial(_again, block.forward)
    try:
        yield len(blocks)
    finally:
        for block in blocks:
            del block.forward


def _blocks(network: nn.Module) -> list[nn.Module]:
    lists = [
        m for name, m in network.named_modules()
        if isinstance(m, nn.ModuleList) and name.rsplit(".", 1)[-1] in _LISTS
    ]  # fmt: skip
    return [block for found in lists for block in found]


def _again(forward: Any, *arguments: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments, **options)
    return checkpoint(forward, *arguments, use_reentrant=False, **options)
