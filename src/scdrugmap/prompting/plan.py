"""Which cells go into which prompt, and the requests that follow; nothing here speaks to an endpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse

from scdrugmap._errors import InputError
from scdrugmap.embedding.source import CountSource
from scdrugmap.prompting.client import Request
from scdrugmap.prompting.cost import estimate_tokens
from scdrugmap.prompting.examples import Choice, Examples, content_keys
from scdrugmap.prompting.genes import GeneLists, select_genes
from scdrugmap.prompting.options import ClientOptions
from scdrugmap.prompting.templates import PromptCell, Template, one_line, without_accession


@dataclass(frozen=True, eq=False)
class Plan:
    """All that decides the prompts: a function of the arguments and the seed, not of what an endpoint answers.

    Parameters
    ----------
    template
        How to ask.
    options
        Settings of the client.
    genes
        Genes of the cells.
    context
        Texts that are told, by column; ``""`` where nothing is known.
    sources
        Data source of each cell, or ``None``.
    chunks
        Rows of each prompt of the first round; together the cells that have genes.
    example_genes, example_context, example_y
        The candidates for examples.
    choice
        Chooses examples; ``None`` for none.
    n_reference_excluded
        Candidates that are left out because the same cell is asked about.
    """

    template: Template
    options: ClientOptions
    genes: GeneLists
    context: dict[str, np.ndarray]
    sources: np.ndarray | None
    chunks: list[np.ndarray]
    example_genes: GeneLists | None = None
    example_context: dict[str, np.ndarray] = field(default_factory=dict)
    example_y: np.ndarray = field(default_factory=lambda: np.empty(0, np.int8))
    choice: Choice | None = None
    n_reference_excluded: int = 0

    def shots(self, rows: np.ndarray) -> np.ndarray:
        """Rows of the reference that a prompt about these cells shows."""
        return np.empty(0, np.int64) if self.choice is None else self.choice(rows)

    def request(self, rows: np.ndarray) -> Request:
        """Return the request about some cells."""
        cells = [_prompt_cell(self.genes, self.context, int(i)) for i in rows]
        examples = [
            _prompt_cell(self.example_genes, self.example_context, int(i), int(self.example_y[i]))
            for i in self.shots(rows)
            if self.example_genes is not None
        ]
        source = None if self.sources is None else str(self.sources[rows[0]])
        messages = self.template.messages(cells, examples, source)
        o, t = self.options, self.template
        tokens = estimate_tokens(m["content"] for m in messages)
        return Request(
            messages,
            t.schema(len(rows)) if o.structured else None,
            t.temperature if o.temperature == "template" else o.temperature,
            t.sampling_seed if o.sampling_seed == "template" else o.sampling_seed,
            o.logprobs,
            o.max_tokens,
            tokens + t.answer_tokens(len(rows)),
        )

    def key(self, request: Request, attempt: int = 0) -> str:
        """Digest of a request: endpoint, model, messages, schema and settings; never the key of the user."""
        what = asdict(request) | {"host": self.options.host, "model": self.options.model, "attempt": attempt}
        del what["tokens"]
        if self.options.api_version:
            what["api_version"] = self.options.api_version
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def make_plan(
    X: Any,
    genes: Iterable[str],
    options: ClientOptions,
    template: Template,
    *,
    n_genes: int | None,
    cells_per_prompt: int | None,
    ranking: Literal["expressed", "contrast"],
    exclude: Sequence[str] | None,
    context: pd.DataFrame | None,
    source: str | Sequence[str] | None,
    show_accession: bool,
    examples: Examples | None,
    n_shots: int,
    shots: Literal["random", "nearest"],
    embedding: np.ndarray | None,
    shuffle: bool | None,
    rng: np.random.Generator,
) -> Plan:
    """Choose genes, examples and chunks; the arguments are those of :func:`scdrugmap.prompting.predict`."""
    of_examples, of_order = rng.spawn(2)
    names = np.asarray(list(genes), dtype=object)
    k = template.n_genes if n_genes is None else n_genes
    families = template.exclude if exclude is None else exclude
    lists = select_genes(X, names, k, ranking=ranking, exclude=families)
    n = len(lists)
    told = _context(context, n, show_accession)
    sources = _sources(source, n, show_accession)
    size = template.cells_per_prompt if cells_per_prompt is None else cells_per_prompt
    if size < 1:
        raise InputError("cells_per_prompt", size, "1 or more", "pass cells_per_prompt=10.")
    mixed = template.shuffle if shuffle is None else shuffle
    chunks = _chunks(np.flatnonzero(lists.lengths > 0), size, sources, of_order if mixed else None)
    plan = Plan(template, options, lists, told, sources, chunks)
    if n_shots == 0:
        return plan
    if n_shots < 0 or not template.few_shot:
        raise InputError(
            "n_shots", n_shots, "0" if n_shots > 0 else "0 or more",
            f"template {template.name!r} shows no examples; use template='default'." if n_shots > 0 else "pass 4.",
        )  # fmt: skip
    if examples is None:
        raise InputError("n_shots", n_shots, "labelled cells to take examples from", "pass examples= or reference=.")
    example_lists = select_genes(examples.X, examples.genes, k, ranking=ranking, exclude=families)
    y = examples.y.copy()
    y[example_lists.lengths == 0] = -1
    asked = _keys(X, names)
    same = np.isin(_keys(examples.X, examples.genes), asked) & (y >= 0)
    y[same] = -1
    choice = Choice(y, n_shots, shots, of_examples, examples.embedding, embedding)
    context_of = _context(examples.context, len(y), show_accession)
    return Plan(
        template, options, lists, told, sources, chunks, example_lists,
        {name: texts for name, texts in context_of.items() if name in told}, y, choice, int(same.sum()),
    )  # fmt: skip


def _prompt_cell(
    genes: GeneLists | None, context: dict[str, np.ndarray], i: int, label: int | None = None
) -> PromptCell:
    assert genes is not None
    return PromptCell(genes[i], {name: texts[i] for name, texts in context.items() if texts[i]}, label)


def _context(context: pd.DataFrame | None, n: int, show_accession: bool) -> dict[str, np.ndarray]:
    """Texts on one line, ``""`` where nothing is known, accessions hidden."""
    if context is None:
        return {}
    if len(context) != n:
        raise InputError("context", f"{len(context)} rows", f"{n}, one per cell", "pass obs[columns] of these cells.")

    def text(value: Any) -> str:
        flat = "" if pd.isna(value) else one_line(value)
        return flat if show_accession else without_accession(flat)

    columns = {}
    for column in context.columns:
        codes, levels = pd.factorize(context[column].astype(object), use_na_sentinel=True)
        told = np.asarray([*(text(v) for v in levels), ""], dtype=object)
        columns[str(column)] = told[codes]
    return columns


def _sources(source: str | Sequence[str] | None, n: int, show_accession: bool) -> np.ndarray | None:
    if source is None:
        return None
    values = np.full(n, source, dtype=object) if isinstance(source, str) else np.asarray(list(source), dtype=object)
    if len(values) != n:
        raise InputError("source", f"{len(values)} values", f"one text, or {n} of them", "pass one per cell.")
    levels, codes = np.unique(values.astype(str), return_inverse=True)
    hidden = [one_line(v) if show_accession else without_accession(one_line(v)) for v in levels]
    return np.asarray(hidden, dtype=object)[codes]


def _chunks(
    rows: np.ndarray, size: int, sources: np.ndarray | None, rng: np.random.Generator | None
) -> list[np.ndarray]:
    """Cut the cells into prompts, one source each; the last of a source may be smaller."""
    if rng is not None:
        rows = rng.permutation(rows)
    parts = [rows]
    if sources is not None:
        codes = pd.factorize(sources[rows])[0]
        parts = [rows[codes == code] for code in range(codes.max(initial=-1) + 1)]
    return [part[i : i + size] for part in parts for i in range(0, len(part), size)]


def _keys(X: Any, genes: Iterable[str]) -> np.ndarray:
    source = CountSource(X)
    names = list(genes)
    blocks = [content_keys(sparse.csr_matrix(block), names) for _, block in source.blocks(4096)]
    return np.concatenate([np.empty(0, np.uint64), *blocks])
