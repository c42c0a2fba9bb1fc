"""``sd.pp.harmonize_response``: labels of any spelling to resistant and sensitive."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scdrugmap import _anndata
from scdrugmap._errors import InputError, InputTypeError, ScDrugMapWarning
from scdrugmap._keys import CLASSES, KEYS
from scdrugmap._labels import mapping_for, recognise_labels

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


def harmonize_response(
    adata: AnnData | MuData,
    column: str,
    mapping: Mapping[object, str | None] | None = None,
    *,
    key_added: str = KEYS.response,
    mod: str = "rna",
    copy: bool = False,
) -> AnnData | MuData | None:
    """Turn the labels of a study into ``"resistant"`` and ``"sensitive"``.

    Common spellings are recognised (``R``, ``Resistant``, ``non-responder``, ``PD``; ``S``, ``responder``, ``CR``,
    ``PR``), and so are texts that hold one of the words ``resistant`` or ``sensitive`` (``"MCF7_resistant"``). Letters
    and clinical codes count only where the values beside them allow that reading (``PR`` beside ``PS`` is no partial
    response, ``R`` beside ``NR`` may be a responder). Values that say that nothing is known become missing. Everything
    else, numbers and words that grade or negate included, is listed for you to decide, and nothing is changed.

    Parameters
    ----------
    adata
        Annotated data.
    column
        Column of ``obs`` with the labels.
    mapping
        Your decisions: value to ``"resistant"``, ``"sensitive"`` or ``None`` (unknown); they come before the
        recognised spellings.
    key_added
        Column of ``obs`` to write.
    mod
        Modality of a MuData.
    copy
        Return a modified copy.

    Returns
    -------
    ``None``, or the copy. Writes:

    ``obs[key_added]``
        Categorical with the categories ``["resistant", "sensitive"]``, missing where nothing is known.
    ``uns["scdrugmap_labels"]``
        ``column``, and ``table``: each value found, its label and its number of cells.

    Raises
    ------
    MissingKeyError
        There is no such column.
    InputError
        Values are left that nobody has decided on, ``mapping`` holds another label, or ``key_added`` exists already
        with other labels.

    Warns
    -----
    ScDrugMapWarning
        A value of ``mapping`` does not occur; cells are left without a label; only one label is left.

    Examples
    --------
    >>> import anndata, numpy as np, pandas as pd, scdrugmap as sd
    >>> adata = anndata.AnnData(np.ones((3, 1)), obs=pd.DataFrame({"status": ["R", "S", "R"]}, index=list("abc")))
    >>> sd.pp.harmonize_response(adata, "status")
    >>> adata.obs["response"].tolist()
    ['resistant', 'sensitive', 'resistant']
    """
    source = _anndata.reading(adata, mod=mod)
    _anndata.refuse_empty(source)
    values = _anndata.obs_column(source, column, "column")
    if mapping is not None and not isinstance(mapping, Mapping):
        raise InputTypeError("mapping", type(mapping).__name__, "a dictionary or None", "pass {value: label}.")
    decided = {} if mapping is None else {_text(k): _decision(k, v) for k, v in mapping.items()}
    counts = values.astype(object).where(values.notna(), "").map(_text).value_counts(sort=False)
    labels = recognise_labels(counts.index) | {value: decided[value] for value in counts.index if value in decided}
    open_values = [value for value, found in labels.items() if found is False]
    if open_values:
        listing = ", ".join(f"{v!r} ({counts[v]} cells)" for v in open_values[:20])
        raise InputError(
            f"obs[{column!r}]",
            listing + (f" and {len(open_values) - 20} more" if len(open_values) > 20 else ""),
            "values that say resistant or sensitive",
            f"decide on each: mapping={mapping_for(open_values[:20])} with 'resistant', 'sensitive' or None for unknown.",
        )
    label = values.astype(object).where(values.notna(), "").map(_text).map(lambda v: labels[v] or None)
    result = pd.Categorical(label, categories=list(CLASSES))
    _check_target(source, key_added, column, result)
    _warn(decided, counts, result)

    work = _anndata.edit(adata, copy=copy, mod=mod)
    work.adata.obs[key_added] = result
    work.adata.uns[KEYS.labels] = {
        "column": column,
        "table": pd.DataFrame(
            {
                "value": counts.index.astype(object),
                "label": [labels[v] or "" for v in counts.index],
                "n_cells": counts.to_numpy(np.int64),
            },
            index=pd.RangeIndex(len(counts)).astype(str),
        ),
    }
    return work.finish([key_added])


def _text(value: object) -> str:
    """A value as it is written: ``1.0`` and ``True`` as ``1`` and ``True``."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value).strip()


def _decision(key: object, value: object) -> str | None:
    """Check one row of the user's mapping."""
    if value is None or (isinstance(value, str) and value in CLASSES):
        return value
    raise InputError(f"mapping[{key!r}]", repr(value), "'resistant', 'sensitive' or None", "use one of the two labels.")


def _check_target(adata: AnnData, key: str, column: str, result: pd.Categorical) -> None:
    """Never replace labels by other labels; gaps may be filled."""
    if not isinstance(key, str) or not key:
        raise InputError("key_added", repr(key), "the name of a column", 'pass key_added="response".')
    if key == column or key not in adata.obs:
        return
    before = adata.obs[key].astype(object).where(adata.obs[key].notna(), None).to_numpy()
    after = np.asarray(pd.Series(result).astype(object).where(~result.isna(), None))
    if ((before != after) & pd.notna(before)).any():
        raise InputError(
            "key_added",
            f"obs[{key!r}], which holds other labels",
            "a new column, because true labels are never overwritten",
            'pass key_added="response_2", or delete the column first.',
        )


def _warn(decided: dict[str, str | None], counts: pd.Series, result: pd.Categorical) -> None:
    """Say what is unexpected about the outcome."""
    unused = [value for value in decided if value not in counts.index]
    if unused:
        warnings.warn(f"mapping holds values that do not occur: {unused[:10]}", ScDrugMapWarning, stacklevel=3)
    n_missing = int(result.isna().sum())
    if n_missing:
        warnings.warn(f"{n_missing} of {len(result)} cells have no label.", ScDrugMapWarning, stacklevel=3)
    present = [c for c in CLASSES if (result == c).any()]
    if len(present) == 1:
        warnings.warn(f"all labelled cells are {present[0]}.", ScDrugMapWarning, stacklevel=3)
