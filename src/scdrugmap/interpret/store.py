"""Attributions on disk that grow block by block and survive a kill, like :mod:`scdrugmap.embedding.store`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import zarr
from scipy import sparse

from scdrugmap import __version__
from scdrugmap._errors import InputError, OutputError
from scdrugmap.interpret.explained import Explained
from scdrugmap.interpret.scoring import Scorer

#: Arrays of a block, those of the CSR first.
PARTS = ("indptr", "indices", "data", "gap", "n_steps")


@dataclass(frozen=True)
class AttributionStore:
    """Zarr group with one group of arrays per block of cells and ``done``, the digest of each finished block's cells.

    Parameters
    ----------
    group
        Of the zarr library.
    """

    group: Any

    @classmethod
    def open(cls, path: Path, n_blocks: int, fingerprint: str) -> AttributionStore:
        """Open a store, or begin one.

        Raises
        ------
        InputError
            If the folder belongs to a call with other arguments.
        """
        try:
            group: Any = zarr.open_group(path, mode="a")
        except zarr.errors.ContainsArrayError as error:
            raise OutputError("folder", path, FileExistsError(0, str(error))) from None
        except OSError as error:
            raise OutputError("folder", path, error) from None
        if "done" not in group:
            group.attrs.update({"fingerprint": fingerprint})
            group.create_array("done", shape=(max(n_blocks, 1), 32), chunks=(1, 32), dtype="uint8", fill_value=0)
        elif dict(group.attrs).get("fingerprint") != fingerprint or group["done"].shape[0] != max(n_blocks, 1):
            raise InputError(
                "folder",
                f"{path.name} holds attributions of another predictor, method, baseline, seed or cell set",
                "an empty folder, or that of the same call",
                "choose another folder or delete this one.",
            )
        return cls(group)

    def read(self, block: int, digest: bytes, n_genes: int) -> Explained | None:
        """Attributions of a block that was finished on these very counts, else ``None``."""
        if bytes(np.asarray(self.group["done"][block], dtype=np.uint8)) != digest:
            return None
        parts = {name: np.asarray(self.group[f"{block}/{name}"][:]) for name in PARTS}
        n = len(parts["indptr"]) - 1
        stored = parts["indptr"][-1]
        values = sparse.csr_matrix((parts["data"][:stored], parts["indices"][:stored], parts["indptr"]), (n, n_genes))
        return Explained(values, parts["gap"], parts["n_steps"])

    def write(self, block: int, digest: bytes, part: Explained) -> None:
        """Write the values first, then the mark; a kill in between only repeats the block."""
        arrays = (part.values.indptr, part.values.indices, part.values.data, part.gap, part.n_steps)
        for name, array in zip(PARTS, arrays, strict=True):
            # An array without entries has no chunk; one that is never read stands for it.
            self.group.create_array(
                f"{block}/{name}", data=array if len(array) else np.zeros(1, array.dtype), overwrite=True
            )
        self.group["done"][block] = np.frombuffer(digest, dtype=np.uint8)


def fingerprint(scorer: Scorer, rows: np.ndarray, **options: Any) -> str:
    """Everything but the counts that decides attributions: predictor, genes, cells that were drawn, options."""
    model = scorer.network
    if model is None:
        weights = joblib.hash(dict(scorer.representation.model.state()))
    else:
        state = model.network.state_dict()
        weights = joblib.hash({k: v.detach().float().cpu().numpy() for k, v in state.items()})
    parts = {
        "version": __version__,
        "representation": weights,
        "options": None if model is None else model.options.model_dump(mode="json"),
        "head": joblib.hash(scorer.predictor.head),
        "genes": hashlib.sha256("\n".join(map(str, scorer.genes.names)).encode()).hexdigest(),
        "cells": hashlib.sha256(np.ascontiguousarray(rows, dtype=np.int64).tobytes()).hexdigest(),
        **options,
    }
    return json.dumps(parts, sort_keys=True, default=str)
