"""What stops a run, what is tried again, and what the files of a store look like."""

from __future__ import annotations

import os
import stat

import pandas as pd
import pytest
from joblib.externals.loky.process_executor import TerminatedWorkerError

import scdrugmap as sd
from scdrugmap.evaluation.grid import runner
from scdrugmap.evaluation.grid.store import RunStore


def grid(adata, **options):
    return sd.tl.benchmark(
        adata, models=["X_log"], n_folds=4, head="logistic", baselines=["majority"], rng=0, **options
    )


@pytest.mark.parametrize("error", [ValueError, OSError, RuntimeError])
def test_an_error_of_the_callers_function_rises_at_once(cohort, error):
    calls = []

    def broken(outcome, done, total):
        calls.append(done)
        raise error("mine")

    with pytest.raises(error, match="mine"):
        grid(cohort(), on_unit=broken)
    assert len(calls) == 1


def test_a_store_that_cannot_be_written_stops_the_run_at_once(cohort, tmp_path, monkeypatch):
    calls = []

    def full(self, outcome):
        calls.append(outcome)
        raise OSError("no space left")

    monkeypatch.setattr(RunStore, "write", full)
    with pytest.raises(OSError, match="no space left"):
        grid(cohort(), store=tmp_path / "store")
    assert len(calls) == 1


def test_a_lost_worker_is_replaced_and_loses_nothing(cohort, monkeypatch):
    adata = cohort()
    whole = grid(adata)
    real, starts = runner._execute, []

    def lossy(tasks, payload, n_jobs):
        starts.append(len(tasks))
        work = real(tasks, payload, n_jobs)
        if len(starts) == 1:
            yield next(work)
            raise TerminatedWorkerError("killed")
        yield from work

    monkeypatch.setattr(runner, "_execute", lossy)
    pd.testing.assert_frame_equal(grid(adata).table, whole.table)
    assert starts == [starts[0], starts[0] - 1]


def test_workers_that_die_every_time_are_an_error(cohort, monkeypatch):
    tries = []

    def dead(tasks, payload, n_jobs):
        tries.append(1)
        raise TerminatedWorkerError("killed")
        yield

    monkeypatch.setattr(runner, "_execute", dead)
    with pytest.raises(TerminatedWorkerError):
        grid(cohort())
    assert len(tries) == runner.RETRIES + 1


@pytest.mark.skipif(os.name == "nt", reason="there are no modes here")
def test_a_colleague_can_read_and_resume_the_store(cohort, tmp_path):
    before = os.umask(0o022)
    try:
        result = grid(cohort(), store=tmp_path / "store")
        result.to_parquet(tmp_path / "result")
        result.report(tmp_path / "report.html", figures=[], n_resamples=5)
    finally:
        os.umask(before)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert {"store", "result", "report.html"} == {p.relative_to(tmp_path).parts[0] for p in files}
    assert {stat.S_IMODE(p.stat().st_mode) for p in files} == {0o644}


def test_half_written_units_do_not_count(tmp_path):
    store = RunStore(tmp_path)
    (tmp_path / "units" / ".abc.123.partial.parquet").write_bytes(b"PAR1")
    assert store.finished() == set()
