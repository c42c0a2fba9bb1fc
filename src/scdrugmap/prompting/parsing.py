"""Reading labels out of an answer, however it is wrapped, and their probabilities."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

_LABEL = r"([01](?!\.?\d)(?!\w)|sensitive\b|resistant\b)"
_QUOTE = r"[\"'`*]*"
_OBJECT = re.compile(r"\{[^{}]*\}")
_CELL = re.compile(rf"{_QUOTE}(?:cell|id)(?:[_ ]?(?:id|number))?{_QUOTE}\s*[:=]\s*{_QUOTE}(?:cell[ _]?)?(\d+)\b", re.I)
_VALUE = re.compile(
    rf"{_QUOTE}(?:label|answer|res|result|response|prediction|sensitivity|value){_QUOTE}\s*[:=]\s*{_QUOTE}{_LABEL}",
    re.I,
)
_ITEM = rf"{_QUOTE}{_LABEL}{_QUOTE}"
# After a name such as "res:" the brackets may be missing at the start; the end is always needed, or the list is cut off.
_LIST = re.compile(
    rf"[\[{{]\s*(?:{_QUOTE}\w+{_QUOTE}\s*[:=]\s*\[?\s*)?((?:{_ITEM}\s*[,;]\s*)*{_ITEM})\s*,?\s*[\]}}]", re.I
)
_ONE = re.compile(_ITEM, re.I)
_PAIR = re.compile(rf"(?<![\w.]){_QUOTE}(?:cell[ _]*)?(\d+){_QUOTE}\s*(?:[:=]|[.)]\s|\s-|->)\s*{_QUOTE}{_LABEL}", re.I)
_REFUSAL = re.compile(
    r"\b(sorry|cannot|can't|can’t|unable to|not able to|won't|will not|as an ai|i must decline|not comfortable)\b", re.I
)


@dataclass(frozen=True)
class Answer:
    """Labels that were found in a text.

    Parameters
    ----------
    labels
        Label (0 or 1) of each answered cell, by its number from 1.
    places
        Where in the text each label stands, in characters.
    problem
        ``""`` if every cell has a label; else ``"empty"``, ``"refused"``, ``"wrong_count"``, ``"missing"`` or
        ``"unparsable"``.
    n_extra
        Entries for cells that were not asked about, which are left out.
    """

    labels: Mapping[int, int] = field(default_factory=dict)
    places: Mapping[int, int] = field(default_factory=dict)
    problem: str = ""
    n_extra: int = 0


def parse_answer(text: str | None, n_cells: int, example: Sequence[int] | None = None) -> Answer:
    """Read the labels of ``n_cells`` cells.

    Parameters
    ----------
    text
        Answer of the model.
    n_cells
        Number of cells that were asked about, numbered from 1.
    example
        Labels of the sample answer in the prompt; an echo of it does not count beside another answer.

    Returns
    -------
    The labels. Entries that name their cell may be incomplete, and a cell with two different labels has none; a list
    without numbers counts only at its full length. The last complete answer in the text holds.

    Notes
    -----
    Read are objects with a number and a label, lists (``{res:1,0}``, ``[1, 0]``), maps and lines
    (``{"1": 0}``, ``cell 1: sensitive``), with or without code fences, single quotes and trailing commas.

    Examples
    --------
    >>> parse_answer("Here you are: {res: 1, 0, 1,}", 3).labels
    {1: 1, 2: 0, 3: 1}
    >>> parse_answer('{"answers": [{"cell": 2, "label": 0}, {"cell"', 2)
    Answer(labels={2: 0}, places={2: 34}, problem='missing', n_extra=0)
    """
    if text is None or not text.strip():
        return Answer(problem="empty")
    named = _resolve(_objects(text), n_cells)
    if named is not None and not named.problem:
        return named
    listed, n_lists = _lists(text, n_cells, example)
    if listed is not None:
        return listed
    paired = _resolve(_pairs(text), n_cells) if named is None else None
    if paired is not None and (not paired.problem or not n_lists):
        return paired
    if named is not None:
        return named
    if n_lists:
        return Answer(problem="wrong_count")
    return Answer(problem="refused" if _REFUSAL.search(text) else "unparsable")


def label_probability(
    tokens: Sequence[str], alternatives: Mapping[int, Mapping[str, float]], place: int
) -> float | None:
    """Return P(sensitive) of a label from the log-probabilities at its token.

    Parameters
    ----------
    tokens
        Tokens of the answer, which joined give its text.
    alternatives
        Log-probabilities of the likeliest tokens, by the number of the token in the answer.
    place
        Where the label stands in the text, in characters.

    Returns
    -------
    P(1) / (P(0) + P(1)), or ``None`` if the token holds more than the label or its alternatives are not known.

    Examples
    --------
    >>> label_probability(["{res:", "1", "}"], {1: {"1": -0.1, "0": -2.4}}, 5)  # doctest: +ELLIPSIS
    0.908...
    """
    ends = np.cumsum([len(token) for token in tokens])
    number = int(np.searchsorted(ends, place, side="right"))
    if number >= len(tokens) or _value(tokens[number]) is None or number not in alternatives:
        return None
    mass = [0.0, 0.0]
    for other, log_probability in alternatives[number].items():
        value = _value(other)
        if value is not None and math.isfinite(log_probability):
            mass[value] += math.exp(min(log_probability, 0.0))
    return mass[1] / sum(mass) if sum(mass) > 0 else None


def holds_label(token: str) -> bool:
    """Tell whether a token may be a label, so that its alternatives are worth keeping."""
    return _value(token) is not None


def _value(text: str) -> int | None:
    """Label that a token, or the first token of a word, stands for."""
    bare = re.sub(r"[^a-z0-9]", "", text.lower())
    if bare in ("0", "1"):
        return int(bare)
    if bare and "sensitive".startswith(bare):
        return 1
    return 0 if bare and "resistant".startswith(bare) else None


def _label(text: str) -> int:
    return 1 if text.lower() in ("1", "sensitive") else 0


def _objects(text: str) -> list[tuple[int, int, int]]:
    """(cell, label, place) of objects with both."""
    found = []
    for match in _OBJECT.finditer(text):
        cell, value = _CELL.search(match[0]), _VALUE.search(match[0])
        if cell and value and len(cell[1]) < 10:
            found.append((int(cell[1]), _label(value[1]), match.start() + value.start(1)))
    return found


def _pairs(text: str) -> list[tuple[int, int, int]]:
    """(cell, label, place) of map entries and lines."""
    return [(int(m[1]), _label(m[2]), m.start(2)) for m in _PAIR.finditer(text) if len(m[1]) < 10]


def _resolve(found: list[tuple[int, int, int]], n_cells: int) -> Answer | None:
    """Take the last complete run of cells, or else all runs; cells that it or what follows contradicts have no label."""
    inside = [entry for entry in found if 1 <= entry[0] <= n_cells]
    n_extra = len(found) - len(inside)
    if not inside:
        return None
    runs: list[dict[int, tuple[int, int]]] = [{}]
    for cell, label, place in inside:
        if cell in runs[-1]:
            runs.append({})
        runs[-1][cell] = label, place
    complete = [i for i, run in enumerate(runs) if len(run) == n_cells]
    valid = runs[complete[-1] :] if complete else runs
    chosen: dict[int, tuple[int, int]] = {}
    for run in valid:
        chosen |= run
    for cell in list(chosen):
        if len({run[cell][0] for run in valid if cell in run}) > 1:
            del chosen[cell]
    labels = {cell: chosen[cell][0] for cell in sorted(chosen)}
    places = {cell: chosen[cell][1] for cell in sorted(chosen)}
    return Answer(labels, places, "" if len(labels) == n_cells else "missing", n_extra)


def _lists(text: str, n_cells: int, example: Sequence[int] | None) -> tuple[Answer | None, int]:
    """Read the last list of the right length that is no echo, and count all lists."""
    candidates, n_lists = [], 0
    for match in _LIST.finditer(text):
        items = [(_label(m[1]), match.start(1) + m.start(1)) for m in _ONE.finditer(match[1])]
        n_lists += 1
        if len(items) == n_cells:
            candidates.append(items)
    own = [items for items in candidates if example is None or [v for v, _ in items] != list(example)]
    best = own or candidates
    if not best:
        return None, n_lists
    numbered = list(enumerate(best[-1], 1))
    return Answer({i: value for i, (value, _) in numbered}, {i: place for i, (_, place) in numbered}), n_lists
