"""What a benchmark holds beside the embedding: a few numbers per cell, whatever the number of features and of names."""

from __future__ import annotations

import hashlib
import tracemalloc

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scdrugmap import _cohort
from scdrugmap._cohort import Cohort, encode, read_batch, read_cohort
from scdrugmap.evaluation.grid.contenders import Head, array_contender
from scdrugmap.evaluation.grid.store import Unit
from scdrugmap.evaluation.grid.work import Task, run_task
from scdrugmap.evaluation.result import files
from scdrugmap.evaluation.splits.folds import Fold, Partition
from scdrugmap.heads import logistic

N = 20_000


def task_of(X, n_folds=4, kept=None):
    """All folds of one head on one array, with the arguments of its worker."""
    rng = np.random.default_rng(0)
    rows = np.arange(len(X)) if kept is None else kept
    parts = np.array_split(rng.permutation(rows), n_folds)
    folds = tuple(Fold(str(i), np.setdiff1d(rows, part), np.sort(part)) for i, part in enumerate(parts))
    partition = Partition("pooled", "cell", "", "all", folds, rows=rows)
    heads = (Head("logistic"),)
    units = tuple(Unit("mine", "frozen", "logistic", "pooled", "cell", "", "all", fold.name) for fold in folds)
    task = Task(array_contender("mine", X, heads), heads, partition, tuple(range(n_folds)), units)
    y = (X[:, 0] + rng.normal(size=len(X)) > 0).astype(np.int8)
    some = np.zeros(len(X), dtype=np.int64)
    return task, {
        "y": y, "sample": some, "study": some.astype(str), "counts": None, "genes": None, "batch": some, "seed": 0,
        "store": None,
    }  # fmt: skip


def test_training_and_testing_all_folds_copies_no_features(monkeypatch):
    X = np.random.default_rng(1).normal(size=(N, 64)).astype(np.float32)
    monkeypatch.setattr(logistic, "_BLOCK", 1 << 16)
    monkeypatch.setattr("scdrugmap.evaluation.grid.contenders.BLOCK", 1024)
    small, about = task_of(X[:400])
    run_task(small, **about)  # imports
    task, about = task_of(X)
    tracemalloc.start()
    try:
        outcomes = run_task(task, **about)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [len(o.row) for o in outcomes] == [N // 4] * 4
    assert peak < X.nbytes / 2


def mapped(X):
    """The array on disk that an array is a view of, if there is one."""
    while X is not None and not isinstance(X, np.memmap):
        X = getattr(X, "base", None)
    return X


@pytest.mark.parametrize("ready", [True, False], ids=["in obsm", "by name"])
def test_an_embedding_on_disk_stays_there(tmp_path, monkeypatch, ready):
    import scdrugmap as sd
    from scdrugmap.heads import fit
    from scdrugmap.models import registry

    cells = sd.datasets.simulate(n_studies=1, n_cells=120, n_genes=80, rng=0)
    model, seen = registry.get("tgpt").random(sd._anndata.gene_ids(cells)), []
    monkeypatch.setattr(fit, "fit_logistic", lambda *a: (seen.append(a[1]), logistic.fit_logistic(*a))[1])
    options = {"head": "logistic", "n_folds": 2, "baselines": ["majority"], "rng": 0}
    if ready:
        sd.tl.embed(cells, model, store=tmp_path / "cells", progress=False)
        sd.tl.benchmark(cells, models="X_tgpt", **options)
    else:
        monkeypatch.setattr(registry, "load", lambda *a, **k: model)
        sd.tl.benchmark(cells, models="tGPT", store=tmp_path / "run", **options)
    assert seen
    assert all(mapped(X) is not None for X in seen)


def test_cells_that_take_no_part_change_nothing():
    X = np.random.default_rng(1).normal(size=(300, 5)).astype(np.float32)
    kept = np.flatnonzero(np.arange(300) % 3)
    task, about = task_of(X, kept=kept)
    alone, less = task_of(X[kept])
    less["y"] = about["y"][kept]
    for fold, one, other in zip(task.partition.folds, run_task(task, **about), run_task(alone, **less), strict=True):
        np.testing.assert_array_equal(one.row, fold.test)
        np.testing.assert_array_equal(one.row, kept[other.row])
        np.testing.assert_allclose(one.score, other.score, atol=1e-6)


@pytest.fixture
def adata():
    obs = pd.DataFrame(
        {
            "response": ["Sensitive", None, "resistant", "unknown"] * 3,
            "study": ["a", "a", "b", "b"] * 3,
            "sample": ["1", "2", "1", "2"] * 3,
            "patient": ["p", None, "q", "p"] * 3,
        },
        index=[f"c{i}" for i in range(12)],
    )
    return ad.AnnData(np.ones((12, 2), dtype=np.float32), obs=obs)


@pytest.mark.parametrize("categorical", [True, False])
def test_cells_share_the_names_of_their_groups(adata, categorical):
    if categorical:
        adata.obs = adata.obs.astype("category")
    cohort = read_cohort(adata)
    assert cohort.y.tolist() == [1, -1, 0, -1] * 3
    assert cohort.sample.tolist() == ["a/1", "a/2", "b/1", "b/2"] * 3
    assert cohort.patient.tolist() == ["a/p", None, "b/q", "b/p"] * 3
    assert read_batch(adata)[0].tolist() == cohort.sample.tolist()
    for column in (cohort.study, cohort.sample, cohort.patient, read_batch(adata)[0]):
        assert len({id(v) for v in column}) == len(set(column))
    assert all(kept is given for kept, given in zip(cohort.names, adata.obs_names, strict=True))


def test_numbers_and_missing_values_as_names(adata):
    adata.obs["study"] = pd.Categorical([3, 1, 3, 1] * 3)
    adata.obs["sample"] = [2.5, None, 1.0, None] * 3
    adata.obs["response"] = ["sensitive", None, "resistant", None] * 3
    cohort = read_cohort(adata, patient_key=None)
    assert cohort.sample.tolist() == ["3/2.5", "1/", "3/1.0", "1/"] * 3


def test_labels_are_read_once_per_value(monkeypatch):
    asked = []
    plain = _cohort._plain
    monkeypatch.setattr(_cohort, "_plain", lambda value: (asked.append(value), plain(value))[1])
    assert encode(["Sensitive", "resistant ", np.nan, "NA"] * 50).tolist() == [1, 0, -1, -1] * 50
    assert len(asked) == 3


def test_the_digest_of_a_cohort_does_not_depend_on_how_much_is_read_at_once(monkeypatch):
    names = np.array([f"cell {i}" for i in range(10)], dtype=object)
    cohort = Cohort(np.zeros(10, dtype=np.int8), np.repeat(["a", "b"], 5).astype(object), np.full(10, "s"), names=names)
    expected = hashlib.sha256(cohort.y.tobytes())
    for column in (names, cohort.sample, cohort.study):
        expected.update("\x1f".join(column).encode())
    monkeypatch.setattr(_cohort, "_CHUNK", 3)
    assert cohort.digest == expected.hexdigest()


def test_folds_are_written_in_parts_as_they_would_be_at_once(tmp_path, monkeypatch):
    partitions = [
        task_of(np.zeros((50, 1), dtype=np.float32))[0].partition,
        Partition("cross", "study", "drug", "x", reason="no"),
    ]
    monkeypatch.setattr(files, "_ROWS", 7)
    files.save(tmp_path, {}, pd.DataFrame(columns=list(files.UNIT)), partitions, {})
    written = pd.read_parquet(tmp_path / "partitions.parquet")
    whole = pd.concat([p.to_frame() for p in partitions], ignore_index=True)
    pd.testing.assert_frame_equal(written.astype(object), whole[written.columns].astype(object))
    assert written["row"].dtype == np.int64
