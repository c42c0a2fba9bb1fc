"""Response labels as numbers, and the class that they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from scdrugmap._errors import InputError
from scdrugmap._keys import CLASSES, RESISTANT, SENSITIVE

_KNOWN = {SENSITIVE: 1, RESISTANT: 0, "1": 1, "0": 0, "1.0": 1, "0.0": 0, "true": 1, "false": 0}
_NONE = ("", "unknown", "nan", "none", "na", "<na>")


def encode(values: Any, argument: str = "label_key") -> np.ndarray:
    """Turn a label column into 1 (sensitive), 0 (resistant) and -1 (no label).

    Parameters
    ----------
    values
        Text in any case, 0/1, or booleans (true is sensitive); missing values, ``""`` and ``"unknown"`` are no label.
    argument
        Name for the error message.

    Returns
    -------
    Array (cells,) of int8.

    Raises
    ------
    InputError
        For any other value; the message holds the call that maps it.

    Examples
    --------
    >>> encode(["Sensitive", "resistant", None]).tolist()
    [1, 0, -1]
    """
    text = pd.Series(np.asarray(values, dtype=object)).map(lambda v: "" if pd.isna(v) else str(v).strip().lower())
    codes = text.map(_KNOWN | dict.fromkeys(_NONE, -1))
    if codes.isna().any():
        wrong = text[codes.isna()].value_counts()
        shown = ", ".join(f"{label!r} ({n} cells)" for label, n in wrong.head(5).items())
        raise InputError(
            argument,
            f"labels {shown}" + (" ..." if len(wrong) > 5 else ""),
            f"{' or '.join(map(repr, CLASSES))} (any case), 0/1 or booleans; missing values for cells without a label",
            f"map the labels first: adata.obs['response'] = adata.obs[...].map({{{wrong.index[0]!r}: 'sensitive', ...}})",
        )
    return codes.to_numpy(dtype=np.int8)


def both_classes(y: np.ndarray, argument: str = "label_key") -> None:
    """Refuse labels that hold one class only.

    Parameters
    ----------
    y
        Codes of :func:`encode`.
    argument
        Name for the error message.

    Raises
    ------
    InputError
        If a class has no cell.
    """
    counts = {name: int((y == i).sum()) for i, name in enumerate(CLASSES)}
    if min(counts.values()) == 0:
        raise InputError(
            argument,
            ", ".join(f"{n} {name}" for name, n in counts.items()) + f" and {int((y < 0).sum())} unlabelled cells",
            "labelled cells of both classes",
            "add samples of the missing class, or check the label column.",
        )
