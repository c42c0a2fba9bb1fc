"""Benchmarks of data in a file or in dask, and the choice of where they run."""

from __future__ import annotations

import pickle
import threading

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scdrugmap as sd
from scdrugmap._errors import InputError, ScDrugMapWarning
from scdrugmap.evaluation.grid.backed import FileCounts, portable

BASELINES = ["all_sensitive", "depth", "pca", "sample_probe"]


def grid(adata, models=("X_log", "hvg"), **kwargs):
    options = {"n_folds": 3, "rng": 0, "head": "logistic", "baselines": BASELINES} | kwargs
    return sd.tl.benchmark(adata, models=models if isinstance(models, dict) else list(models), **options)


@pytest.fixture(params=["csr", "csc", "dense"])
def pair(request, cohort, tmp_path):
    """The same cells in memory and backed by a file."""
    adata = cohort()
    if request.param != "dense":
        adata.X = sparse.csr_matrix(adata.X).asformat(request.param)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    return adata, ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")


def test_backed_data_give_the_table_of_data_in_memory(pair, monkeypatch):
    adata, backed = pair
    expected = grid(adata).table
    if sparse.issparse(adata.X) and adata.X.format == "csc":
        with pytest.warns(ScDrugMapWarning, match="gene by gene"):
            pd.testing.assert_frame_equal(grid(backed).table, expected)
        return

    def refuse(*args, **kwargs):
        raise AssertionError("the whole matrix was loaded")

    from anndata._core import sparse_dataset

    monkeypatch.setattr(ad.AnnData, "to_memory", refuse)
    monkeypatch.setattr(sparse_dataset.BaseCompressedSparseDataset, "to_memory", refuse)
    pd.testing.assert_frame_equal(grid(backed).table, expected)


def test_no_read_is_larger_than_a_block(pair, monkeypatch):
    from scdrugmap.embedding.source import CountSource
    from scdrugmap.evaluation.grid import inputs, work

    _, backed = pair
    sizes, read = [], CountSource._read

    def recorded(self, rows):
        block = read(self, rows)
        sizes.append(block.shape[0])
        return block

    blocks = CountSource.blocks
    monkeypatch.setattr(CountSource, "blocks", lambda self, size, start=0: blocks(self, min(size, 16), start))
    monkeypatch.setattr(CountSource, "_read", recorded)
    monkeypatch.setattr(work, "BLOCK", 16)
    assert grid(backed).table["reason"].eq("").any()
    assert max(sizes) == 16
    assert inputs.read_counts(backed, None)[0] is not None


def test_processes_open_the_file_for_themselves(cohort, tmp_path):
    adata = cohort()
    adata.X = sparse.csr_matrix(adata.X)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    pd.testing.assert_frame_equal(grid(backed, n_jobs=2).table, grid(adata).table)


def test_counts_in_a_file_survive_pickling(pair, tmp_path):
    adata, backed = pair
    counts = portable(backed.X)
    assert isinstance(counts, FileCounts)
    again = pickle.loads(pickle.dumps(counts))
    rows = np.array([1, 5, 6])

    def dense(X):
        return X.toarray() if sparse.issparse(X) else np.asarray(X)

    np.testing.assert_array_equal(dense(again[rows]), dense(adata.X[rows]))
    assert again.shape == adata.shape
    assert portable(adata.X) is adata.X
    lost = FileCounts(str(tmp_path / "gone.h5ad"), "/X", adata.shape)
    with pytest.raises(InputError, match="worker cannot read"):
        lost[rows]


def test_dask_data_give_the_table_of_data_in_memory(cohort):
    da = pytest.importorskip("dask.array")
    adata = cohort()
    expected = grid(adata).table
    adata.X = da.from_array(adata.X, chunks=(50, 17))
    pd.testing.assert_frame_equal(grid(adata).table, expected)


def test_an_open_client_does_the_work(cohort, tmp_path):
    distributed = pytest.importorskip("distributed")
    adata, log = cohort(), tmp_path / "log"

    def spy(train, test, seed):
        try:
            place = distributed.get_worker().address
        except ValueError:
            place = "here"
        with log.open("a") as file:
            file.write(f"{place}\n")
        return np.linspace(0, 1, len(test))

    def places(**kwargs):
        log.write_text("")
        tables.append(grid(adata, {"array": "X_log", "spy": spy}, **kwargs).table)
        return set(log.read_text().split())

    tables = []
    assert places() == {"here"}
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster),
    ):
        assert places() == {worker.address for worker in cluster.workers.values()}
        assert places(n_jobs=1) == {"here"}
    assert places() == {"here"}
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0])


def test_work_that_cannot_be_sent_is_an_error_that_says_so(cohort):
    lock = threading.Lock()

    def holds_a_lock(train, test, seed):
        with lock:
            return np.zeros(len(test))

    with pytest.raises(InputError, match=r"cannot be sent.*n_jobs=1"):
        grid(cohort(), {"locked": holds_a_lock}, baselines=[], n_jobs=2)


def test_cells_of_an_open_file_travel_as_its_name(pair):
    from scdrugmap.tl._portable import Cells

    adata, backed = pair
    backed.obs["batch"] = "changed after the file was opened"
    sent = pickle.dumps(Cells(backed))
    again = pickle.loads(sent).adata
    assert again.isbacked and again.obs.equals(backed.obs) and len(sent) < 50_000
    assert abs(again[5:9].to_memory().X - backed[5:9].to_memory().X).sum() == 0
    part = pickle.loads(pickle.dumps(Cells(backed[5:9]))).adata
    assert part.obs_names.tolist() == adata.obs_names[5:9].tolist()
    assert pickle.loads(pickle.dumps(Cells(adata))).adata.shape == adata.shape
