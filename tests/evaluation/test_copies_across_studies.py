"""Cells that two studies deposited are found on the joined data, also where each study measured other genes."""

from __future__ import annotations

import numpy as np
import pytest

import scdrugmap as sd
from scdrugmap._errors import ScDrugMapWarning


@pytest.fixture
def joined(cohort):
    """Two studies of eight samples, each without some genes of the other; samples p0 and p1 are the same cells in both."""
    whole = cohort(n_studies=1, seed=0)
    other = cohort(n_studies=1, seed=1)
    shared = (whole.obs["sample"].isin(["p0", "p1"])).to_numpy()
    other.X[shared] = whole.X[shared]
    a, b = whole[:, 5:].copy(), other[:, :-5].copy()
    for data in (a, b):
        del data.obs["study"], data.obsm["X_log"]
    with pytest.warns(ScDrugMapWarning, match="share cells"):
        return sd.pp.concat_studies({"A": a, "B": b}, join="outer")


def test_leakage_report_finds_them(joined):
    found = sd.tl.leakage_report(joined).findings.set_index("check").loc["copied cells"]
    assert found["level"] == "leak"
    assert found["finding"].startswith("24 cells occur more than once")


def test_benchmark_keeps_them_on_one_side(joined):
    result = sd.tl.benchmark(joined, models="pca", n_folds=6, head="logistic", baselines=[], rng=0)
    copies = {name.partition(":")[2] for name in joined.obs_names[joined.obs["duplicated"]]}
    names = np.array([name.partition(":")[2] for name in joined.obs_names])
    assert len(copies) == 24
    for fold in result.partitions[0].folds:
        both = set(names[fold.train]) & set(names[fold.test]) & copies
        assert not both


def test_cells_of_one_study_that_differ_elsewhere_are_no_copies(joined):
    from scdrugmap.evaluation.grid.inputs import find_duplicates

    rng = np.random.default_rng(0)
    X = joined.X.tolil()
    # Two cells of study A alike on the common genes, and apart on the gene that B does not have.
    X[30] = X[31]
    joined.X = X.tocsr()
    own = joined.var["n_studies"].to_numpy() == 1
    joined.X[30, np.flatnonzero(own)[-1]] += 3 + rng.integers(3)
    codes = find_duplicates(joined, joined.obs["study"].to_numpy())
    assert codes[30] != codes[31]
