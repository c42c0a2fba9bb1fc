"""Killed runs go on where they stopped; a cluster that loses a worker gives the serial table."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest

import scdrugmap as sd

SCRIPT = """
import sys, time
import anndata as ad, numpy as np
import scdrugmap as sd

store, pause = sys.argv[1], float(sys.argv[2])
rng = np.random.default_rng(0)
y = np.repeat(np.arange(12) % 2, 8)
adata = ad.AnnData(rng.poisson(2 + y[:, None], (96, 30)).astype("float32"))
adata.obs["sample"] = np.repeat([f"s{i}" for i in range(12)], 8)
adata.obs["response"] = np.where(y == 1, "sensitive", "resistant")
adata.obsm["X_log"] = np.log1p(adata.X)

def slow(train, test, seed):
    time.sleep(pause)
    return np.linspace(0, 1, len(test))

sd.tl.benchmark(
    adata, models={"first": "X_log", "slow": slow, "last": "X_log"}, n_folds=6, store=store, rng=0,
    head="logistic", baselines=["majority", "sample_probe"],
).table.to_parquet(store + "/table.parquet")
"""


def start(script: Path, store: Path, pause: float) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, str(script), str(store), str(pause)], stderr=subprocess.PIPE)


def finished(store: Path) -> dict[str, int]:
    return {f.name: f.stat().st_mtime_ns for f in (store / "units").glob("[!.]*.parquet")}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
def test_kill_9_half_way_then_again(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(SCRIPT))
    store = tmp_path / "killed"
    process = start(script, store, 0.5)
    deadline = time.time() + 60
    # The first model has six units; one more is inside the slow one.
    while len(finished(store)) < 8 and time.time() < deadline and process.poll() is None:
        time.sleep(0.02)
    assert process.poll() is None, process.stderr.read().decode()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = finished(store)
    assert 8 <= len(before) < 21
    assert not (store / "table.parquet").exists()
    # The results do not depend on the pause, and neither do the keys of the units.
    for folder in (store, tmp_path / "whole"):
        process = start(script, folder, 0.0)
        assert process.wait() == 0, process.stderr.read().decode()
    after = finished(store)
    assert {name: after[name] for name in before} == before
    assert set(after) == set(finished(tmp_path / "whole"))
    pd.testing.assert_frame_equal(*(pd.read_parquet(f / "table.parquet") for f in (store, tmp_path / "whole")))


def grid(adata, models, **kwargs):
    baselines = ["majority", "sample_probe"]
    return sd.tl.benchmark(
        adata,
        models=models,
        n_folds=4,
        setting=["pooled", "cross"],
        rng=0,
        head="logistic",
        baselines=baselines,
        **kwargs,
    )


def test_two_processes_give_the_serial_table(cohort):
    adata = cohort()
    serial = grid(adata, ["X_log"])
    pd.testing.assert_frame_equal(serial.table, grid(adata, ["X_log"], n_jobs=2).table)


def test_cluster_that_loses_a_worker_gives_the_serial_table(cohort, tmp_path):
    distributed = pytest.importorskip("distributed")
    adata = cohort()
    store = tmp_path / "store"

    def slow(train, test, seed):
        import time

        time.sleep(0.4)
        return np.linspace(0, 1, len(test))

    models = {"array": "X_log", "slow": slow}
    serial = grid(adata, models)
    killed = []

    def kill_half_way(client):
        while len(finished(store)) < 8:
            time.sleep(0.02)
        pid = next(iter(client.run(os.getpid).values()))
        os.kill(pid, signal.SIGKILL)
        killed.append(len(finished(store)))

    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        killer = threading.Thread(target=kill_half_way, args=(client,), daemon=True)
        killer.start()
        with joblib.parallel_config(backend="dask"):
            result = grid(adata, models, store=store)
        killer.join(10)
    assert killed
    assert killed[0] < result.info["n_units"]
    pd.testing.assert_frame_equal(serial.table, result.table)
