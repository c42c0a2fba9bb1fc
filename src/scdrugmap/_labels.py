"""What a text says about the response: resistant, sensitive, nothing, or something that only a person can decide."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from scdrugmap._keys import RESISTANT, SENSITIVE

#: Letters for the two classes. Beside words of response or clinical codes, R may stand for responder.
_LETTERS = {"r": RESISTANT, "res": RESISTANT, "resist": RESISTANT, "s": SENSITIVE, "sens": SENSITIVE}
#: Codes of clinical response (RECIST and its like); beside others, PR may be "platinum resistant".
_CODES = {"nr": RESISTANT, "pd": RESISTANT, "cr": SENSITIVE, "pr": SENSITIVE}
#: Codes of the same kind that decide nothing.
_OPEN_CODES = frozenset(
    re.findall(r"\w+", "sd mr nc ne nd na vgpr scr cri dor por mpr pcr resp nonresp nonres nonr")
    + re.findall(r"\w+ \w+", "non resp, non res, non r, stable disease")
)
_RESPONSE = {
    "nonresponder": RESISTANT,
    "non responder": RESISTANT,
    "nonresponse": RESISTANT,
    "non response": RESISTANT,
    "no response": RESISTANT,
    "progressive disease": RESISTANT,
    "responder": SENSITIVE,
    "response": SENSITIVE,
    "responsive": SENSITIVE,
    "complete response": SENSITIVE,
    "partial response": SENSITIVE,
    "complete remission": SENSITIVE,
    "complete responder": SENSITIVE,
    "partial responder": SENSITIVE,
}
_PLAIN = {
    "resistant": RESISTANT,
    "resistance": RESISTANT,
    "refractory": RESISTANT,
    "relapse": RESISTANT,
    "relapsed": RESISTANT,
    "relapsing": RESISTANT,
    "tolerant": RESISTANT,
    "drug tolerant": RESISTANT,
    "persister": RESISTANT,
    "drug tolerant persister": RESISTANT,
    "dtp": RESISTANT,
    "insensitive": RESISTANT,
    "not sensitive": RESISTANT,
    "sensitive": SENSITIVE,
    "sensitivity": SENSITIVE,
}
_KNOWN = _LETTERS | _CODES | _RESPONSE | _PLAIN
_MISSING = {"", "nan", "na", "n a", "none", "null", "unknown", "unlabelled", "unlabeled", "not available", "nd", "ne"}
_WORDS = {"resistant": RESISTANT, "resistance": RESISTANT, "sensitive": SENSITIVE}
#: Words that negate, grade or doubt the word beside them.
_QUALIFIERS = frozenset(
    re.findall(
        r"\w+",
        "non not no never un in anti hyper hypo re de pre without lost loss lack lacking absent less more least most low lower "
        "lowest high higher highly medium intermediate moderate moderately mild mildly weak weakly slight slightly semi partial "
        "partially partly rather somewhat very extremely hardly barely almost nearly former formerly previously once before "
        "prior until becoming turning towards than or versus vs and if possibly possible probably probable likely unlikely maybe "
        "perhaps presumed presumably putative suspected predicted expected unclear uncertain unknown mixed neither nor",
    )
)


def words_of(value: str) -> list[str]:
    """Lower-case words of a text, also of ``camelCase``."""
    return re.findall(r"[a-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", value).lower())


def word_label(value: str) -> str | None:
    """Return the label of a text that holds one of the words ``resistant`` or ``sensitive``, unless another word bends it.

    Examples
    --------
    >>> [word_label(v) for v in ("MCF7_resistant", "never resistant", "sensitive?")]
    ['resistant', None, None]
    """
    words = words_of(value)
    found = {_WORDS[word] for word in words if word in _WORDS}
    bent = _QUALIFIERS & set(words) or "?" in value
    return found.pop() if len(found) == 1 and not bent else None


def recognise_label(value: str) -> str | bool | None:
    """Return the label that a text stands for, ``None`` where it says that nothing is known, ``False`` if unclear.

    This is the reading of a text alone; :func:`recognise_labels` also looks at the values beside it.

    Examples
    --------
    >>> [recognise_label(v) for v in ("Non-Responder", "A549_sensitive", "non-resistant", "n/a", "day 7")]
    ['resistant', 'sensitive', False, None, False]
    """
    for text in _spellings(value):
        if text in _MISSING:
            return None
        if text in _KNOWN and "?" not in value:
            return _KNOWN[text]
    return word_label(value) or False


def recognise_labels(values: Iterable[str]) -> dict[str, str | bool | None]:
    """Return the label of every distinct text of a column, each read in the light of the others.

    Examples
    --------
    >>> recognise_labels(["CR", "PR", "PD"])["PR"], recognise_labels(["PR", "PS"])["PR"]
    ('sensitive', False)
    >>> recognise_labels(["R", "NR"])["R"]
    False
    """
    values = list(dict.fromkeys(values))
    alone = {value: recognise_label(value) for value in values}
    forms = {value: set(_spellings(value)) for value in values if alone[value] is not None}
    clinical = _CODES.keys() | _OPEN_CODES | _RESPONSE.keys()
    course = {"refractory", "relapse", "relapsed", "relapsing"}
    letters = _LETTERS.keys() | _PLAIN.keys()
    no_letters = any(f & clinical or (_is_code(v) and not f & letters) for v, f in forms.items())
    no_codes = any(not f & (clinical | course) for f in forms.values())
    for value, found in forms.items():
        if (no_letters and found & _LETTERS.keys()) or (no_codes and found & _CODES.keys()):
            alone[value] = False
    return alone


def mapping_for(values: Iterable[Any]) -> str:
    """Write the mapping that a person has to fill in: values as they are, labels only where they are recognised.

    Examples
    --------
    >>> print(mapping_for(["R", "S", "treated"]))
    {'R': 'resistant', 'S': 'sensitive', 'treated': '...'}
    >>> print(mapping_for([0, 1]))
    {0: '...', 1: '...'}
    """
    plain = [value.item() if isinstance(value, np.generic) else value for value in values]
    known: Mapping[str, Any] = recognise_labels(str(value) for value in plain)
    pairs = [f"{value!r}: {(known[str(value)] or '...')!r}" for value in plain if known[str(value)] is not None]
    return "{" + ", ".join(pairs) + "}"


def _spellings(value: str) -> tuple[str, str]:
    """The words of a text, with and without taking ``camelCase`` apart."""
    return " ".join(words_of(value)), " ".join(re.findall(r"[a-z0-9]+", value.lower()))


def _is_code(value: str) -> bool:
    """Whether a text is an abbreviation of a few letters."""
    return len(re.sub(r"[^A-Za-z]", "", value)) <= 3 and not re.search(r"\d", value)
