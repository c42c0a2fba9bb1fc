"""One matrix gives one result, however it is stored: dense or sparse, in pieces, narrow or wide types, any order."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse

import scdrugmap as sd
from scdrugmap._anndata import Columns
from scdrugmap._errors import InputTypeError
from scdrugmap.embedding.source import CountSource, canonical
from scdrugmap.evaluation.splits.duplicates import content_hash


def pieces(X: np.ndarray) -> sparse.csr_matrix:
    """Counts above one stored in two entries, the second ones first."""
    coo = sparse.coo_matrix(X)
    more = coo.data > 1
    data = np.concatenate([coo.data[more] - 1, np.where(more, 1, coo.data)])
    row, column = np.concatenate([coo.row[more], coo.row]), np.concatenate([coo.col[more], coo.col])
    order = np.argsort(row, kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=X.shape[0]))])
    return sparse.csr_matrix((data[order], column[order], indptr), shape=X.shape)


def backwards(X: np.ndarray) -> sparse.csr_matrix:
    out = sparse.csr_matrix(X[:, ::-1])
    out.indices = (X.shape[1] - 1 - out.indices).astype(out.indices.dtype)
    out.has_sorted_indices = False
    return sparse.csr_matrix((out.data, out.indices, out.indptr), shape=X.shape)


def long_indices(X: np.ndarray) -> sparse.csr_matrix:
    out = sparse.csr_matrix(X)
    out.indices, out.indptr = out.indices.astype(np.int64), out.indptr.astype(np.int64)
    return out


def with_zeros(X: np.ndarray) -> sparse.csr_matrix:
    out = sparse.csr_matrix(X + 1)
    out.data = out.data - 1
    return out


FORMS = {
    "dense": np.asarray,
    "Fortran": np.asfortranarray,
    "float16": lambda X: X.astype(np.float16),
    "float64": lambda X: X.astype(np.float64),
    "long double": lambda X: X.astype(np.longdouble),
    "uint8": lambda X: X.astype(np.uint8),
    "int64": lambda X: X.astype(np.int64),
    "objects": lambda X: X.astype(object),
    "masked": lambda X: np.ma.masked_array(X, mask=False),
    "csr array": sparse.csr_array,
    "csc": sparse.csc_matrix,
    "csc of int8": lambda X: sparse.csc_matrix(X.astype(np.int8)),
    "pieces": pieces,
    "csc of pieces": lambda X: pieces(X).tocsc(),
    "pieces of uint8": lambda X: pieces(X.astype(np.uint8)),
    "backwards": backwards,
    "int64 indices": long_indices,
    "stored zeros": with_zeros,
}
#: Forms that AnnData does not take, but arrays of layers and callers may have.
MORE = {
    "matrix": np.matrix,
    "coo": sparse.coo_matrix,
    "coo array": sparse.coo_array,
    "lil": sparse.lil_matrix,
    "dok": sparse.dok_matrix,
    "bsr": sparse.bsr_matrix,
    "table": pd.DataFrame,
}
counts = arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 7)), elements=st.integers(0, 120).map(float))


@pytest.mark.parametrize("form", [*FORMS, *MORE])
@given(X=counts)
@settings(max_examples=15, deadline=None)
def test_any_form_is_read_as_the_same_rows(form, X):
    stored = (FORMS | MORE)[form](X)
    block = CountSource(stored)[slice(0, len(X))]
    expected = sparse.csr_matrix(X)
    expected.eliminate_zeros()
    assert block.has_canonical_format and block.indices.dtype == np.int32
    for part in ("data", "indices", "indptr"):
        assert np.array_equal(getattr(block, part), getattr(expected, part))
    assert np.array_equal(content_hash(stored), content_hash(X))


@given(X=counts)
@settings(max_examples=20, deadline=None)
def test_the_matrix_of_the_caller_stays(X):
    stored = pieces(X)
    before = [part.copy() for part in (stored.data, stored.indices, stored.indptr)]
    source = CountSource(stored)
    for rows in (slice(0, len(X)), np.arange(len(X))[::-1]):
        source[rows]
    assert all(np.array_equal(a, b) for a, b in zip(before, (stored.data, stored.indices, stored.indptr), strict=True))


def test_types_are_wide_enough():
    assert canonical(np.array([[16_777_217]], dtype=np.int64)).data[0] == 16_777_217
    assert canonical(np.array([[True]])).dtype == np.float32
    masked = np.ma.masked_array([[1.0, 2.0]], mask=[[False, True]])
    assert np.isnan(canonical(masked).toarray()).tolist() == [[False, True]]
    for wrong in (np.array([["a"]]), np.array([["a"]], dtype=object), np.array([[1j]])):
        with pytest.raises(InputTypeError, match="numbers"):
            canonical(wrong)


def test_chosen_columns_are_read_in_their_order():
    X = np.arange(12.0).reshape(3, 4)
    for stored in (X, sparse.csc_matrix(X), sparse.csr_array(X)):
        source = CountSource(Columns(stored, np.array([3, 1])))
        assert source.shape == (3, 2)
        assert source[np.array([2, 0])].toarray().tolist() == [[11, 9], [3, 1]]


@pytest.fixture(scope="module")
def whole() -> ad.AnnData:
    adata = sd.datasets.simulate(n_studies=1, n_cells=24, n_genes=60, rng=0)
    adata.X = np.minimum(adata.X.toarray(), 120).astype(np.float32)
    return adata


MODELS = ["hvg", "pca", "tgpt", "scgpt", "geneformer", "scfoundation"]


@pytest.fixture(scope="module")
def models(whole):
    """Each model as it is used: baselines by name, networks with random weights."""
    pytest.importorskip("torch")
    from scdrugmap._anndata import gene_ids
    from scdrugmap.models import registry

    networks = {key: registry.get(key).random(gene_ids(whole)) for key in MODELS[2:]}
    return {key: networks.get(key, key) for key in MODELS}


def values(adata, model):
    out = sd.tl.embed(adata, model, copy=True, rng=0)
    return out.obsm[next(key for key in out.obsm if key not in adata.obsm)]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_reads_every_form_alike(whole, models, name, monkeypatch):
    monkeypatch.setattr(sd.settings, "embedding_cache", False)
    expected = values(whole, models[name])
    for form, make in FORMS.items():
        query = ad.AnnData(make(whole.X), obs=whole.obs.copy(), var=whole.var.copy())
        got = values(query, models[name])
        assert np.allclose(got, expected, atol=1e-5, equal_nan=True), form


def test_check_and_concat_read_every_form_alike(whole):
    expected = sd.pp.check(whole)
    for form, make in FORMS.items():
        query = ad.AnnData(make(whole.X), obs=whole.obs.copy(), var=whole.var.copy())
        report = sd.pp.check(query)
        assert (report.facts, report.findings) == (expected.facts, expected.findings), form
        assert np.array_equal(sd.pp.concat_studies({"a": query}).X.toarray(), whole.X), form


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int16, np.uint16, np.float16, np.float32])
def test_sums_of_genes_are_exact(dtype):
    most = 1 if dtype is bool else 60_000 if dtype is np.uint16 else 100
    X = np.array([[most, 1, most], [1, 0, 1]]).astype(dtype)
    var = pd.DataFrame({"ensembl_id": ["ENSG00000141510", "ENSG00000146648", "ENSG00000141510"]}, index=["a", "b", "c"])
    forms = [np.asarray, np.asfortranarray] + [sparse.csr_matrix, sparse.csc_matrix] * (dtype is not np.float16)
    for make in forms:
        adata = ad.AnnData(make(X), var=var.copy(), layers={"counts": make(X)})
        sd.pp.harmonize_genes(adata)
        for matrix in (adata.X, adata.layers["counts"]):
            dense = np.asarray(matrix.toarray() if sparse.issparse(matrix) else matrix).astype(np.int64)
            assert dense.tolist() == [[2 * most, 1], [2, 0]]
