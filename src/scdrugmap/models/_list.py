"""``sd.models.list``: its own file, because the name hides the builtin."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from scdrugmap.models.registry import usable

if TYPE_CHECKING:
    import pandas as pd


def list() -> pd.DataFrame:
    """Return one row per model: what it is, what it needs, under which licence its weights come.

    Returns
    -------
    Data frame indexed by key, with the fields of the model cards as columns.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> sd.models.list().loc["pca", "kind"]
    'fitted'
    """
    import pandas as pd

    table = pd.DataFrame.from_dict({key: asdict(cls.card) for key, cls in usable().items()}, orient="index")
    table.index.name = "key"
    for column in ("dim", "vocab_size", "max_length", "n_parameters"):
        table[column] = table[column].astype("Int64")
    return table
