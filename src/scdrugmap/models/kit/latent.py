"""The mean of a latent Gaussian, or of a Gaussian mixture read through one of its components."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Latent(nn.Module):
    """Mean of the latent Gaussian, read through one component of a mixture if there is one."""

    def __init__(self, dim: int, latent_dim: int, clusters: int, hidden: int) -> None:
        super().__init__()
        self.cluster = nn.Linear(dim, clusters) if clusters else None
        self.hidden = nn.Linear(dim + clusters, hidden) if clusters else None
        self.mean = nn.Linear(hidden if clusters else dim, latent_dim)

    def forward(self, x: Tensor, draws: Tensor | None = None) -> Tensor:
        """Return the mean; with ``(n, clusters)`` uniform draws the component is a sample of its posterior."""
        if self.hidden is None:
            return self.mean(x)
        return self.mean(F.relu(self.hidden(torch.cat([x, self.component(x, draws).to(x.dtype)], dim=1))))

    def component(self, x: Tensor, draws: Tensor | None = None) -> Tensor:
        """Return the component of each cell as indicators, ``(n, clusters)``."""
        assert self.cluster is not None
        scores = self.cluster(x).float()  # (cells, clusters)
        if draws is not None:
            # The maximum after adding Gumbel noise is a draw from the softmax; the small terms keep both logarithms finite.
            scores = scores - torch.log(-torch.log(draws + 1e-20) + 1e-20)
        return F.one_hot(scores.argmax(1), scores.shape[1])
