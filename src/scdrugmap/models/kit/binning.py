"""What models over binned log-expression share: the normalisation, and the file that lists their genes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import sparse

from scdrugmap._errors import CheckpointError


def log_normalized(X: sparse.csr_matrix, *, target_sum: float = 1e4, base: float = 2.0) -> np.ndarray:
    """Return ``log(1 + target_sum * count / total)`` to a base, for each stored value.

    Parameters
    ----------
    X
        Counts over the genes that make up the total.
    target_sum
        Total of a normalised cell.
    base
        Of the logarithm.

    Returns
    -------
    ``(nnz,)`` float32.

    Notes
    -----
    Every step is taken in float32 in this order, because values are truncated to integers afterwards: a value
    at the edge of a bin must fall on the side where the models saw it in training.

    Examples
    --------
    >>> log_normalized(sparse.csr_matrix([[1.0, 0.0, 3.0]]), target_sum=4)
    array([1., 2.], dtype=float32)
    """
    totals = np.asarray(X.sum(axis=1)).ravel().astype(np.float32)
    values = X.data.astype(np.float32)
    values /= np.repeat(totals / np.float32(target_sum), np.diff(X.indptr))
    np.log1p(values, out=values)
    values /= np.float32(np.log(base))
    return values


def read_genes(path: Path, expected: int, model: str) -> list[str]:
    """Read the order of a model's genes from a text file or from ``var_names`` of an h5ad file.

    Parameters
    ----------
    path
        One symbol per line, or an h5ad file of which only the gene axis is read.
    expected
        Number of genes that the weights hold.
    model
        Name for the message.

    Raises
    ------
    CheckpointError
        If the file is unreadable, or its genes are not that many distinct ones.
    """
    try:
        genes = _var_names(path) if path.suffix == ".h5ad" else path.read_text().split()
    except (OSError, KeyError, ValueError, AttributeError) as error:
        raise CheckpointError(
            "checkpoint",
            f"{path.name}: {error}",
            "one gene symbol per line, or an h5ad file",
            f"copy the gene list of {model} again.",
        ) from error
    distinct = len(set(genes))
    if len(genes) != expected or distinct != expected:
        raise CheckpointError(
            "checkpoint",
            f"{path.name} with {len(genes):,} genes, {distinct:,} of them distinct",
            f"exactly the {expected:,} genes of the weights, in their order",
            f"take the gene list that belongs to these weights of {model}; the order cannot be guessed.",
        )
    return genes


def _var_names(path: Path) -> list[str]:
    """The gene axis of an h5ad file; old ones hold ``var`` as one compound array."""
    import h5py

    with h5py.File(path) as file:
        var = file["var"]
        if isinstance(var, h5py.Dataset):
            names = var[()]["index" if "index" in var.dtype.names else "_index"]
        else:
            names = var[var.attrs["_index"]][()]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]
