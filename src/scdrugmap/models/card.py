"""The record that says what a model is, before any of its weights are read."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Literal

from scdrugmap._keys import KEYS


def model_key(name: str) -> str:
    """Lower case without punctuation: ``"Llama-3-8B"`` -> ``"llama38b"``."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


_COUNTED = ("vocab_size", "max_length", "n_parameters")


@dataclass(frozen=True, repr=False)
class ModelCard:
    """What a model is, what it needs and under which terms.

    Parameters
    ----------
    name
        Name as its authors write it.
    kind
        ``"network"`` (official weights), ``"fitted"`` (a baseline fitted on training cells) or
        ``"prompt"`` (a chat model that answers, without an embedding).
    architecture
        One line.
    gene_id
        Identifier that the vocabulary holds.
    needs_counts
        Whether raw counts are required.
    context
        ``"cell"`` if a cell's embedding depends on that cell alone, ``"group"`` if cells of a group see each other.
    dim, vocab_size, max_length, n_parameters
        Of the default official checkpoint; parameters of the encoder that the embedding needs.
    lora_targets
        Names of the linear layers that LoRA adapts by default.
    checkpoints
        Keys of the checkpoint registry, the default first.
    weights_licence
        Licence of the weights, in words.
    commercial
        Whether the weights may be used commercially; ``None`` if their authors do not say.
    gated
        Whether access has to be requested.
    """

    name: str
    kind: Literal["network", "fitted", "prompt"]
    architecture: str
    year: int
    citation: str
    aliases: tuple[str, ...] = ()
    species: tuple[str, ...] = ("human",)
    gene_id: Literal["symbol", "ensembl"] | None = None
    needs_counts: bool = True
    context: Literal["cell", "group"] = "cell"
    dim: int | None = None
    vocab_size: int | None = None
    max_length: int | None = None
    n_parameters: int | None = None
    lora_targets: tuple[str, ...] = ()
    checkpoints: tuple[str, ...] = ()
    weights_licence: str = "none: fitted on the user's cells"
    commercial: bool | None = True
    gated: bool = False

    @property
    def key(self) -> str:
        """The name in registries and files, for example ``"llama38b"``."""
        return model_key(self.name)

    @property
    def stem(self) -> str:
        """The name of its slots: ``uns["llama38b"]``, and ``uns["scdrugmap_pca"]`` for a baseline."""
        return KEYS.stem(self.key, self.kind)

    def __str__(self) -> str:
        shown = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}
        lines = [f"{self.name}: {self.architecture}"]
        for name, value in shown.items():
            if name == "architecture" or value is None or value == ():
                continue
            text = (
                ", ".join(map(str, value)) if isinstance(value, tuple) else f"{value:,}" if name in _COUNTED else value
            )
            lines.append(f"  {name:<16} {text}")
        return "\n".join(lines)

    __repr__ = __str__
