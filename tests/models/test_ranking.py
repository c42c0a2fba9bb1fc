"""The segmented ranking against NumPy's stable sort, row by row."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scdrugmap.models.kit.ranking import add_special_tokens, rank_rows


def brute_force(values, indptr, top):
    return [(np.argsort(-values[a:b], kind="stable")[:top] + a).tolist() for a, b in pairwise(indptr)]


def as_rows(flat, offsets):
    return [part.tolist() for part in np.split(flat, offsets[1:-1])] if len(offsets) > 1 else []


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    top=st.one_of(st.none(), st.integers(1, 50)),
    kind=st.sampled_from(["counts", "real", "nearly equal", "huge"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_ranks_like_a_stable_sort(lengths, top, kind, seed):
    rng = np.random.default_rng(seed)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    counts = rng.integers(1, 6, indptr[-1]).astype(float)
    values = {
        "counts": counts,
        "real": counts / rng.choice([0.3, 0.7, 1.1, 1.3], len(counts)),
        "nearly equal": 3.0 + rng.integers(0, 5, len(counts)) * 4.5e-16,
        "huge": counts * 10.0 ** rng.integers(-300, 300, len(counts)),
    }[kind]
    flat, offsets = rank_rows(values, indptr, top)
    assert as_rows(flat, offsets) == brute_force(values, indptr, top)


@pytest.mark.parametrize("top", [None, 62, 2048])
def test_rows_of_very_different_length(top):
    rng = np.random.default_rng(1)
    indptr = np.concatenate([[0], np.cumsum(rng.integers(0, 5000, 60))])
    values = rng.geometric(0.4, indptr[-1]).astype(float)
    flat, offsets = rank_rows(values, indptr, top)
    assert as_rows(flat, offsets) == brute_force(values, indptr, top)


def test_no_rows_and_no_values():
    flat, offsets = rank_rows(np.empty(0), np.zeros(1, dtype=int))
    assert len(flat) == 0 and offsets.tolist() == [0]
    flat, offsets = rank_rows(np.empty(0), np.zeros(4, dtype=int), 3)
    assert len(flat) == 0 and offsets.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(("before", "after"), [(None, None), (7, None), (None, 8), (7, 8)])
def test_framed_puts_tokens_around_each_row(before, after):
    rows = [[1, 2], [], [3]]
    ids, offsets = add_special_tokens(np.array([1, 2, 3]), np.array([0, 2, 2, 3]), before, after)
    expected = [[x for x in (before, *row, after) if x is not None] for row in rows]
    assert as_rows(ids, offsets) == expected
