"""CellPLM: a Flowformer whose tokens are the cells of a sample (Wen et al. 2024)."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from scdrugmap._errors import CheckpointError, InputError
from scdrugmap.genes.identifiers import Genes
from scdrugmap.models.base import Batch, GroupModel, ModelOptions
from scdrugmap.models.card import ModelCard
from scdrugmap.models.kit.checkpoint import digests, load_json, load_strict, load_tensors, require_file
from scdrugmap.models.kit.counts import Alignment, Counts, uniforms
from scdrugmap.models.kit.flowformer import FlowEncoder
from scdrugmap.models.kit.gene_sum import GeneSum
from scdrugmap.models.kit.latent import Latent
from scdrugmap.models.kit.tokens import Tokens
from scdrugmap.models.kit.weights import randomize

#: Official tensor names to those of the network, by regular expression.
_NAMES = {
    r"embedder\.extra_linear\.0\.": "linear.",
    r"embedder\.extra_linear\.3\.": "norm.",
    r"encoder\.layers\.(\d+)\.self_attn\.(?:(q)uery|(k)ey|(v)alue)_projection\.": r"blocks.\1.attention.\2\3\4_proj.",
    r"encoder\.layers\.(\d+)\.self_attn\.out_projection\.": r"blocks.\1.attention.out_proj.",
    r"encoder\.layers\.(\d+)\._ff_block\.0\.": r"blocks.\1.linear1.",
    r"encoder\.layers\.(\d+)\._ff_block\.3\.": r"blocks.\1.linear2.",
    r"encoder\.layers\.(\d+)\.(norm[12])\.": r"blocks.\1.\2.",
    r"pre_latent_norm\.norm\.": "latent_norm.",
    r"latent\.layers\.1\.inference\.inference_qyx\.0\.logits\.": "latent.cluster.",
    r"latent\.layers\.1\.inference\.inference_qzyx\.0\.": "latent.hidden.",
    r"latent\.layers\.1\.inference\.inference_qzyx\.2\.mu\.": "latent.mean.",
    r"latent\.layers\.1\.hid_2mu\.": "latent.mean.",
}
#: Covariate encoders that the embedding does not read, variances, the prior of the clusters, the decoder.
_IGNORED = (
    r"embedder\.norm0\..*",
    r"embedder\.pe_enc\..*",
    r"latent\.layers\.1\.inference\.inference_qzyx\.2\.var\..*",
    r"latent\.layers\.1\.inference\.y_(mu|var)\..*",
    r"latent\.layers\.1\.hid_2sigma\..*",
    r"decoder\..*",
)
_GENE_TABLE = "embedder.feat_enc.emb"
_OFFICIAL = {"n_genes": 19_374, "enc_hid": 1024, "enc_layers": 4, "post_latent_dim": 512}
_TINY = {"enc_hid": 32, "enc_layers": 2, "post_latent_dim": 24}
#: What one call of the official code does.
_PUBLISHED = {"cluster": "sample", "draws": "stream", "empty_cells": "keep", "duplicates": "first"}
#: Sizes that the official configuration leaves to the code.
_HEADS, _CLUSTERS, _HIDDEN = 8, 16, 512


def _as_rows(value: Any) -> Any:
    """An array as nested tuples, which options can be compared and written with."""
    return tuple(map(tuple, value.tolist())) if isinstance(value, np.ndarray) and value.ndim == 2 else value


class CellPLMOptions(ModelOptions):
    """Options of CellPLM.

    Parameters
    ----------
    group_size
        Cut each group into consecutive parts of so many cells that do not see each other; ``None`` keeps it whole.
        It changes the numbers and is no way to save memory: a whole group of any size is streamed.
    cluster
        Component of the Gaussian mixture that a cell is read through: the most probable one, or one drawn from
        the posterior, as the official code does also at inference.
    draws
        Where the draws come from: ``"content"`` keys them by ``seed`` and the cell's counts, ``"stream"`` takes them
        from PyTorch's generator seeded with ``seed`` in the order of the cells, as one official call on one group does.
    uniforms
        Numbers to draw with instead, ``(cells, clusters)`` in [0, 1) in the order of the cells.
    empty_cells
        Whether a cell without any known gene stays out of its group (its embedding is NaN) or takes part as a
        cell of zeros.
    duplicates
        Of columns with one gene id, take the sum or the first.
    first_columns
        Read only so many leading columns of the data.
    """

    group_size: int | None = Field(None, ge=1)
    cluster: Literal["argmax", "sample"] = "argmax"
    draws: Literal["content", "stream"] = "content"
    uniforms: Annotated[tuple[tuple[float, ...], ...] | None, BeforeValidator(_as_rows)] = None
    empty_cells: Literal["drop", "keep"] = "drop"
    duplicates: Literal["sum", "first"] = "sum"
    first_columns: int | None = Field(None, ge=1)


class CellPLM(GroupModel):
    """CellPLM; the embedding is the mean of the latent Gaussian, which depends on the other cells of the group.

    Examples
    --------
    >>> from scdrugmap.genes import Genes
    >>> CellPLM.random(Genes.from_names(["ENSG00000141510", "ENSG00000146648"])).dim
    24
    """

    card = ModelCard(
        name="CellPLM",
        kind="network",
        architecture="Flowformer encoder, 4 layers over the cells of a group, Gaussian-mixture latent",
        year=2024,
        citation="Wen et al. 2024, CellPLM: pre-training of cell language model beyond single cells, ICLR",
        gene_id="ensembl",
        context="group",
        dim=512,
        vocab_size=19_374,
        n_parameters=55_304_208,
        lora_targets=("q_proj", "k_proj", "v_proj"),
        checkpoints=("cellplm-20230926", "cellplm-20231027"),
        weights_licence="not stated (code: BSD-2-Clause)",
        commercial=None,
    )
    Options = CellPLMOptions
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "official": _PUBLISHED,
        "scdrugmap": _PUBLISHED,
        "scdrugmap-lora": {**_PUBLISHED, "group_size": 1, "first_columns": 2048},
    }
    network: CellPLMNetwork

    def __init__(self, config: Mapping[str, Any], vocabulary: Mapping[str, int], **options: Any) -> None:
        super().__init__(**options)
        self._vocabulary = vocabulary
        self.network = CellPLMNetwork(
            n_genes=len(vocabulary),
            dim=config["enc_hid"],
            layers=config["enc_layers"],
            heads=config.get("enc_head", _HEADS),
            latent_dim=config["post_latent_dim"],
            latent=config.get("latent_mod", "gmvae"),
            clusters=config.get("num_clusters", _CLUSTERS),
            latent_hidden=config.get("latent_hidden", _HIDDEN),
            norm=config.get("norm", "groupnorm"),
            dropout=config.get("model_dropout", 0.0),
        )
        if self.options.cluster == "sample" and self.network.latent.cluster is None:
            raise InputError(
                "cluster",
                "sample",
                "'argmax': the latent space of this checkpoint has no clusters to draw from",
                "leave cluster and recipe at their defaults.",
            )

    @property
    def dim(self) -> int:
        """Width of the embedding."""
        return self.network.latent.mean.out_features

    @property
    def embeds_empty_cells(self) -> bool:
        """Where an option asks for it."""
        return self.options.empty_cells == "keep"

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Ensembl id to row of the gene table."""
        return self._vocabulary

    def align(self, genes: Genes) -> Alignment:
        """Match Ensembl ids to rows of the gene table."""
        names = self.gene_names(genes).astype(object)
        if self.options.first_columns is not None:
            names[self.options.first_columns :] = ""
        if self.options.duplicates == "first":
            later = np.ones(len(names), dtype=bool)
            later[np.unique(names.astype(str), return_index=True)[1]] = False
            names[later] = ""
        return Alignment.match(names, self._vocabulary)

    def tokenize(self, counts: Counts) -> Tokens:
        """Known genes with ``log(1 + count)``; then, where clusters are drawn, one uniform number per cluster.

        The numbers to draw with stand under ids from the vocabulary's size on, so that they stay with their cell.
        """
        X, n = counts.X, counts.X.shape[0]
        ids, values = counts.ids.astype(np.int32)[X.indices], _log1p(X.data)
        usable = (np.diff(X.indptr) > 0) | (self.options.empty_cells == "keep")
        draws = self._draws(counts)
        k = draws.shape[1]
        offsets = X.indptr.astype(np.int64) + k * np.arange(n + 1)
        if k:
            own = np.arange(X.nnz) + k * counts.row_of
            tail = offsets[1:, None] - k + np.arange(k)
            all_ids, all_values = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.float32)
            all_ids[own], all_values[own] = ids, values
            all_ids[tail], all_values[tail] = len(self._vocabulary) + np.arange(k), draws
            ids, values = all_ids, all_values
        return Tokens(offsets, ids, values, usable)

    def collate(self, tokens: Tokens) -> Batch:
        """Flat genes and values of a group's cells with the first position of each, and the draws."""
        assert tokens.values is not None
        n, k = len(tokens), self._n_draws
        offsets = torch.from_numpy((tokens.offsets[:-1] - k * np.arange(n)).astype(np.int32))
        ids, values = tokens.ids.astype(np.int32, copy=False), tokens.values
        if not k:
            return {"ids": torch.from_numpy(ids), "values": torch.from_numpy(values), "offsets": offsets}
        tail = tokens.offsets[1:, None] - k + np.arange(k)
        own = np.ones(len(ids), dtype=bool)
        own[tail] = False
        drawn = torch.from_numpy(values[tail])
        return {
            "ids": torch.from_numpy(ids[own]),
            "values": torch.from_numpy(values[own]),
            "offsets": offsets,
            "uniforms": drawn,
        }

    def plan(self, tokens: Tokens, budget: int, batch_size: int | None) -> list[np.ndarray]:
        """Return one batch: the cells of a group are never divided to save memory."""
        return [np.flatnonzero(tokens.usable)]

    def costs(self, tokens: Tokens) -> np.ndarray:
        """A cell is one position."""
        return np.ones(len(tokens), dtype=np.int64)

    def embed_group(self, blocks: Callable[[], Iterator[Tokens]], device: torch.device) -> Iterator[Tensor]:
        """Embed one group, block by block; the blocks are read once.

        The hidden states of the whole group stay in memory, 4 kB per cell at the official size.
        """
        if self.options.group_size is not None:
            yield from self._chunked(blocks(), device, self.options.group_size)
            return
        network, rows, draws = self.network, [], []
        sizes, states = [], []
        for tokens in blocks():
            sizes.append(len(tokens))
            rows.append(np.flatnonzero(tokens.usable))
            batch = self._batch(tokens.take(rows[-1]), device)
            states.append(network.embed_genes(batch))
            draws.append(batch.get("uniforms"))
        network.blocks.stream(states, device)
        for i, size in enumerate(sizes):
            yield self._placed(size, rows[i], network.read(states[i].to(device), draws[i]))
            states[i] = states[i][:0]

    def _chunked(self, blocks: Iterator[Tokens], device: torch.device, size: int) -> Iterator[Tensor]:
        """Embed consecutive parts of ``size`` usable cells, which may lie across blocks."""
        due: deque[tuple[int, np.ndarray]] = deque()
        ready, waiting = torch.empty(0, self.dim, device=device), None

        def forward(tokens: Tokens, stop: int) -> Tensor:
            parts = [np.arange(i, min(i + size, stop)) for i in range(0, stop, size)]
            return torch.cat([ready, *(self.network(self._batch(tokens.take(p), device)).float() for p in parts)])

        for tokens in blocks:
            rows = np.flatnonzero(tokens.usable)
            due.append((len(tokens), rows))
            fresh = tokens.take(rows)
            waiting = fresh if waiting is None else Tokens.concatenate([waiting, fresh])
            stop = len(waiting) // size * size
            ready, waiting = forward(waiting, stop), waiting.take(np.arange(stop, len(waiting)))
            while due and len(due[0][1]) <= len(ready):
                n, rows = due.popleft()
                yield self._placed(n, rows, ready[: len(rows)])
                ready = ready[len(rows) :]
        if waiting is not None:
            ready = forward(waiting, len(waiting))
        for n, rows in due:
            yield self._placed(n, rows, ready[: len(rows)])
            ready = ready[len(rows) :]

    def _batch(self, tokens: Tokens, device: torch.device) -> Batch:
        return {k: v.to(device, non_blocking=True) for k, v in self.collate(tokens).items()}

    def _placed(self, size: int, rows: np.ndarray, values: Tensor) -> Tensor:
        """Values of the usable rows among NaN rows for the others."""
        out = torch.full((size, self.dim), float("nan"), device=values.device)
        out[torch.from_numpy(rows).to(values.device)] = values.float()
        return out

    @property
    def _n_draws(self) -> int:
        cluster = self.network.latent.cluster
        return cluster.out_features if cluster is not None and self.options.cluster == "sample" else 0

    def _draws(self, counts: Counts) -> np.ndarray:
        """One uniform number per cell and cluster, ``(n, 0)`` where nothing is drawn."""
        k, n = self._n_draws, len(counts.rows)
        if k == 0:
            return np.empty((n, 0), np.float32)
        needed = int(counts.rows.max(initial=-1)) + 1
        if self.options.uniforms is not None:
            given = np.asarray(self.options.uniforms, dtype=np.float32)
            if given.ndim != 2 or given.shape[0] < needed or given.shape[1] != k:
                raise InputError(
                    "uniforms",
                    f"an array of shape {given.shape}",
                    f"one row per cell (at least {needed}) of {k} numbers",
                    "pass an array of shape (cells, clusters).",
                )
            return given[counts.rows]
        if self.options.draws == "content":
            return uniforms(counts.cell_keys[:, None], np.arange(k), self.options.seed).astype(np.float32)
        generator = torch.Generator().manual_seed(self.options.seed)
        # The official data loader takes one integer before the first cell.
        torch.empty((), dtype=torch.int64).random_(generator=generator)
        return torch.rand(needed, k, generator=generator).numpy()[counts.rows]

    @classmethod
    def from_checkpoint(cls, path: Path, **options: Any) -> Self:
        """Read ``<prefix>.config.json`` and ``<prefix>.best.ckpt``.

        Parameters
        ----------
        path
            Folder that holds the pair, or either file.
        **options
            ``recipe`` and the fields of :class:`CellPLMOptions`.

        Raises
        ------
        CheckpointError
            If a file is missing, corrupt, or disagrees with the other.
        """
        path = Path(path)
        pattern = "*.best.ckpt"
        if path.is_file():
            pattern = re.sub(r"\.(config\.json|best\.ckpt)$", "", path.name) + ".best.ckpt"
        weights_file = require_file(path, [pattern], cls.card.name)
        prefix = weights_file.name.removesuffix(".best.ckpt")
        config_file = require_file(weights_file.parent, [f"{prefix}.config.json"], cls.card.name)
        config, genes = _checked(load_json(config_file), config_file.name)
        tensors = load_tensors(weights_file)
        tensors = tensors.get("model_state_dict") if isinstance(tensors, dict) else None
        if not isinstance(tensors, Mapping) or _GENE_TABLE not in tensors:
            raise CheckpointError(
                "checkpoint",
                f"{weights_file.name} without model_state_dict[{_GENE_TABLE!r}]",
                "the official layout of CellPLM",
                "use the official, unmodified file.",
            )
        if len(tensors[_GENE_TABLE]) != len(genes):
            raise CheckpointError(
                "checkpoint",
                f"{len(tensors[_GENE_TABLE])} rows in {_GENE_TABLE} of {weights_file.name}, {len(genes)} genes in "
                f"gene_list of {config_file.name}",
                "one row per gene",
                "use the pair of files of one checkpoint.",
            )
        hidden = tensors.get("latent.layers.1.inference.inference_qzyx.0.bias")
        if hidden is not None:
            config["latent_hidden"] = len(hidden)
        model = cls(config, {str(g): i for i, g in enumerate(genes)}, **options)
        load_strict(model.network, _renamed(tensors, model.network), ignore=_IGNORED, source=weights_file.name)
        model.digests = digests(weights_file, config_file)
        return model.prepared()

    @classmethod
    def random(cls, genes: Genes, *, size: Literal["tiny", "official"] = "tiny", rng: int = 0, **options: Any) -> Self:
        """Build the architecture with random weights.

        Examples
        --------
        >>> from scdrugmap.genes import Genes
        >>> CellPLM.random(Genes.from_names(["ENSG00000141510"]), rng=1).card.context
        'group'
        """
        names = sorted({str(g) for g in genes.ensembl} - {""})
        config: dict[str, Any] = dict(_TINY if size == "tiny" else _OFFICIAL)
        if size == "official":
            names = [*names, *(f"unused{i:05d}" for i in range(len(names), config["n_genes"]))][: config["n_genes"]]
        model = cls(config, {g: i for i, g in enumerate(names)}, **options)
        randomize(model.network, rng)
        model.digests = {f"random-{size}-{rng}": str(len(names))}
        return model.prepared()


class CellPLMNetwork(nn.Module):
    """Gene sums, the embedder, the Flowformer layers over the cells, and the latent mean.

    Parameters
    ----------
    n_genes, dim, layers, heads
        Rows of the gene table, width, number of layers and of heads.
    latent_dim
        Width of the embedding.
    latent
        ``"gmvae"`` or ``"vae"``.
    clusters, latent_hidden
        Components of the mixture and inner width of its encoder.
    norm
        Of the embedder: ``"groupnorm"`` or ``"layernorm"``.
    dropout
        Rate in training.
    """

    def __init__(
        self,
        *,
        n_genes: int,
        dim: int,
        layers: int,
        heads: int,
        latent_dim: int,
        latent: str,
        clusters: int,
        latent_hidden: int,
        norm: str,
        dropout: float,
    ) -> None:
        super().__init__()
        self.genes = GeneSum(n_genes, dim)
        self.linear = nn.Linear(dim, dim)
        self.norm = nn.GroupNorm(4, dim) if norm == "groupnorm" else nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = FlowEncoder(layers, dim, heads, 2 * dim, attention_dropout=0.01, dropout=dropout)
        self.latent_norm = nn.LayerNorm(dim)
        self.latent = Latent(dim, latent_dim, clusters if latent == "gmvae" else 0, latent_hidden)

    def forward(self, batch: Batch) -> Tensor:
        """Embed the cells of one group, ``(n, dim)``."""
        return self.read(self.blocks(self.embed_genes(batch)), batch.get("uniforms"))

    def embed_genes(self, batch: Batch) -> Tensor:
        """Return what enters the first layer; each cell by itself."""
        x = self.genes(batch["ids"], batch["values"], batch["offsets"])
        return self.norm(self.dropout(F.relu(self.linear(x)))).float()

    def read(self, x: Tensor, draws: Tensor | None = None) -> Tensor:
        """Return the embedding from the output of the last layer; each cell by itself."""
        return self.latent(self.latent_norm(x), draws)


def _log1p(counts: np.ndarray) -> np.ndarray:
    """``log(1 + count)`` in float32; of few different whole numbers each is computed once."""
    top = counts.max(initial=0)
    if counts.min(initial=0) >= 0 and top < len(counts):
        whole = counts.astype(np.int32)
        if (whole == counts).all():
            return np.log1p(np.arange(int(top) + 1)).astype(np.float32)[whole]
    return np.log1p(counts).astype(np.float32)


def _checked(config: Any, name: str) -> tuple[dict[str, Any], list[str]]:
    """The configuration and its gene list, if they are of the kind that this file implements."""
    known = {
        "enc_mod": ("flowformer",),
        "latent_mod": ("gmvae", "vae"),
        "norm": ("groupnorm", "layernorm"),
        "dsbn": (False,),
        "input_covariate": (False,),
    }
    config = config if isinstance(config, dict) else {}
    problems = [f"no {k}" for k in ("gene_list", "enc_hid", "enc_layers", "post_latent_dim") if k not in config]
    problems += [f"{k}={config[k]!r}" for k, values in known.items() if k in config and config[k] not in values]
    genes = config.get("gene_list", [])
    if len(set(genes)) != len(genes):
        problems.append("a gene twice in gene_list")
    if problems:
        raise CheckpointError(
            "checkpoint",
            f"{name} with {', '.join(problems)}",
            "a configuration of the published CellPLM encoders",
            "use the official, unmodified file.",
        )
    return config, genes


def _renamed(tensors: Mapping[str, Tensor], network: CellPLMNetwork) -> dict[str, Tensor]:
    """Official tensors under the network's names, the gene table cut into strips."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, replacement in _NAMES.items():
            name = re.sub(f"^{pattern}", replacement, name)
        out[name] = tensor
    strips = out.pop(_GENE_TABLE).split(network.genes.strip, dim=1)
    return out | {f"genes.tables.{i}.weight": strip for i, strip in enumerate(strips)}
