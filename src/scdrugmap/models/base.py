"""The protocol that every model follows.

A network model turns counts into tokens (``tokenize``), tokens into tensors (``collate``) and tensors into
embeddings (its ``network``); the inference engine and the training loop know nothing else about it. A fitted
model (``hvg``, ``pca``, ``scvi``) learns a representation from training cells and applies it to others.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy import sparse
from torch import Tensor, nn

from scdrugmap._errors import InputError, UnknownNameError
from scdrugmap.genes.identifiers import Genes
from scdrugmap.models.card import ModelCard
from scdrugmap.models.kit.counts import Alignment, Counts
from scdrugmap.models.kit.tokens import Tokens

Batch = dict[str, Tensor]


class ModelOptions(BaseModel):
    """Options of a model; a subclass adds fields, the field's default is the sound choice."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 0


class Model(ABC):
    """What network and fitted models share: a card and validated options."""

    card: ClassVar[ModelCard]
    Options: ClassVar[type[ModelOptions]] = ModelOptions
    #: Options that reproduce a published behaviour, by the name of the recipe.
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    options: Any
    recipe: str | None

    def __init__(self, *, recipe: str | None = None, **options: Any) -> None:
        if recipe is not None and recipe not in self.recipes:
            raise UnknownNameError("recipe", recipe, self.recipes, "recipe=None is the default.")
        self.recipe = recipe
        self.options = self._validated({**self.recipes.get(recipe or "", {}), **options})

    @classmethod
    def _validated(cls, options: Mapping[str, Any]) -> ModelOptions:
        for name in options:
            if name not in cls.Options.model_fields:
                known, see = [*cls.Options.model_fields, "recipe"], f"These are the options of {cls.card.name}."
                raise UnknownNameError("model_options", name, known, see)
        try:
            return cls.Options(**options)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"])) or "model_options"
            raise InputError(
                name, first.get("input"), first["msg"], f"see sd.models.info({cls.card.name!r})."
            ) from None

    @property
    def dim(self) -> int:
        """Width of the embedding."""
        raise NotImplementedError

    def gene_names(self, genes: Genes) -> np.ndarray:
        """Return the identifiers that this model's vocabulary is written in."""
        kind = self.card.gene_id or "symbol"
        names = genes.ensembl if kind == "ensembl" else genes.symbols
        if not (names != "").any():
            slot = "ensembl_id" if kind == "ensembl" else "gene_symbol"
            what = "Ensembl gene ids" if kind == "ensembl" else "gene symbols"
            raise InputError(
                "adata.var",
                f"no {what}",
                f"{what} in var[{slot!r}] or var_names, which {self.card.name} is trained on",
                "call sd.pp.harmonize_genes(adata) first.",
            )
        return names


class NetworkModel(Model):
    """A foundation model with official weights.

    A subclass sets ``card`` and ``Options`` and implements :meth:`from_checkpoint`, :attr:`vocabulary`,
    :meth:`tokenize` and :meth:`collate`; its ``network`` maps a batch to an ``(n, dim)`` tensor.
    """

    network: nn.Module
    #: SHA-256 of each file that was read, by file name.
    digests: Mapping[str, str]
    #: Whether any gene name can be used, so that no gene is foreign (models that read text).
    open_vocabulary: ClassVar[bool] = False
    #: Entries of the checkpoint registry that come with the model, by the keys on its card; only for plug-ins.
    checkpoints: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    #: Padded tokens in one forward pass on a CPU; the engine scales it on other devices.
    token_budget: ClassVar[int] = 16_384

    @classmethod
    @abstractmethod
    def from_checkpoint(cls, path: Path, **options: Any) -> Self:
        """Read a checkpoint in the official layout (a folder, or the weight file inside one)."""

    @classmethod
    @abstractmethod
    def random(cls, genes: Genes, *, size: Literal["tiny", "official"] = "tiny", rng: int = 0, **options: Any) -> Self:
        """Build the architecture with random weights, for tests, benchmarks and examples without a download.

        The vocabulary holds ``genes`` (and, at the official size, placeholders up to the official number);
        ``"tiny"`` is a few layers of width 16 to 32, ``"official"`` the sizes of the default checkpoint.
        """

    @property
    @abstractmethod
    def vocabulary(self) -> Mapping[str, int]:
        """Gene identifier to id."""

    @abstractmethod
    def tokenize(self, counts: Counts) -> Tokens:
        """Turn a block of cells into token sequences; pure."""

    @abstractmethod
    def collate(self, tokens: Tokens) -> Batch:
        """Pad sequences into the tensors of one forward pass, on the CPU."""

    def token_columns(self, tokens: Tokens, counts: Counts) -> np.ndarray:
        """Column of ``counts`` that each token stands for, ``(total,)``; -1 for a token that stands for no gene."""
        order = np.argsort(counts.ids, kind="stable")
        place = np.minimum(np.searchsorted(counts.ids, tokens.ids, sorter=order), len(order) - 1)
        return np.where(counts.ids[order[place]] == tokens.ids, order[place], -1)

    #: The engine's blocks hold a multiple of this many rows; only recipes with fixed batches need it.
    block_multiple: int = 1

    def prepared(self) -> Self:
        """Put the network into evaluation mode; returns the model."""
        self.network.eval()
        return self

    def align(self, genes: Genes) -> Alignment:
        """Match the data set's genes to the vocabulary."""
        return Alignment.match(self.gene_names(genes), self.vocabulary, order=self.gene_order)

    @property
    def gene_order(self) -> Literal["vocabulary", "column"]:
        """Order of the genes inside :class:`Counts`; ``"column"`` only where a recipe depends on it."""
        return "vocabulary"

    def survey(self, blocks: Callable[[], Iterator[Counts]]) -> Any:
        """Look at the whole data set before the first block; only recipes with data-set-wide steps need it."""
        return None

    @property
    def embeds_empty_cells(self) -> bool:
        """Whether a cell without any known gene has an embedding; without an option that asks for one it is NaN."""
        return False

    #: Whether ``tokenize`` draws from one stream over the cells in file order (official draws only).
    sequential: bool = False

    def plan(self, tokens: Tokens, budget: int, batch_size: int | None) -> list[np.ndarray]:
        """Divide a block into batches of about equal length within a budget of padded tokens."""
        return bucket(self.costs(tokens), budget, batch_size, tokens.usable)

    def costs(self, tokens: Tokens) -> np.ndarray:
        """Positions that each cell occupies in the network, ``(n,)``."""
        return tokens.lengths

    @cached_property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device) -> Self:
        """Move the weights; returns the model."""
        self.network.to(device)
        self.__dict__.pop("device", None)
        return self

    @cached_property
    def digest(self) -> str:
        """One SHA-256 over the checkpoint's files, or over the weights of a model that was read from none."""
        if not hasattr(self, "digests"):
            digest = hashlib.sha256()
            for name, tensor in sorted(self.network.state_dict().items()):
                digest.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
            return digest.hexdigest()
        text = "\n".join(f"{name} {value}" for name, value in sorted(self.digests.items()))
        return hashlib.sha256(text.encode()).hexdigest()


class GroupModel(NetworkModel):
    """A network whose cells see each other inside a group (``card.context == "group"``)."""

    @abstractmethod
    def embed_group(self, blocks: Callable[[], Iterator[Tokens]], device: torch.device) -> Iterator[Tensor]:
        """Embed one group of any size, block by block, with the numbers of a single forward pass."""


class FittedModel(Model):
    """A representation that is learnt from training cells."""

    #: Whether :meth:`fit` looks at ``batch``.
    uses_batch: ClassVar[bool] = False
    #: Whether :meth:`fit` also takes rows that it reads block by block (``X.shape`` and ``X.blocks(size)``).
    streams: ClassVar[bool] = False

    @abstractmethod
    def fit(self, X: Any, genes: Genes, *, batch: np.ndarray | None = None) -> Self:
        """Learn from training cells only; ``X`` holds raw counts as CSR, or as rows where the model ``streams``."""

    @abstractmethod
    def transform(self, X: sparse.csr_matrix, genes: Genes) -> np.ndarray:
        """Return the ``(n, dim)`` float32 representation; genes are matched by name."""

    @abstractmethod
    def state(self) -> dict[str, np.ndarray]:
        """Everything that was learnt, as plain arrays."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: Mapping[str, np.ndarray], **options: Any) -> Self:
        """Rebuild a fitted model from :meth:`state`."""


def bucket(costs: np.ndarray, budget: int, batch_size: int | None, usable: np.ndarray) -> list[np.ndarray]:
    """Group cells of similar length so that ``cells x longest`` stays within the budget.

    Examples
    --------
    >>> import numpy as np
    >>> [b.tolist() for b in bucket(np.array([5, 1, 5, 1]), 10, None, np.ones(4, bool))]
    [[0, 2], [1, 3]]
    """
    order = np.flatnonzero(usable)
    order = order[np.argsort(-costs[order], kind="stable")]
    batches, start = [], 0
    while start < len(order):
        longest = max(int(costs[order[start]]), 1)
        size = max(budget // longest, 1)
        if batch_size is not None:
            size = min(size, batch_size)
        batches.append(order[start : start + size])
        start += size
    return batches
