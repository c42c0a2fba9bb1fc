"""UCE: a transformer over a weighted sample of a cell's genes, each known by its protein (Rosen et al. 2023)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from scdrugmap._errors import CheckpointError, InputError
from scdrugmap._logging import warn
from scdrugmap.genes.identifiers import Genes
from scdrugmap.models.base import Batch, ModelOptions, NetworkModel
from scdrugmap.models.card import ModelCard
from scdrugmap.models.kit.checkpoint import digests, load_strict, load_tensors, require_file, split_qkv
from scdrugmap.models.kit.counts import Alignment, Counts, uniforms
from scdrugmap.models.kit.proteins import (
    PROTEOMES,
    FileRows,
    Genome,
    ProjectedProteins,
    ProteinRows,
    RandomRows,
    random_genome,
    read_genome,
)
from scdrugmap.models.kit.sampling import draw_entries, draw_in_file_order
from scdrugmap.models.kit.streams import FileOrderStream
from scdrugmap.models.kit.tokens import Tokens
from scdrugmap.models.kit.transformer import PostNormBlock
from scdrugmap.models.kit.weights import randomize

PAD, CHROMOSOME_END, CLS = 0, 2, 3
_WEIGHTS = ["4layer_model.torch", "33l_8ep_1024t_1280.torch", "*model*.torch"]
_IGNORED = (r"pe_embedding\.weight", r"binary_decoder\..*", r"gene_embedding_layer\..*")
#: Widths: network, feed-forward, protein vectors, first decoder layer, output; then layers and positions.
_OFFICIAL = {"dim": 1280, "hidden": 5120, "token_dim": 5120, "wide": 1024, "out": 1280, "layers": 4, "positions": 1536}
_TINY = {"dim": 32, "hidden": 48, "token_dim": 20, "wide": 24, "out": 24, "layers": 2, "positions": 1536}
_OFFICIAL_ROWS, _OFFICIAL_CHROMOSOMES, _OFFICIAL_GENES = 145_469, 1895, 19_790


class UCEOptions(ModelOptions):
    """Options of UCE.

    Parameters
    ----------
    species
        Species of the data; decides which symbols are known.
    sample_size
        Genes drawn per cell, with replacement.
    draws
        Random numbers keyed by the content of the cell and ``seed``, or the stream of the official code
        over the cells in file order (NumPy's legacy generator seeded with ``seed``).
    padding
        Whether pads are left out of the attention, or get the official code's bias of +1, which makes an
        embedding depend on the longest sentence of its batch of ``official_batch`` cells in file order.
    official_batch
        See ``padding``.
    dataset_filter
        Whether genes in fewer than 10 cells of the data set, and then cells with fewer than 25 genes, are left out.
    heads
        Attention heads, the one size that the weights do not show; 20 in the official checkpoints.
    """

    species: Literal[
        "human", "mouse", "frog", "zebrafish", "mouse_lemur", "pig", "macaca_fascicularis", "macaca_mulatta"
    ] = "human"
    sample_size: int = Field(1024, ge=1)
    draws: Literal["content", "stream"] = "content"
    padding: Literal["masked", "official"] = "masked"
    official_batch: int = Field(25, ge=1)
    dataset_filter: bool = False
    heads: int = Field(20, ge=1)


@dataclass(frozen=True)
class Survey:
    """What the official steps need to know of the whole data set; ``None`` for steps that are off."""

    genes: np.ndarray | None
    cells: np.ndarray | None
    longest: np.ndarray | None
    stream: FileOrderStream | None


class UCE(NetworkModel):
    """UCE; the embedding is the decoder's output at ``CLS``, with norm one.

    Examples
    --------
    >>> from scdrugmap.genes import Genes
    >>> UCE.random(Genes.from_names(["TP53", "EGFR"])).dim
    24
    """

    card = ModelCard(
        name="UCE",
        kind="network",
        architecture="transformer encoder, 4 or 33 layers, over 1,024 sampled genes given by ESM2 protein embeddings",
        year=2023,
        citation="Rosen et al. 2023, Universal Cell Embeddings, bioRxiv 2023.11.28.568918",
        aliases=("universal cell embeddings",),
        species=tuple(PROTEOMES),
        gene_id="symbol",
        dim=1280,
        vocab_size=_OFFICIAL_ROWS,
        max_length=1536,
        n_parameters=91_177_472,
        lora_targets=("q_proj", "v_proj"),
        checkpoints=("uce-4-layer", "uce-33-layer"),
        weights_licence="CC BY 4.0 (code: MIT)",
        commercial=True,
    )
    Options = UCEOptions
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "official": {"dataset_filter": True, "padding": "official", "draws": "stream"},
        "scdrugmap": {"dataset_filter": True, "padding": "official", "draws": "stream"},
    }
    network: UCENetwork

    def __init__(self, sizes: Mapping[str, int], genome: Genome, proteins: ProteinRows, **options: Any) -> None:
        super().__init__(**options)
        if sizes["dim"] % self.options.heads:
            found, expected = self.options.heads, f"a divisor of the width {sizes['dim']} of this checkpoint"
            raise InputError("heads", found, expected, "pass the heads that the checkpoint was trained with.")
        self.genome = genome
        self.sequential = self.options.draws == "stream"
        self._mark = genome.chromosome_offset + genome.chromosomes
        used = np.concatenate([[PAD, CHROMOSOME_END, CLS], genome.by_position, self._mark])
        self._slot = np.full(genome.n_rows, -1, dtype=np.int64)
        self._slot[used] = np.arange(len(used))
        # The initial values are never used: every one is overwritten.
        with torch.device("meta"):
            network = UCENetwork(**sizes, heads=self.options.heads, source=proteins, rows=used)
        self.network = network.to_empty(device="cpu")

    @property
    def dim(self) -> int:
        """Width of the embedding."""
        return self.network.out

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Upper-case gene symbol to row of the token table."""
        return self.genome.vocabulary

    @property
    def gene_order(self) -> Literal["vocabulary", "column"]:
        """By column where the official stream runs over the genes."""
        return "column" if self.sequential else "vocabulary"

    def gene_names(self, genes: Genes) -> np.ndarray:
        """Return symbols in upper case, as they are matched."""
        return np.char.upper(super().gene_names(genes).astype(str))

    def align(self, genes: Genes) -> Alignment:
        """Match symbols; where the data set is filtered, unknown genes get ids above the token table."""
        names, known = self.gene_names(genes), dict(self.vocabulary)
        for what, symbols in (
            ("no position in species_chrom.csv: left out", self.genome.without_locus),
            ("several positions in species_chrom.csv: the first is used", self.genome.ambiguous),
        ):
            if affected := sorted(symbols.intersection(names)):
                more = f"{len(affected)} genes ({', '.join(affected[:3])} ...) have {what}."
                warn(more)
        if self.options.dataset_filter and not known.keys().isdisjoint(names):
            names = np.where(names == "", genes.names, names)
            known |= {n: self.genome.n_rows + i for i, n in enumerate(sorted({*map(str, names)} - known.keys() - {""}))}
        return Alignment.match(names, known, order=self.gene_order)

    def survey(self, blocks: Callable[[], Iterator[Counts]]) -> Survey | None:
        """Filter the data set, and find the longest sentence of each official batch."""
        options = self.options
        if not (options.dataset_filter or options.padding == "official" or self.sequential):
            return None
        genes = cells = longest = None
        if options.dataset_filter:
            genes = np.sum([np.bincount(c.X.indices, minlength=c.X.shape[1]) for c in blocks()], axis=0) >= 10
            cells = np.concatenate([_row_sums(c, genes[c.X.indices]) >= 25 for c in blocks()])
        survey = Survey(genes, cells, None, FileOrderStream(options.seed) if self.sequential else None)
        if options.padding == "official":
            lengths = np.concatenate([self.tokenize(replace(c, survey=survey)).lengths for c in blocks()])
            kept = np.flatnonzero(lengths)
            batch = np.arange(len(kept)) // options.official_batch
            tops = np.zeros(batch.max(initial=-1) + 1, dtype=np.int64)
            np.maximum.at(tops, batch, lengths[kept])
            longest = np.zeros_like(lengths)
            longest[kept] = tops[batch]
        return replace(survey, longest=longest)

    def tokenize(self, counts: Counts) -> Tokens:
        """``CLS``, then each chromosome with its drawn genes by position; pure unless ``draws="stream"``.

        Raises
        ------
        InputError
            With official steps, if there is no survey or if cells do not come in file order.
        """
        n, size = counts.X.shape[0], self.options.sample_size
        survey = self._survey_of(counts)
        rows, drawn, priority = self._draw(counts, survey)
        # One sort per cell by chromosome, in its random order, and position.
        ranks = np.take_along_axis(priority, self.genome.chromosome[drawn], axis=1)
        keys = np.sort((ranks << 32) | self.genome.position[drawn], axis=1)  # (cells, sample_size)
        token = self.genome.by_position[keys & 0xFFFFFFFF]
        first = np.ones(keys.shape, dtype=bool)
        first[:, 1:] = (keys[:, 1:] >> 32) != (keys[:, :-1] >> 32)
        last = np.roll(first, -1, axis=1)
        lengths = np.zeros(n, dtype=np.int64)
        lengths[rows] = 1 + size + 2 * first.sum(axis=1)
        if survey is not None and survey.longest is not None:
            lengths = survey.longest[counts.rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        ids = np.full(offsets[-1], PAD, dtype=np.int32)
        begin = offsets[:-1][rows]
        ids[begin] = CLS
        # Before each gene stand CLS, its own chromosome's mark and both marks of each earlier chromosome.
        place = begin[:, None] + np.arange(size) + 2 * np.cumsum(first, axis=1)  # (cells, sample_size)
        ids[place] = token
        ids[place[first] - 1] = self._mark[self.genome.chromosome[token[first]]]
        ids[place[last] + 1] = CHROMOSOME_END
        usable = np.zeros(n, dtype=bool)
        usable[rows] = True
        return Tokens(offsets, ids, None, usable)

    def _survey_of(self, counts: Counts) -> Survey | None:
        """The survey that came with the counts, which the official steps cannot do without."""
        options = self.options
        needed = options.dataset_filter or options.padding == "official" or self.sequential
        if needed and not isinstance(counts.survey, Survey):
            fix = "pass survey=model.survey(blocks), or use the defaults to tokenise cells on their own."
            raise InputError("counts.survey", counts.survey, "a survey of the whole data set", fix)
        return counts.survey if needed else None

    def _draw(self, counts: Counts, survey: Survey | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows with a sentence, their drawn genes (rows of the token table) and the rank of each chromosome."""
        used = counts.ids < self.genome.n_rows
        if survey is not None and survey.genes is not None:
            used = used & survey.genes
        entry = used[counts.X.indices]
        usable = _row_sums(counts, entry) > 0
        if survey is not None and survey.cells is not None:
            usable &= survey.cells[counts.rows]
        rows = np.flatnonzero(usable)
        if survey is not None and survey.stream is not None:
            survey.stream.advance(counts.rows)
            columns = np.flatnonzero(used)
            group = self.genome.chromosome[counts.ids[columns]]
            draw = draw_in_file_order(counts.X[rows][:, columns], group, self.options.sample_size, survey.stream.values)
            return rows, counts.ids[columns[draw[0]]], draw[1]
        keys, size, seed = counts.cell_keys[rows][:, None], self.options.sample_size, self.options.seed
        # Ascending numbers walk through memory in order; the order of the draws means nothing.
        u = np.sort(uniforms(keys, np.arange(size), seed), axis=1)
        bounds = np.stack([counts.X.indptr[:-1][rows], counts.X.indptr[1:][rows]])
        entries = draw_entries(np.log1p(counts.X.data) * entry, bounds, u)
        order = np.argsort(uniforms(keys, 2**32 + self.genome.chromosomes, seed), axis=1)
        return rows, counts.ids[counts.X.indices[entries]], np.argsort(order, axis=1)

    def collate(self, tokens: Tokens) -> Batch:
        """Pad; official pads are tokens of their own, with a bias of +1 in the attention."""
        ids, lengths = tokens.padded(PAD), tokens.lengths
        batch = {"ids": torch.from_numpy(self._slot[ids])}
        inside = np.arange(ids.shape[1]) < lengths[:, None]
        if self.options.padding == "official":
            bias = np.where(inside, (ids == PAD).astype(np.float32), np.float32(-np.inf))
            batch["mask"] = torch.from_numpy(bias)
        elif not inside.all():
            batch["mask"] = torch.from_numpy(inside)
        return batch

    @classmethod
    def from_checkpoint(cls, path: Path, **options: Any) -> Self:
        """Read the official files: weights, ``species_chrom.csv``, ``species_offsets.pkl`` and a protein file.

        A folder that holds both networks gives the one with 4 layers; name the weight file to get the other.

        Raises
        ------
        CheckpointError
            If a file is missing or corrupt, or the files do not fit each other.
        """
        path, name = Path(path), cls.card.name
        species = cls._validated({k: v for k, v in options.items() if k != "recipe"}).species  # type: ignore[attr-defined]
        weights_file = path if path.is_file() else require_file(path, _WEIGHTS, name)
        symbols = f"{PROTEOMES[species]}.gene_symbol_to_embedding_ESM2.pt"
        symbols_file = require_file(path, [f"protein_embeddings/{symbols}", symbols], name)
        loci_file = require_file(path, ["species_chrom.csv"], name)
        offsets_file = require_file(path, ["species_offsets.json", "species_offsets.pkl"], name)
        tensors = load_tensors(weights_file)
        sizes, n_rows = _sizes(tensors, weights_file.name)
        genome = read_genome(symbols_file, loci_file, offsets_file, species, n_rows)
        model = cls(sizes, genome, FileRows(weights_file, "pe_embedding.weight"), **options)
        load_strict(model.network, _renamed(tensors), ignore=_IGNORED, source=weights_file.name)
        model.network.eval()
        model.digests = digests(weights_file, symbols_file, loci_file, offsets_file)
        return model

    @classmethod
    def random(cls, genes: Genes, *, size: Literal["tiny", "official"] = "tiny", rng: int = 0, **options: Any) -> Self:
        """Build UCE with random weights and random chromosomes for these genes."""
        names = sorted({str(s).upper() for s in genes.symbols} - {""})
        sizes, n_rows, n_chromosomes = _TINY, 4 + len(names) + 24, 24
        if size == "official":
            names = [*names[:_OFFICIAL_GENES], *(f"UNUSED{i}" for i in range(_OFFICIAL_GENES - len(names)))]
            sizes, n_rows, n_chromosomes = _OFFICIAL, _OFFICIAL_ROWS, _OFFICIAL_CHROMOSOMES
        else:
            options = {"heads": 4, **options}
        genome = random_genome(names, n_rows, n_rows - n_chromosomes, rng)
        model = cls(sizes, genome, RandomRows(sizes["token_dim"], rng), **options)
        randomize(model.network, rng)
        model.network.positions.copy_(_sinusoids(sizes["positions"], sizes["dim"]))
        model.network.eval()
        model.digests = {"random": f"{size}-{rng}-{hashlib.sha256(' '.join(names).encode()).hexdigest()}"}
        return model


class UCENetwork(nn.Module):
    """UCE's encoder, transformer and decoder.

    Parameters
    ----------
    dim, hidden, token_dim, wide, out, layers, positions, heads, dropout
        Sizes.
    source, rows
        Where protein vectors are read, and the rows of them that the tokens of a batch count.
    """

    positions: Tensor

    def __init__(
        self,
        *,
        dim: int,
        hidden: int,
        token_dim: int,
        wide: int,
        out: int,
        layers: int,
        positions: int,
        heads: int,
        source: ProteinRows,
        rows: np.ndarray,
        dropout: float = 0.05,
    ) -> None:
        super().__init__()
        self.proteins = ProjectedProteins(source, rows, token_dim, dim)
        self.register_buffer("positions", torch.empty(positions, dim))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(PostNormBlock(dim, heads, hidden, dropout=dropout) for _ in range(layers))
        widths = [(dim, wide), (wide, out), (out, out)]
        steps = [nn.Sequential(nn.Linear(*w), nn.LayerNorm(w[1]), nn.GELU(), nn.Dropout(dropout)) for w in widths]
        self.decoder = nn.Sequential(*steps, nn.Linear(out, out))
        self.out = out

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Decoder output at ``CLS`` with norm one, ``(n, out)``."""
        return F.normalize(self.decode(batch), dim=-1)

    def decode(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Decoder output at ``CLS`` before it is normalised."""
        mask = batch.get("mask")
        x = self.embed(batch["ids"])  # (cells, length, dim)
        for block in self.blocks[:-1]:
            x = block(x, mask)
        # The last layer is needed at CLS alone: (cells, 1, dim) -> (cells, out)
        return self.decoder(self.blocks[-1](x, mask, rows=slice(0, 1))[:, 0]).float()

    def embed(self, ids: Tensor) -> Tensor:
        """Projected proteins plus positions, ``(n, length, dim)``."""
        return self.dropout(self.proteins(ids) + self.positions[: ids.shape[1]])

    def states(self, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """Input of the transformer and the output of every layer at every position."""
        states = [self.embed(batch["ids"])]
        for block in self.blocks:
            states.append(block(states[-1], batch.get("mask")))
        return states


def _row_sums(counts: Counts, entry: np.ndarray) -> np.ndarray:
    """Number of marked stored values of each row."""
    return np.bincount(counts.row_of[entry], minlength=counts.X.shape[0])


def _sinusoids(length: int, dim: int) -> Tensor:
    """Sine and cosine position encodings (Vaswani et al. 2017), ``(length, dim)``."""
    angles = np.arange(length)[:, None] * np.exp(np.arange(0, dim, 2) * (-np.log(10_000.0) / dim))
    return torch.from_numpy(np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(length, dim)).float()


def _sizes(tensors: Mapping[str, Tensor], source: str) -> tuple[dict[str, int], int]:
    """Widths and layers as the tensors show them, and the rows of the token table."""
    try:
        sizes = {
            "dim": tensors["encoder.0.weight"].shape[0],
            "token_dim": tensors["encoder.0.weight"].shape[1],
            "hidden": tensors["transformer_encoder.layers.0.linear1.weight"].shape[0],
            "wide": tensors["decoder.0.0.weight"].shape[0],
            "out": tensors["decoder.3.weight"].shape[0],
            "positions": tensors["pos_encoder.pe"].shape[0],
            "layers": 1
            + max(int(m[1]) for k in tensors if (m := re.match(r"transformer_encoder\.layers\.(\d+)\.", k))),
        }
        n_rows, width = tensors["pe_embedding.weight"].shape
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        found = f"{source} without {error}"
        fix = "use an unmodified official weight file."
        raise CheckpointError("checkpoint", found, "the tensors of the official layout", fix) from None
    if width != sizes["token_dim"]:
        found = f"{source} with protein vectors of {width} and an encoder for {sizes['token_dim']} numbers"
        raise CheckpointError("checkpoint", found, "equal widths", "use an unmodified official weight file.")
    return sizes, n_rows


def _renamed(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official tensors under the network's names."""
    out: dict[str, Tensor] = {}
    for key, tensor in official.items():
        name = re.sub(r"^transformer_encoder\.layers\.", "blocks.", key).replace(".self_attn.", ".attention.")
        name = re.sub(r"^encoder\.", "proteins.encoder.", name)
        if key == "pos_encoder.pe":
            out["positions"] = tensor.flatten(1)
        elif ".in_proj_" in name:
            stem, kind = name.split(".in_proj_")
            out[name] = tensor
            split_qkv(out, name, (f"{stem}.q_proj.{kind}", f"{stem}.k_proj.{kind}", f"{stem}.v_proj.{kind}"))
        else:
            out[name] = tensor
    return out
