"""Copied cells are found whatever their storage, and strangers are not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from scdrugmap.evaluation.splits.duplicates import connected, content_hash, duplicate_groups


def counts(n=60, genes=50, seed=0):
    return np.random.default_rng(seed).poisson(1.5, (n, genes)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.int64, st.tuples(st.integers(1, 12), st.integers(1, 5)), elements=st.integers(0, 2)))
def test_equal_hash_means_equal_row(X):
    h = content_hash(X)
    for i in range(len(X)):
        np.testing.assert_array_equal((h == h[i]).all(axis=1), (X[i] == X).all(axis=1))


def test_storage_does_not_matter_and_input_is_unchanged():
    X = counts()
    expected = content_hash(X)
    messy = sparse.csr_matrix(X)
    messy.data[:3] = 0  # stored zeros
    plain = X.copy()
    rows = np.repeat(np.arange(len(X)), np.diff(messy.indptr))[:3]
    plain[rows, messy.indices[:3]] = 0
    before = messy.data.copy(), messy.indices.copy()
    np.testing.assert_array_equal(content_hash(messy), content_hash(plain))
    np.testing.assert_array_equal(messy.data, before[0])
    np.testing.assert_array_equal(messy.indices, before[1])
    shuffled = sparse.csr_matrix(X)
    for i in range(len(X)):
        a, b = shuffled.indptr[i], shuffled.indptr[i + 1]
        shuffled.indices[a:b], shuffled.data[a:b] = shuffled.indices[a:b][::-1].copy(), shuffled.data[a:b][::-1].copy()
    shuffled.has_sorted_indices = False
    for other in (X.astype(np.int32), sparse.csc_matrix(X), shuffled):
        np.testing.assert_array_equal(content_hash(other), expected)
    np.testing.assert_array_equal(content_hash(X, block=7), expected)


def test_dask_equals_memory():
    da = pytest.importorskip("dask.array")
    np.testing.assert_array_equal(content_hash(da.from_array(counts(), chunks=(13, -1))), content_hash(counts()))


def test_copies_share_a_code():
    X = counts()
    X[40:50] = X[:10]
    codes = duplicate_groups(sparse.csr_matrix(X))
    np.testing.assert_array_equal(codes[40:50], codes[:10])
    assert len(np.unique(codes)) == 50


def test_nearly_empty_cells_are_not_copies():
    X = counts()
    X[:2] = 0
    X[2:4] = 0
    X[2:4, :5] = 1
    assert len(np.unique(duplicate_groups(X))) == 60


def test_same_barcode_needs_agreeing_counts():
    X = counts(6)
    X[1] = X[0]
    X[1, :6] = 0  # the same cell after another gene filter
    barcode = np.array(["AAA", "AAA", "AAA", "CCC", None, None], dtype=object)
    series = np.array(["G1"] * 6, dtype=object)
    codes = duplicate_groups(X, series=series, barcode=barcode)
    assert codes[0] == codes[1]
    assert len(np.unique(codes)) == 5
    by_barcode = duplicate_groups(series=series, barcode=barcode)
    assert by_barcode[0] == by_barcode[2]
    assert by_barcode[4] != by_barcode[5]
    series[1:3] = "G2"
    assert duplicate_groups(series=series, barcode=barcode)[0] != duplicate_groups(series=series, barcode=barcode)[1]


def test_components_are_numbered_by_first_appearance():
    np.testing.assert_array_equal(connected(5, np.array([4, 1]), np.array([1, 2])), [0, 1, 1, 2, 1])
