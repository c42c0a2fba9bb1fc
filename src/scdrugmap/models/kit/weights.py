"""Random weights that are the same on every platform and PyTorch version."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


@torch.no_grad()
def randomize(network: nn.Module, rng: int) -> None:
    """Fill a network from NumPy's generator: matrices ``N(0, 1/fan_in)``, norms near one, biases near zero.

    Parameters
    ----------
    network
        Changed in place, parameters in the order of ``named_parameters``.
    rng
        Seed of ``numpy.random.Generator(PCG64)``.
    """
    generator = np.random.Generator(np.random.PCG64(rng))
    for name, parameter in network.named_parameters():
        draw = generator.standard_normal(tuple(parameter.shape), dtype=np.float32)
        if parameter.ndim > 1:
            values = draw / np.sqrt(parameter.shape[-1])
        else:
            values = 0.05 * draw + (1.0 if name.endswith("weight") else 0.0)
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)))
