"""Sums of gene vectors by expression value: a sparse matrix of cells times a dense table of genes."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn


class GeneSum(nn.Module):
    """Sum of gene vectors by expression value.

    The product is bound by memory, not by arithmetic. So on a processor the genes that many cells of a batch express go
    through one dense product, which reads each vector once for all cells; the rest is gathered from the table cell by cell, in
    strips of few channels, for a strip fits a processor's cache and the whole table does not.

    Parameters
    ----------
    n_genes, dim
        Rows and width of the table.

    Examples
    --------
    >>> genes = GeneSum(3, 4)
    >>> genes(torch.tensor([0, 2]), torch.ones(2), torch.tensor([0, 1])).shape
    torch.Size([2, 4])
    """

    strip: ClassVar[int] = 256
    #: Share of the cells from which on a gene is cheaper in the dense product; twice or half of it costs a few percent.
    common: ClassVar[float] = 0.15
    #: With fewer cells there is little to share.
    fewest: ClassVar[int] = 64

    def __init__(self, n_genes: int, dim: int) -> None:
        super().__init__()
        widths = [min(self.strip, dim - i) for i in range(0, dim, self.strip)]
        self.n_genes = n_genes
        self.tables = nn.ModuleList(nn.EmbeddingBag(n_genes, w, mode="sum") for w in widths)

    def forward(self, ids: Tensor, values: Tensor, offsets: Tensor) -> Tensor:
        """Sum ``values`` times the vectors of ``ids`` over the cells that begin at ``offsets``; a gene stands once in a cell."""
        n = len(offsets)
        if ids.device.type != "cpu" or n < self.fewest:
            return self._gathered(ids, values, offsets)
        with torch.autocast("cpu", enabled=False):
            return self._divided(ids, values, offsets)

    def _gathered(self, ids: Tensor, values: Tensor, offsets: Tensor) -> Tensor:
        return torch.cat([table(ids, offsets, per_sample_weights=values) for table in self.tables], dim=1)

    def _divided(self, ids: Tensor, values: Tensor, offsets: Tensor) -> Tensor:
        """Common genes in a dense product, the others gathered."""
        n, n_genes = len(offsets), self.n_genes
        cells = torch.bincount(ids, minlength=n_genes)  # (genes,)
        common = torch.nonzero(cells >= self.common * n).squeeze(1)
        k = len(common)
        place = torch.full((n_genes,), k, dtype=torch.int32)
        place[common] = torch.arange(k, dtype=torch.int32)
        column = place.index_select(0, ids)
        ends = torch.cat([offsets[1:], offsets.new_tensor([len(ids)])])
        # The other genes share a last column that nothing reads.
        flat = torch.repeat_interleave(torch.arange(n) * (k + 1), ends - offsets) + column
        X = values.new_zeros(n * (k + 1)).scatter(0, flat, values).view(n, k + 1)[:, :k]  # (cells, common genes)
        rest = torch.nonzero(column == k).squeeze(1)
        begins = torch.searchsorted(rest, offsets.long()).to(ids.dtype)
        gathered = self._gathered(ids.index_select(0, rest), values.index_select(0, rest), begins)
        weights = [table.get_parameter("weight").index_select(0, common) for table in self.tables]
        strips = zip(gathered.split(self.strip, dim=1), weights, strict=True)
        return torch.cat([torch.addmm(strip, X, weight) for strip, weight in strips], dim=1)
