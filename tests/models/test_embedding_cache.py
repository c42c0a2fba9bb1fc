"""The cache of embeddings is bounded, listed and cleared."""

from __future__ import annotations

import os
import time

import numpy as np

import scdrugmap as sd
from scdrugmap.embedding import cache


def fill(folder, names, now=1_000_000.0):
    """Entries of about 4 kB that were used one day after another."""
    for day, name in enumerate(names):
        cache.save(folder, name, np.full((100, 10), day, np.float32), model=name.upper())
        os.utime(folder / f"{name}.npy", (now + day * 86400,) * 2)


def keys(folder):
    return {p.stem for p in folder.glob("*.npy")}


def test_those_not_used_for_longest_go_first(tmp_path):
    fill(tmp_path, "abc")
    each = (tmp_path / "a.npy").stat().st_size
    cache.save(tmp_path, "d", np.zeros((100, 10), np.float32), limit=3 * each)
    assert keys(tmp_path) == {"b", "c", "d"}
    assert not (tmp_path / "a.json").exists()
    assert cache.size(tmp_path) <= 3 * each


def test_reading_is_using(tmp_path):
    fill(tmp_path, "abc")
    each = (tmp_path / "a.npy").stat().st_size
    assert cache.load(tmp_path, "a")[0, 0] == 0
    cache.save(tmp_path, "d", np.zeros((100, 10), np.float32), limit=3 * each)
    assert keys(tmp_path) == {"a", "c", "d"}


def test_the_limit_is_the_setting_and_takes_words(tmp_path, monkeypatch):
    fill(tmp_path, "abc")
    before = sd.settings.embedding_cache_size
    try:
        sd.settings.embedding_cache_size = "9 kB"
        assert sd.settings.embedding_cache_size == 9000
        cache.save(tmp_path, "d", np.zeros((100, 10), np.float32))
        cache.save(tmp_path, "huge", np.zeros((1000, 10), np.float32))
    finally:
        sd.settings.embedding_cache_size = before
    assert keys(tmp_path) == {"c", "d"}


def test_an_entry_of_version_0_1_has_no_description_and_is_read(tmp_path):
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.save(tmp_path / "old.npy", values)
    (tmp_path / "bad.json").write_text("{")
    np.save(tmp_path / "bad.npy", values)
    assert (cache.load(tmp_path, "old") == values).all()
    table = cache.listing(tmp_path).set_index("key")
    assert table.loc[["bad", "old"], "model"].tolist() == ["", ""]
    assert table["cells"].isna().all()
    assert cache.load(tmp_path, "absent") is None


def test_listing_names_model_and_cells_and_puts_the_last_used_first(tmp_path):
    fill(tmp_path, "abc")
    table = cache.listing(tmp_path)
    assert table["key"].tolist() == ["c", "b", "a"]
    assert table["model"].tolist() == ["C", "B", "A"]
    assert table["cells"].tolist() == [100] * 3
    assert table["size"].sum() == cache.size(tmp_path)


def test_clear_takes_all_or_what_is_old(tmp_path):
    fill(tmp_path, "ab", now=time.time() - 10 * 86400)
    each = (tmp_path / "a.npy").stat().st_size
    assert cache.clear(tmp_path, older_than=9.5) == each
    assert keys(tmp_path) == {"b"}
    assert cache.clear(tmp_path) == each
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_is_not_writable_can_be_read(tmp_path, monkeypatch):
    fill(tmp_path, "a")

    def refuse(*args, **kwargs):
        raise PermissionError

    monkeypatch.setattr(cache.os, "utime", refuse)
    assert cache.load(tmp_path, "a") is not None
