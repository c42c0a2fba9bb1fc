"""Every recorded value of the official implementations, and the public options that give it.

A row reads: ``sd.tl.embed(input, model, checkpoint=parity/<folder>, **options)`` equals ``expected.npz[array]``
within ``atol``. Tokens and hidden states are compared in the tests of each model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    model: str
    array: str
    atol: float
    options: dict[str, Any] = field(default_factory=dict)
    checkpoint: str = "checkpoint"
    folder: str | None = None
    rows: str | None = None
    """Array of expected.npz that holds the rows of the input which the expected array covers."""

    @property
    def id(self) -> str:
        return f"{self.model}-{self.folder or ''}{self.checkpoint}-{self.array}"


CASES: list[Case] = [
    # tGPT
    # Geneformer
    # Llama-3-8B
    # scGPT
    # UCE
    # scBERT
    # CellLM
    # scFoundation
    # CellPLM
]
