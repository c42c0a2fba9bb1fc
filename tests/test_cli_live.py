"""The table that fills while a benchmark runs."""

from __future__ import annotations

import io

import numpy as np
from rich.console import Console

import scdrugmap as sd
from scdrugmap.cli import _live


def test_live_table_counts_units_and_marks_the_best(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(_live, "progress", Console(file=out, force_terminal=True, width=100))
    rng = np.random.default_rng(0)
    adata = sd.datasets.simulate(n_studies=3, n_cells=300, n_genes=100, rng=0)
    truth = (adata.obs["response"] == "sensitive").to_numpy(dtype=float)
    models = {"good": truth[:, None] + rng.normal(0, 0.3, (300, 2)), "noise": rng.normal(size=(300, 2))}
    with _live.LiveScores() as live:
        result = sd.tl.benchmark(
            adata, models=models, setting="cross", head="logistic", baselines=["all_sensitive"], rng=0,
            on_unit=live.update, progress=False,
        )  # fmt: skip
    assert live.done == live.total == len(result.units)
    assert {len(v) for v in live.scores.values()} == {3}
    rows = dict(zip(live.table().columns[0].cells, live.table().columns[3].cells, strict=True))
    assert rows["good (frozen, logistic)"] == "best"
    assert "units, about" in out.getvalue()
    means = result.table.query("metric == 'auroc' and level == 'cell' and model == 'good'")["value"].mean()
    assert np.isclose(np.mean(live.scores["good (frozen, logistic)"]), means)


def test_units_of_a_store_are_told_too(tmp_path):
    adata = sd.datasets.simulate(n_studies=2, n_cells=120, n_genes=60, rng=0)
    model = {"noise": np.random.default_rng(0).normal(size=(120, 2))}
    for _ in range(2):
        told = []
        sd.tl.benchmark(
            adata, models=model, setting="cross", head="logistic", baselines=[], rng=0, store=tmp_path,
            on_unit=lambda outcome, done, total, told=told: told.append((done, total)), progress=False,
        )  # fmt: skip
        assert len(told) == told[-1][1]
