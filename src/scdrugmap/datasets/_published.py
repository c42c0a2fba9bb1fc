"""Scores that the paper reports: facts to stand beside a run, never computed here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scdrugmap._errors import UnknownNameError

if TYPE_CHECKING:
    import pandas as pd

_FILE = Path(__file__).parent / "data" / "published_scores.csv"


def published_scores(figure: str | None = None) -> pd.DataFrame:
    """Table of the numbers that the paper reports in words, as reported and not reproduced.

    Parameters
    ----------
    figure
        ``"2"`` (pooled), ``"3"`` (across data sets), ``"5"`` (prompted), ``"6"`` (validation) or ``"7"`` (size and speed);
        all if ``None``.

    Returns
    -------
    One row per number: ``figure``, ``collection``, ``setting``, ``strategy``, ``by`` and ``category`` (the evaluated
    cells), ``model``, ``metric``, ``value``, ``note`` and ``source``. Most bars of the paper's figures have no number.

    Raises
    ------
    UnknownNameError
        For another figure.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> table = sd.datasets.published_scores("3")
    >>> table.query("model == 'scGPT' and category == 'Tumor tissue'")["value"].tolist()
    [0.858]
    """
    import pandas as pd

    table = pd.read_csv(_FILE, keep_default_na=False, dtype={"figure": str})
    if figure is None:
        return table
    known = list(dict.fromkeys(table["figure"]))
    if figure not in known:
        raise UnknownNameError("figure", figure, known)
    return table[table["figure"] == figure].reset_index(drop=True)
