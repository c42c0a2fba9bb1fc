"""Embedding on a cluster: the serial numbers, one load per process, and a worker that dies half-way."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import types
from pathlib import Path

import anndata as ad
import joblib
import numpy as np
import pandas as pd
import pytest
import torch

import scdrugmap as sd
from scdrugmap._device import Engine
from scdrugmap._errors import CheckpointError, InputError, ScDrugMapWarning
from scdrugmap.embedding import cluster as engine
from scdrugmap.embedding.client import active_client
from scdrugmap.embedding.embed import embed_counts
from scdrugmap.embedding.source import CountSource
from scdrugmap.models.base import GroupModel
from scdrugmap.models.cellplm import CellPLM
from scdrugmap.models.tgpt import TGPT
from scdrugmap.models.uce import UCE
from scdrugmap.testing.cells import example_cells

dask_distributed = pytest.importorskip("distributed")
da = pytest.importorskip("dask.array")

N = 60


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Every test computes: no embedding comes from the cache, no model from another test."""
    monkeypatch.setattr(sd.settings, "embedding_cache", False)
    monkeypatch.setattr(sd.settings, "device", "cpu")
    engine._LOADED.clear()


@pytest.fixture(scope="module")
def client():
    with (
        dask_distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
        ) as cluster,
        dask_distributed.Client(cluster) as client,
    ):
        yield client


def cells(chunk: int | tuple[int, ...] | None, slow=None) -> ad.AnnData:
    """The example cells, in memory or as a dask array of CSR chunks."""
    X, genes = example_cells(N)
    obs = pd.DataFrame({"sample": np.repeat(["a", "b", "c"], N // 3)}, index=[f"c{i}" for i in range(N)])
    adata = ad.AnnData(X, obs=obs, var=pd.DataFrame({"ensembl_id": genes.ensembl}, index=genes.symbols))
    if chunk is not None:
        lazy = da.from_array(X, chunks=(chunk, X.shape[1]), asarray=False)
        adata.X = lazy if slow is None else lazy.map_blocks(slow, dtype=X.dtype, meta=lazy._meta)
    return adata


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A small model in the official layout, which workers load by name."""
    folder = tmp_path_factory.mktemp("tgpt")
    model = TGPT.random(example_cells()[1])
    words = {"<pad>": 0, "</b>": 1, "</s>": 2, "<unk>": 3, **model.vocabulary}
    sizes = {"vocab_size": len(words), "n_positions": 128, "n_embd": 16, "n_layer": 2, "n_head": 4}
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "activation_function": "gelu_new", **sizes}))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel", "vocab": words}}))
    own = model.network.state_dict()
    out = {"wte.weight": own["wte.weight"], "wpe.weight": own["wpe.weight"]}
    out |= {"ln_f.weight": own["norm.weight"], "ln_f.bias": own["norm.bias"]}
    for i in range(len(model.network.blocks)):
        old = f"blocks.{i}"
        for kind, turned in (("weight", torch.t), ("bias", torch.clone)):
            qkv = torch.cat([own[f"{old}.attention.{p}_proj.{kind}"] for p in "qkv"])
            out[f"h.{i}.attn.c_attn.{kind}"] = turned(qkv)
            for new, name in (
                ("attn.c_proj", "attention.out_proj"),
                ("mlp.c_fc", "linear1"),
                ("mlp.c_proj", "linear2"),
            ):
                out[f"h.{i}.{new}.{kind}"] = turned(own[f"{old}.{name}.{kind}"])
            out |= {f"h.{i}.ln_{k}.{kind}": own[f"{old}.norm{k}.{kind}"] for k in (1, 2)}
    torch.save({f"transformer.{k}": v.clone().contiguous() for k, v in out.items()}, folder / "pytorch_model.bin")
    return folder


def same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.nanmax(np.abs(expected)))


def serial(model, **options) -> np.ndarray:
    adata = cells(None)
    sd.tl.embed(adata, model, **options)
    (key,) = adata.obsm
    return adata.obsm[key]


def on_workers(monkeypatch) -> list[int]:
    """Record the sizes of the chunks that workers of this process embed."""
    sizes, run = [], engine._running

    def recorded(source, job):
        sizes.append(source.shape[0])
        return run(source, job)

    monkeypatch.setattr(engine, "_running", recorded)
    return sizes


# The same numbers


@pytest.mark.parametrize("chunk", [7, (1, 20, 39), 60])
def test_each_chunk_is_a_task_with_the_serial_numbers(client, checkpoint, monkeypatch, chunk):
    expected = serial("tGPT", checkpoint=checkpoint, max_length=32)
    sizes = on_workers(monkeypatch)
    adata = cells(chunk)
    sd.tl.embed(adata, "tGPT", checkpoint=checkpoint, max_length=32)
    same(adata.obsm["X_tgpt"], expected)
    assert sorted(sizes) == sorted(adata.X.chunks[0])
    assert adata.uns["tgpt"]["provenance"]["work"]["n_tokens"] > N


def test_dense_chunks_split_over_genes(client, checkpoint):
    adata = cells(None)
    adata.X = da.from_array(adata.X.toarray(), chunks=(16, 100))
    sd.tl.embed(adata, "tGPT", checkpoint=checkpoint)
    same(adata.obsm["X_tgpt"], serial("tGPT", checkpoint=checkpoint))


def test_a_loaded_model_travels_with_its_state(client, monkeypatch):
    model = TGPT.random(example_cells()[1])
    with torch.no_grad():
        model.network.wte.weight.mul_(1.5)
    expected = serial(model)
    sizes = on_workers(monkeypatch)
    adata = cells(20)
    sd.tl.embed(adata, model)
    assert sizes == [20, 20, 20]
    same(adata.obsm["X_tgpt"], expected)


def test_groups_of_cells_that_see_each_other_are_tasks(client, monkeypatch):
    model = CellPLM.random(example_cells()[1])
    assert isinstance(model, GroupModel)
    expected = serial(model, context="sample")
    sizes = on_workers(monkeypatch)
    adata = cells(7)
    sd.tl.embed(adata, model, context="sample")
    assert sizes == [20, 20, 20]
    same(adata.obsm["X_cellplm"], expected)


def test_steps_over_the_whole_data_set_reach_the_workers(client, monkeypatch):
    model = UCE.random(example_cells()[1], dataset_filter=True, padding="official")
    expected = serial(model)
    sizes = on_workers(monkeypatch)
    adata = cells(25)
    sd.tl.embed(adata, model)
    assert sum(sizes) == N
    same(adata.obsm["X_uce"], expected)


def test_a_cell_without_genes_stays_in_its_row(client, checkpoint):
    X = cells(None).X.tolil()
    X[17] = 0
    adata = cells(None)
    adata.X = da.from_array(X.tocsr(), chunks=(10, X.shape[1]), asarray=False)
    with pytest.warns(ScDrugMapWarning, match="1 of 60"):
        sd.tl.embed(adata, "tGPT", checkpoint=checkpoint)
    assert np.flatnonzero(np.isnan(adata.obsm["X_tgpt"]).all(axis=1)).tolist() == [17]


# Stores and caches


def test_store_is_that_of_a_serial_run(client, checkpoint, tmp_path):
    model, (X, genes) = TGPT.from_checkpoint(checkpoint), example_cells(N)
    lazy = da.from_array(X, chunks=(7, X.shape[1]), asarray=False)

    def embed(counts, folder):
        return embed_counts(model, CountSource(counts), genes, Engine("cpu", store=tmp_path / folder), block_size=20)

    expected = np.asarray(embed(X, "serial").values[:])
    first = embed(lazy, "cluster")
    assert first.work.n_resumed == 0
    np.testing.assert_array_equal(np.asarray(first.values[:]), expected)
    for counts, store in ((X, "cluster"), (lazy, "serial")):
        again = embed(counts, store)
        assert again.work.n_resumed == N
        np.testing.assert_array_equal(np.asarray(again.values[:]), expected)
    changed = X.copy()
    changed.data[0] += 1
    lazy = da.from_array(changed, chunks=(20, X.shape[1]), asarray=False)
    assert embed(lazy, "serial").work.n_resumed == 40


def test_cache_serves_the_same_cells_and_nothing_else(client, checkpoint, tmp_path):
    model, (X, genes) = TGPT.from_checkpoint(checkpoint), example_cells(N)
    changed = X.copy()
    changed.data[-1] += 1

    def cached(counts) -> int:
        lazy = da.from_array(counts, chunks=(20, X.shape[1]), asarray=False)
        return embed_counts(model, CountSource(lazy), genes, Engine("cpu"), cache=tmp_path).work.n_cached

    assert [cached(X), cached(X), cached(changed), cached(changed)] == [0, N, 0, N]


# Which cluster


def test_client_of_the_joblib_context():
    assert active_client() is None or active_client().status == "running"
    with (
        dask_distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster,
        dask_distributed.Client(cluster, set_as_default=False) as client,
    ):
        assert active_client() is not client
        with joblib.parallel_config(backend="dask", client=client):
            assert active_client() is client
        assert active_client() is not client
    assert active_client() is not client


def test_a_task_does_its_own_work(client):
    assert active_client() is client
    assert client.submit(lambda: active_client() is None, pure=False).result()


def test_data_in_memory_stay_in_this_process(client, checkpoint, monkeypatch):
    sizes = on_workers(monkeypatch)
    serial("tGPT", checkpoint=checkpoint)
    assert not sizes


# What cannot be done


def test_error_of_a_worker_changes_nothing(client, checkpoint):
    adata = cells(None)
    X = adata.X.copy()
    X.data[-1] = np.nan
    adata.X = da.from_array(X, chunks=(10, X.shape[1]), asarray=False)
    with pytest.raises(InputError, match="NaN"):
        sd.tl.embed(adata, "tGPT", checkpoint=checkpoint)
    assert not adata.obsm and not adata.uns


def test_chunk_that_ends_every_worker(client, checkpoint):
    def fatal(block):
        raise dask_distributed.KilledWorker("chunk", types.SimpleNamespace(address="tcp://gone"), 3)

    with pytest.raises(InputError, match=r"worker process died.*smaller chunks"):
        sd.tl.embed(cells(20, fatal), "tGPT", checkpoint=checkpoint)


def test_model_that_cannot_be_sent(client):
    model = TGPT.random(example_cells()[1])
    model.handle = threading.Lock()
    with pytest.raises(InputError, match=r"cannot be sent.*pass the name"):
        sd.tl.embed(cells(20), model)


def test_one_stream_over_all_cells_stays_here_and_says_so(client, monkeypatch):
    model = TGPT.random(example_cells()[1])
    expected = serial(model)
    monkeypatch.setattr(model, "sequential", True)
    sizes = on_workers(monkeypatch)
    adata = cells(20)
    with pytest.warns(ScDrugMapWarning, match="not on the workers"):
        sd.tl.embed(adata, model)
    assert not sizes
    same(adata.obsm["X_tgpt"], expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_device_that_a_worker_lacks(client, checkpoint):
    with pytest.raises(InputError, match=r"device.*on worker"):
        sd.tl.embed(cells(20), "tGPT", checkpoint=checkpoint, device="cuda")


def test_worker_with_other_files_or_none(client, checkpoint, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    origin = engine.Origin.of(TGPT.from_checkpoint(copy), engine.Origin(copy, {"max_length": 32}))
    assert client.submit(lambda: origin.load().options.max_length, pure=False).result() == 32
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"comment": "edited"}))
    with pytest.raises(CheckpointError, match="other files"):
        client.submit(lambda: origin.load() and None, pure=False).result()
    shutil.rmtree(copy)
    with pytest.raises(CheckpointError, match="does not see"):
        client.submit(lambda: origin.load() and None, pure=False).result()


# Two processes, one of which dies


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
def test_cluster_that_loses_a_worker_gives_the_serial_numbers(checkpoint, tmp_path):
    expected = serial("tGPT", checkpoint=checkpoint)
    loads, starts = tmp_path / "loads", tmp_path / "starts"
    loads.touch()
    starts.touch()

    def slow(block):
        with starts.open("a") as log:
            log.write(f"{os.getpid()}\n")
        time.sleep(0.4)
        return block

    def count_loads():
        from scdrugmap.models.tgpt import TGPT

        load = TGPT.from_checkpoint.__func__

        def counted(cls, path, **options):
            with loads.open("a") as log:
                log.write(f"{os.getpid()}\n")
            return load(cls, path, **options)

        TGPT.from_checkpoint = classmethod(counted)

    killed = []

    def kill_half_way():
        while len(starts.read_text().split()) < 6:
            time.sleep(0.02)
        pids = starts.read_text().split()
        # The process that began last is in the middle of its chunk.
        os.kill(int(pids[-1]), signal.SIGKILL)
        killed.append((len(pids), pids[-1]))

    adata = cells(5, slow)
    with (
        dask_distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        dask_distributed.Client(cluster) as client,
    ):
        before = {str(pid) for pid in client.run(os.getpid).values()}
        client.run(count_loads)
        killer = threading.Thread(target=kill_half_way, daemon=True)
        killer.start()
        sd.tl.embed(adata, "tGPT", checkpoint=checkpoint)
        killer.join(10)
    ((n, victim),) = killed
    assert victim in before and n < 12
    assert len(starts.read_text().split()) > 12
    # Once in each process, however the scheduler shared the chunks between them.
    loaded = loads.read_text().split()
    assert loaded and len(loaded) == len(set(loaded)) and set(loaded) <= before
    same(adata.obsm["X_tgpt"], expected)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
def test_workers_read_files_for_themselves_and_one_may_die(checkpoint, tmp_path, monkeypatch):
    from scdrugmap._disk import FileCounts, open_cells

    model, (_, genes) = TGPT.from_checkpoint(checkpoint), example_cells(N)
    expected = np.asarray(embed_counts(model, CountSource(cells(None).X), genes, Engine("cpu"), block_size=5).values)
    file, zarr = tmp_path / "cells.h5ad", tmp_path / "cells.zarr"
    cells(None).write_h5ad(file)
    cells(None).write_zarr(zarr)
    starts = tmp_path / "starts"
    starts.touch()

    def slow_reads():
        from scdrugmap._disk import FileCounts

        read = FileCounts.__getitem__

        def slow(self, rows):
            with starts.open("a") as log:
                log.write(f"{os.getpid()}\n")
            time.sleep(0.3)
            return read(self, rows)

        FileCounts.__getitem__ = slow

    def refused(self, rows):
        raise AssertionError("counts moved through the caller")

    killed = []

    def kill_half_way():
        while len(starts.read_text().split()) < 18:  # the digests take twelve
            time.sleep(0.02)
        killed.append(starts.read_text().split()[-1])
        os.kill(int(killed[0]), signal.SIGKILL)

    with (
        dask_distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        dask_distributed.Client(cluster) as client,
    ):
        before = {str(pid) for pid in client.run(os.getpid).values()}
        client.run(slow_reads)
        source, stored = CountSource(open_cells(file).X), CountSource(open_cells(zarr).X)
        monkeypatch.setattr(FileCounts, "__getitem__", refused)
        killer = threading.Thread(target=kill_half_way, daemon=True)
        killer.start()
        origin = engine.Origin(checkpoint, {})
        store = Engine("cpu", store=tmp_path / "store")
        found = embed_counts(model, source, genes, store, block_size=5, origin=origin)
        killer.join(10)
        from_zarr = embed_counts(model, stored, genes, Engine("cpu"), block_size=5, origin=origin)
    assert killed and killed[0] in before and str(os.getpid()) not in starts.read_text().split()
    same(np.asarray(found.values), expected)
    same(np.asarray(from_zarr.values), expected)
