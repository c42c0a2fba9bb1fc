"""In which numbers a network computes, and whether coarser ones serve."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from scdrugmap.models.base import NetworkModel
from scdrugmap.models.kit.tokens import Tokens

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: Least cosine of a cell's embedding in bfloat16 to that in float32 at which a processor computes in bfloat16.
AGREEMENT = 0.9995
#: Cells that are compared.
PROBED = 8


class Arithmetic:
    """Inference mode, with autocast below float32.

    Parameters
    ----------
    device
        Where the network is.
    precision
        A name of :data:`DTYPES`.
    """

    def __init__(self, device: torch.device, precision: str) -> None:
        self.contexts: list[Any] = [torch.inference_mode()]
        if precision != "float32":
            self.contexts.append(torch.autocast(device.type, dtype=DTYPES[precision]))

    def __enter__(self) -> None:
        for context in self.contexts:
            context.__enter__()

    def __exit__(self, *exc: object) -> None:
        for context in reversed(self.contexts):
            context.__exit__(*exc)


def bfloat16_serves(model: NetworkModel, tokens: Tokens) -> bool:
    """Whether bfloat16 gives the embeddings of some cells nearly as float32 does, on the processor.

    Parameters
    ----------
    model
        The model, on the processor.
    tokens
        A few cells.

    Returns
    -------
    True where every cell with an embedding agrees to a cosine of :data:`AGREEMENT`; False where there is none.
    """
    rows = np.flatnonzero(tokens.usable)
    if not len(rows):
        return False
    plan = model.plan(tokens, model.token_budget, None)
    values = {name: _embedded(model, tokens, plan, name) for name in ("float32", "bfloat16")}
    exact, rough = (v[rows].astype(np.float64) for v in values.values())
    norms = np.linalg.norm(exact, axis=1) * np.linalg.norm(rough, axis=1)
    cosine = (exact * rough).sum(1) / np.maximum(norms, np.finfo(float).tiny)
    return bool((cosine >= AGREEMENT).all())


def _embedded(model: NetworkModel, tokens: Tokens, plan: list[np.ndarray], precision: str) -> np.ndarray:
    out = np.full((len(tokens), model.dim), np.nan, dtype=np.float32)
    for rows in plan:
        with Arithmetic(torch.device("cpu"), precision):
            out[rows] = model.network(model.collate(tokens.take(rows))).float().numpy()
    return out
