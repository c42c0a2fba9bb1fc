"""Labels of one's own, for studies whose source has none that a program can read."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import pandas as pd

from scdrugmap._errors import InputError
from scdrugmap._keys import KEYS


def read_labels(file: Path | None) -> pd.DataFrame:
    """Read the user's table.

    Parameters
    ----------
    file
        CSV with the columns ``dataset`` and ``response``, and ``cell`` or ``sample`` where a study holds both labels.

    Raises
    ------
    InputError
        If it is not such a table.
    """
    if file is None:
        return pd.DataFrame(columns=["dataset", KEYS.response])
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError("labels", f"{file}: {error}", "a CSV file", "check the path and the format.") from None
    for column in ("dataset", KEYS.response):
        if column not in table:
            raise InputError("labels", f"columns {', '.join(table)}", f"a column {column!r}", "add it.")
    return table


def with_labels(adata: ad.AnnData, table: pd.DataFrame) -> ad.AnnData:
    """Give cells the labels that the user's table has for them; nothing happens where it is empty.

    Parameters
    ----------
    adata
        A study, which is changed.
    table
        Rows of the study.

    Raises
    ------
    InputError
        If a cell or sample is named twice, or none of the names is in the study.
    """
    if not len(table):
        return adata
    names = pd.Series("", index=adata.obs_names)
    found = pd.Series(table[KEYS.response].iloc[:1].to_numpy(), index=[""])
    for column, of_cells in (("cell", adata.obs_names.to_series()), (KEYS.sample, adata.obs.get(KEYS.sample))):
        if column in table and (table[column] != "").all() and of_cells is not None:
            names, found = of_cells.astype(str), table.set_index(column)[KEYS.response]
            break
    if found.index.has_duplicates:
        twice = found.index[found.index.duplicated()][0]
        raise InputError("labels", f"{twice!r} twice", "each cell or sample once", "leave one row.")
    if not names.isin(found.index).any():
        some = f"{', '.join(found.index[:3])}, where the study has {', '.join(pd.unique(names)[:3])}"
        raise InputError("labels", some, "cells or samples of the study", "look at their names with sd.datasets.fetch.")
    adata.obs[KEYS.response] = found.reindex(names).to_numpy()
    return adata
