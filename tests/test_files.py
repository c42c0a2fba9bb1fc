"""Files are whole or not there, readable as the umask says, and on the disk before they get their name."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scdrugmap as sd
from scdrugmap import _files


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    """Mode of everything in a folder whose mode is not the usual one."""
    usual = {True: 0o755, False: 0o644}
    found = {p: stat.S_IMODE(p.stat().st_mode) for p in [folder, *folder.rglob("*")]}
    return {p.name: oct(m) for p, m in found.items() if m != usual[p.is_dir()]}


def embedding(folder: Path) -> None:
    from scdrugmap.embedding import cache

    cache.save(folder, "ab", np.zeros((3, 2), np.float32), model="scGPT")


def answer(folder: Path) -> None:
    from scdrugmap.prompting.cache import ResponseCache

    ResponseCache(folder).put("ab12", {"text": "1"})


def cells(folder: Path) -> None:
    from scdrugmap._disk_write import write_h5ad

    blocks = [sparse.csr_matrix(np.eye(3, dtype=np.float32))]
    names = pd.DataFrame(index=["a", "b", "c"])
    write_h5ad(folder / "cells.h5ad", blocks, lambda: names, names, {})


def block_wise(folder: Path) -> None:
    from scdrugmap.datasets.loaders._store import CsrStore

    names = pd.DataFrame(index=["a", "b", "c"])
    with CsrStore(folder / "cells.h5ad", 3) as store:
        store.append(sparse.csr_matrix(np.eye(3, dtype=np.float32)))
        store.finish(names, names, {})


def records(folder: Path) -> None:
    from scdrugmap.download import ledger

    ledger.change(lambda found: found.__setitem__("a/b/c", {"size": 1}), folder / "digests.json")


def predictor(folder: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.repeat(["resistant", "sensitive"], 20)
    adata = sd.datasets.simulate(n_studies=1, n_cells=40, n_genes=20, rng=0)
    adata.obs["response"] = y
    adata.obs["sample"] = np.tile(np.repeat(["a", "b"], 10), 2)
    adata.obsm["X_mine"] = rng.normal(size=(40, 4)).astype(np.float32)
    sd.tl.train(adata, use_rep="X_mine", head="logistic", ood=True, rng=0).save(folder / "predictor")


WRITERS = [embedding, answer, cells, block_wise, records, predictor]


@pytest.mark.parametrize("write", WRITERS)
def test_what_is_written_can_be_read_by_others(umask, tmp_path, write):
    folder = tmp_path / "made"
    folder.mkdir()
    write(folder)
    (folder / "digests.lock").unlink(missing_ok=True)
    assert any(p.is_file() for p in folder.rglob("*"))
    assert modes(folder) == {}


def test_a_private_umask_stays_private(tmp_path):
    before = os.umask(0o077)
    try:
        predictor(tmp_path)
    finally:
        os.umask(before)
    files = [p for p in (tmp_path / "predictor").rglob("*") if p.is_file()]
    assert files and {stat.S_IMODE(p.stat().st_mode) for p in files} == {0o600}


@pytest.mark.parametrize("write", WRITERS)
def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch, write):
    synced: set[int] = set()
    real = os.fsync

    def fsync(handle: int) -> None:
        synced.add(os.fstat(handle).st_ino)
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write(tmp_path)
    (tmp_path / "digests.lock").unlink(missing_ok=True)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert files and {p.name for p in files if p.stat().st_ino not in synced} == set()


@pytest.mark.parametrize("write", WRITERS)
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, write):
    write(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    if write is predictor:  # an earlier predictor is replaced only on demand
        from scdrugmap.predictor import storage

        def again() -> None:
            storage.write_folder(tmp_path / "predictor", lambda folder: {"x": object()}, overwrite=True)

    else:

        def again() -> None:
            write(tmp_path)

    def broken(path: Path) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(_files, "_flush", broken)
    with pytest.raises((OSError, TypeError)):
        again()
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_half_written_study_leaves_nothing(tmp_path):
    from scdrugmap._disk_write import write_h5ad
    from scdrugmap.datasets.loaders._store import CsrStore

    names = pd.DataFrame(index=["a", "b", "c"])

    def blocks():
        yield sparse.csr_matrix(np.eye(3, dtype=np.float32))
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        write_h5ad(tmp_path / "a.h5ad", blocks(), lambda: names, names, {})
    with pytest.raises(RuntimeError), CsrStore(tmp_path / "b.h5ad", 3) as store:
        for block in blocks():
            store.append(block)
    assert list(tmp_path.iterdir()) == []


def test_a_block_wise_file_can_be_read_at_once(tmp_path):
    block_wise(tmp_path)
    with h5py.File(tmp_path / "cells.h5ad") as file:
        assert file["X/data"].shape == (3,)


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    from scdrugmap._errors import OutputError
    from scdrugmap.predictor.storage import write_folder

    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_folder(tmp_path / "file" / "predictor", lambda folder: {}, overwrite=False)
