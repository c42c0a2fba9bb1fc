"""The negative binomial engine of biomarkers: PyDESeq2, where it is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdrugmap._errors import MissingDependencyError
from scdrugmap.interpret.moderated import Effects

if TYPE_CHECKING:
    from scdrugmap.interpret.pseudobulk import Pseudobulk, Units


def deseq_effects(bulk: Pseudobulk, units: Units, tested: np.ndarray) -> Effects:
    """Fit ``~ study + label`` by PyDESeq2 on the tested genes; the others are NaN.

    Raises
    ------
    MissingDependencyError
        If PyDESeq2 is not installed.
    """
    try:
        from pydeseq2.dds import DeseqDataSet
        from pydeseq2.ds import DeseqStats
    except ImportError as error:
        raise MissingDependencyError("pydeseq2", "interpret", "engine='deseq2'") from error
    # A label that sorts first is the level that the other is compared with.
    design = pd.DataFrame({"label": np.where(units.y == 0, "b_resistant", "a_sensitive")})
    formula = "~label"
    if len(np.unique(units.study)) > 1:
        design["study"] = [f"s{c}" for c in pd.factorize(units.study)[0]]
        formula = "~study + label"
    design.index = [f"u{i}" for i in range(len(design))]
    counts = pd.DataFrame(np.rint(bulk.counts[:, tested]).astype(int), index=design.index)
    counts.columns = counts.columns.astype(str)
    data: Any = DeseqDataSet(counts=counts, metadata=design, design=formula, quiet=True)
    data.deseq2()
    result: Any = DeseqStats(data, contrast=["label", "b_resistant", "a_sensitive"], quiet=True)
    result.summary()
    effect, se = np.full(len(tested), np.nan), np.full(len(tested), np.nan)
    effect[tested] = result.results_df["log2FoldChange"].to_numpy()
    se[tested] = result.results_df["lfcSE"].to_numpy()
    return Effects(effect, se, np.inf)
