"""Attribution where cells see each other: to a cell's own genes, with the other cells of its group held fixed."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from scdrugmap.interpret.explained import Explained
from scdrugmap.interpret.heads import torch_logit
from scdrugmap.interpret.paths import complete
from scdrugmap.interpret.tokens import NetworkInput


class GroupInput(NetworkInput):
    """A network that begins with a weighted sum of gene vectors per cell and then lets the cells see each other.

    Parameters
    ----------
    model, head, genes
        As for :class:`NetworkInput`.
    """

    def explain_group(
        self, X: sparse.csr_matrix, wanted: np.ndarray, reference: np.ndarray | None, n_genes: int, *, n_steps: int
    ) -> Explained:
        """Attribute for some cells of one group.

        Parameters
        ----------
        X
            Counts of the whole group.
        wanted
            Rows to explain: each needs passes of its own over the group.
        reference
            ``(aligned genes,)`` mean values to begin at; ``None`` begins at the empty cell.
        n_genes, n_steps
            As in :meth:`NetworkInput.explain`.
        """
        model, head = self.model, torch_logit(self.head, self.model.device)
        assert head is not None
        network = model.network.get_base_model() if hasattr(model.network, "get_base_model") else model.network
        counts, tokens = self.tokenise(X)
        usable = np.flatnonzero(tokens.usable)
        place = np.full(len(tokens), -1)
        place[usable] = np.arange(len(usable))
        wanted = wanted[place[wanted] >= 0]
        batch = {k: v.to(model.device) for k, v in model.collate(tokens.take(usable)).items()}
        sums = network.genes
        with torch.no_grad():
            x = sums(batch["ids"], batch["values"], batch["offsets"])
            vectors = torch.cat([table.weight for table in sums.tables], dim=1)[self._ids(model.device)].float()
            others = network.norm(network.dropout(torch.relu(network.linear(x)))).float()

        def value(z: Tensor, rows: Tensor) -> Tensor:
            out = []
            for i, row in enumerate(rows.tolist()):
                at = int(place[wanted[row]])
                mine = network.norm(network.dropout(torch.relu(network.linear(z[i : i + 1])))).float()
                seen = network.blocks(torch.cat([others[:at], mine, others[at + 1 :]]))
                draws = batch.get("uniforms")
                out.append(head(network.read(seen[at : at + 1], None if draws is None else draws[at : at + 1])))
            return torch.cat(out)

        mine = x[torch.as_tensor(place[wanted], device=x.device)]
        start = torch.zeros_like(mine)
        if reference is not None:
            start += torch.as_tensor(reference, dtype=torch.float32, device=x.device) @ vectors
        path = complete(value, mine, start, n_steps=n_steps)
        slopes = (path.gradient @ vectors.T).double().cpu().numpy()
        logged = counts.X.log1p()[wanted]
        if reference is None:
            rows = np.repeat(np.arange(len(wanted)), np.diff(logged.indptr))
            values = sparse.csr_matrix(
                (logged.data * slopes[rows, logged.indices], logged.indices, logged.indptr), logged.shape
            )
        else:
            values = sparse.csr_matrix((logged.toarray() - reference) * slopes)
        out = values.tocoo()
        placed = sparse.coo_matrix((out.data, (wanted[out.row], self.columns[out.col])), (len(tokens), n_genes)).tocsr()
        gap, steps = np.full(len(tokens), np.nan), np.zeros(len(tokens), dtype=np.int64)
        gap[wanted], steps[wanted] = path.gap, path.n_steps
        return Explained(sparse.csr_matrix(placed, dtype=np.float32), gap, steps)

    def mean_values(self, X: sparse.csr_matrix) -> np.ndarray:
        """Mean value of each aligned gene."""
        return np.asarray(self.tokenise(X)[0].X.log1p().mean(axis=0)).ravel()

    def _ids(self, device: torch.device) -> Tensor:
        return torch.as_tensor(self.alignment.ids, device=device)
