"""The parity table against the recorded values of the official implementations."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import scdrugmap as sd
from scdrugmap.models.card import model_key

_spec = importlib.util.spec_from_file_location("parity_table", Path(__file__).with_name("parity_table.py"))
assert _spec is not None and _spec.loader is not None
_table = importlib.util.module_from_spec(_spec)
import sys  # noqa: E402

sys.modules["parity_table"] = _table
_spec.loader.exec_module(_table)


@pytest.fixture(scope="module")
def cells(shared):
    return ad.read_h5ad(shared / "parity" / "input.h5ad")


#: Long sequences: what differs between their rows of the table is the reading of a cell, so every fourth cell shows it.
LONG = {"Geneformer", "Llama-3-8B", "CellLM", "scBERT"}
WHOLE = {model: next(c.id for c in _table.CASES if c.model == model) for model in LONG}


@pytest.mark.parametrize("case", _table.CASES, ids=lambda case: case.id)
def test_parity(case, cells, shared):
    root = shared / "parity" / (case.folder or model_key(case.model).replace("llama38b", "llama"))
    expected = np.load(root / "expected.npz")
    rows = expected[case.rows] if isinstance(case.rows, str) else np.arange(cells.n_obs)[case.rows or slice(None)]
    wanted = expected[case.array]
    if case.model in LONG and case.id != WHOLE[case.model]:
        cells, rows, wanted = cells[rows[::4]], np.arange(len(rows[::4])), wanted[::4]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = sd.tl.embed(
            cells, case.model, checkpoint=root / case.checkpoint, copy=True, progress=False, **case.options
        )
    found = out.obsm[f"X_{model_key(case.model)}"]
    assert found.shape[0] == cells.n_obs
    np.testing.assert_allclose(found[rows], wanted, rtol=0, atol=case.atol)
