"""What is asked: the published prompt and a sound one of our own, as named templates."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from scdrugmap._errors import UnknownNameError

Message = dict[str, str]

_ACCESSION = re.compile(r"\b(?:GSE|GSM|GPL|SR[APRSX]|PRJ[A-Z]{2}|SAM[A-Z]+|phs|EGA[A-Z])\d+\b|\bE-[A-Z]{4}-\d+\b", re.I)


@dataclass(frozen=True)
class PromptCell:
    """One cell as a prompt shows it.

    Parameters
    ----------
    genes
        Gene names, the highest first.
    context
        What else is told: drug, tissue ...
    label
        0 or 1 for an example; ``None`` for a cell that is asked about.
    """

    genes: Sequence[str]
    context: Mapping[str, str] = field(default_factory=dict)
    label: int | None = None


class Template(ABC):
    """A way to ask. Subclass it and pass an instance as ``template=`` to ask in another way.

    Attributes
    ----------
    name, version
        Recorded with every result; a changed text needs a new version.
    cells_per_prompt, n_genes, exclude, shuffle
        Defaults of the arguments of :func:`predict`.
    temperature, sampling_seed
        Sent to the endpoint; ``None`` leaves it to the server.
    few_shot
        Whether the text has a place for examples.
    one_source
        Whether a prompt names one data source, so that cells of different sources are not mixed.
    """

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    cells_per_prompt: ClassVar[int] = 10
    n_genes: ClassVar[int] = 10
    exclude: ClassVar[tuple[str, ...]] = ()
    shuffle: ClassVar[bool] = True
    temperature: ClassVar[float | None] = 0.0
    sampling_seed: ClassVar[int | None] = 0
    few_shot: ClassVar[bool] = True
    one_source: ClassVar[bool] = False

    @abstractmethod
    def messages(
        self, cells: Sequence[PromptCell], examples: Sequence[PromptCell], source: str | None
    ) -> list[Message]:
        """Write the messages that ask about ``cells``."""

    def schema(self, n_cells: int) -> dict[str, Any] | None:
        """Return the strict JSON schema of the answer for ``n_cells`` cells, or ``None`` for free text."""
        del n_cells
        return None

    def example_answer(self, n_cells: int) -> tuple[int, ...] | None:
        """Return the labels of a sample answer that the prompt shows and that a model may echo."""
        del n_cells
        return None

    def answer_tokens(self, n_cells: int) -> int:
        """Estimate the length of an answer in tokens."""
        return 16 + 14 * n_cells


class PublishedTemplate(Template):
    """The prompt of the scDrugMap study: ten genes of ten cells and an accession; no drug, no example.

    Notes
    -----
    With ten cells of ten genes and ``source="GSE..."`` the text is the published one, byte for byte. Cells stand in
    their given order, so that a prompt often holds one label only, and nothing but the server's defaults is sent.
    Other numbers of cells and genes are told as they are. The last, smaller group of cells is asked about as well.

    References
    ----------
    scDrugMap, arXiv 2505.05612, figure 5a.
    """

    name = "scdrugmap"
    shuffle = False
    temperature = None
    sampling_seed = None
    few_shot = False
    one_source = True

    _SAMPLE: ClassVar[tuple[int, ...]] = (1, 0, 1, 1, 1, 0, 0, 1, 0, 0)

    def messages(
        self, cells: Sequence[PromptCell], examples: Sequence[PromptCell], source: str | None
    ) -> list[Message]:
        """Write the one user message of the study."""
        del examples
        n, k = len(cells), max((len(cell.genes) for cell in cells), default=0)
        task = (
            "Please use your knowledge to identify the sensitivity of the following cells to drugs. I will provide you"
            f" with the names of the {k} genes with the highest expression in each cell and the source of the data set"
            f" for these cells. A total of {n} cells are stored in the outer list, and the genes of each cell are"
            " stored in the inner list. If you think the cell is sensitive, answer 1, and if you think it is"
            " resistant, answer 0."
        )
        sample = ",".join(map(str, self.example_answer(n)))
        order = f"Please merge the results of {n} cells into a format like this example: {{res:{sample}}}. \n"
        lists = str([list(cell.genes) for cell in cells])
        parts = [task, "", "This is the data source:", source or "undisclosed", ""]
        parts += ["The following are the gene names:", lists, "", " ".join([order] * 3)]
        return [{"role": "user", "content": "\n".join(parts)}]

    def example_answer(self, n_cells: int) -> tuple[int, ...]:
        """Return the ten digits of the study, repeated or cut to the number of cells."""
        return tuple(self._SAMPLE[i % 10] for i in range(n_cells))

    def answer_tokens(self, n_cells: int) -> int:
        """Two tokens per cell and the frame."""
        return 8 + 2 * n_cells


class DefaultTemplate(Template):
    """Numbered cells with their context, examples with known response, and an answer in strict JSON.

    Notes
    -----
    The sample of the answer's form holds no label, so there is nothing to echo. What all cells have in common is
    told once; the rest stands with each cell.
    """

    name = "default"
    n_genes = 50
    exclude = ("mitochondrial", "ribosomal", "haemoglobin", "noncoding")

    _SYSTEM = (
        "You judge from single-cell RNA sequencing whether single cells respond to a drug treatment. For each cell you"
        " get its most highly expressed genes, the highest first, and what is known about its origin. Label 1 means"
        " sensitive: the treatment is expected to kill the cell or to stop its growth. Label 0 means resistant: the"
        " cell is expected to survive the treatment. Weigh evidence such as proliferation, apoptosis, drug targets,"
        " efflux pumps, stress response and cell state. Give your best guess for every cell, also when unsure."
    )

    def messages(
        self, cells: Sequence[PromptCell], examples: Sequence[PromptCell], source: str | None
    ) -> list[Message]:
        """Write a system message and one user message."""
        everyone = [*examples, *cells]
        shared = {k: v for k, v in everyone[0].context.items() if all(c.context.get(k) == v for c in everyone)}
        if source:
            shared["data source"] = source
        lines = [f"All cells: {_told(shared)}.", ""] if shared else []
        if examples:
            lines += ["Cells with known response:"]
            lines += [f"- label {cell.label}{_cell(cell, shared)}" for cell in examples] + [""]
        lines += ["Cells to judge:"]
        lines += [f"- cell {i}{_cell(cell, shared)}" for i, cell in enumerate(cells, 1)]
        numbers = "cell 1" if len(cells) == 1 else f"each of the cells 1 to {len(cells)}"
        lines += [
            "",
            'Reply with JSON and nothing else: {"answers": [{"cell": <number>, "label": <0 or 1>}, ...]},'
            f" one entry for {numbers}.",
        ]
        return [{"role": "system", "content": self._SYSTEM}, {"role": "user", "content": "\n".join(lines)}]

    def schema(self, n_cells: int) -> dict[str, Any]:
        """Return the schema: an array of cell numbers and labels."""
        entry = {
            "type": "object",
            "properties": {
                "cell": {"type": "integer", "enum": list(range(1, n_cells + 1))},
                "label": {"type": "integer", "enum": [0, 1]},
            },
            "required": ["cell", "label"],
            "additionalProperties": False,
        }
        return {
            "type": "object",
            "properties": {"answers": {"type": "array", "items": entry}},
            "required": ["answers"],
            "additionalProperties": False,
        }


#: The known templates; ``scdrugmap-fixed`` is another name of ``default``.
templates: dict[str, Template] = {"default": DefaultTemplate(), "scdrugmap": PublishedTemplate()}
_ALIASES = {"scdrugmap-fixed": "default", "published": "scdrugmap"}


def get_template(template: str | Template) -> Template:
    """Return a template by its name.

    Raises
    ------
    UnknownNameError
        For another name.

    Examples
    --------
    >>> get_template("scdrugmap-fixed").name
    'default'
    """
    if isinstance(template, Template):
        return template
    name = _ALIASES.get(template, template)
    if name not in templates:
        raise UnknownNameError("template", template, [*templates, *_ALIASES])
    return templates[name]


def without_accession(text: str) -> str:
    """Replace accessions of public archives, under which a model may know a study.

    Examples
    --------
    >>> without_accession("PBMC of GSE161801")
    'PBMC of undisclosed'
    """
    return _ACCESSION.sub("undisclosed", text)


def one_line(text: str, limit: int = 120) -> str:
    """Put text on one line of limited length, so that metadata cannot break the layout of a prompt."""
    flat = " ".join(str(text).split())
    return flat if len(flat) <= limit else flat[: limit - 3] + "..."


def _told(context: Mapping[str, str]) -> str:
    return "; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in context.items())


def _cell(cell: PromptCell, shared: Mapping[str, str]) -> str:
    own = {k: v for k, v in cell.context.items() if k not in shared}
    return (f" ({_told(own)})" if own else "") + ": " + ", ".join(cell.genes)
