"""The section of the report about why a predictor says what it says: tables of the tools of interpretation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from scdrugmap._errors import InputError
from scdrugmap._keys import KEYS

#: Rows of a table on the page.
SHOWN = 15
#: Tables by their name in ``uns``, with what each is about.
ABOUT = {
    KEYS.biomarkers: "What differs between resistant and sensitive samples, whatever a predictor says. "
    "Positive: higher in resistant.",
    KEYS.attribution: "What the predictor looks at, mean over samples. About the predictor, not about biology. "
    "Positive: towards resistant.",
    KEYS.perturbation
    + KEYS.ranking: "What the predictor would say with a gene knocked out or raised, in silico: most sensitising first. "
    "Positive: more resistant.",
    KEYS.pathways: "Sets of genes behind the ranking. Positive: with resistance.",
}
#: Under which the verdict of ``attribution_report`` is given.
VERDICT = "report"


def why(explained: Mapping[str, Any] | None) -> dict[str, Any]:
    """Verdict and tables of the section; empty without any.

    Parameters
    ----------
    explained
        ``uns`` of explained cells, or some of its tables, and the verdict as ``"report"`` (an ``AttributionReport`` or its text).

    Raises
    ------
    InputError
        If there is none of the tables.
    """
    if explained is None:
        return {}
    tables = [
        {"name": name, "about": about, "rows": len(explained[name]), "frame": _shown(explained[name])}
        for name, about in ABOUT.items()
        if name in explained
    ]
    if not tables:
        raise InputError(
            "explain", f"a mapping with {', '.join(map(str, explained)) or 'nothing'}", f"one of {', '.join(ABOUT)}",
            "pass adata.uns after sd.tl.attribute(adata, predictor).",
        )  # fmt: skip
    verdict = explained.get(VERDICT)
    text = verdict if verdict is None or isinstance(verdict, str) else verdict.to_text()
    return {"tables": tables, "verdict": text, "shown": SHOWN}


def _shown(table: pd.DataFrame) -> dict[str, Any]:
    """First rows, rounded, for the page."""
    out = table.head(SHOWN).copy()
    for column in out.select_dtypes("float"):
        out[column] = out[column].map(lambda v: "" if np.isnan(v) else f"{v:.3g}")
    return dict(out.to_dict("split"))
