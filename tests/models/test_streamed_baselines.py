"""Baselines that are fitted block by block, against those that see everything at once."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from scipy import sparse
from sklearn.decomposition import PCA as SklearnPCA

import scdrugmap as sd
from scdrugmap._anndata import gene_ids
from scdrugmap._errors import InputError
from scdrugmap.embedding.source import CountSource
from scdrugmap.models.hvg import HVG
from scdrugmap.models.kit import expression
from scdrugmap.models.kit.expression import gene_moments
from scdrugmap.models.pathways import Pathways
from scdrugmap.models.pca import PCA


@pytest.fixture(scope="module")
def study() -> ad.AnnData:
    return sd.datasets.simulate(n_cells=900, n_genes=400, n_studies=2, rng=0)


def logged(adata: ad.AnnData) -> np.ndarray:
    X = np.asarray(adata.X.toarray(), dtype=np.float64)
    return np.log1p(X / np.maximum(X.sum(axis=1, keepdims=True), 1) * 1e4)


@pytest.mark.parametrize("n_cells", [900, 150])
def test_components_are_those_of_all_cells_at_once(study, n_cells, monkeypatch):
    monkeypatch.setattr(expression, "BLOCK", 64)
    adata = study[:n_cells]
    model = PCA(n_components=20, n_top_genes=200).fit(CountSource(adata.X), gene_ids(adata))
    names = model.hvg_.genes_[model.hvg_.columns_]
    values = logged(adata)[:, adata.var_names.get_indexer(names)]
    reference = SklearnPCA(20, svd_solver="full").fit(values)
    cosine = (model.components_ * reference.components_).sum(axis=1)
    assert cosine.min() >= 0.9999
    expected = reference.transform(values)
    np.testing.assert_allclose(model.transform(adata.X, gene_ids(adata)), expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("n_top", [30, 150])
def test_genes_are_those_that_scanpy_chooses(study, n_top, monkeypatch):
    monkeypatch.setattr(expression, "BLOCK", 100)
    X = sparse.csr_matrix(logged(study).astype(np.float32))
    table = sc.pp.highly_variable_genes(ad.AnnData(X, var=study.var), n_top_genes=n_top, flavor="seurat", inplace=False)
    chosen = study.var_names[table["highly_variable"].to_numpy()]
    model = HVG(n_top_genes=n_top).fit(CountSource(study.X), gene_ids(study))
    assert set(model.genes_[model.columns_]) == set(chosen)


@pytest.mark.parametrize("model", [HVG, PCA, Pathways])
def test_however_the_rows_come_what_is_learnt_is_equal(study, model):
    options = {"min_genes": 2} if model is Pathways else {"n_top_genes": 100}
    dask = pytest.importorskip("dask.array")
    genes = gene_ids(study)
    expected = model(**options).fit(study.X, genes).state()
    lazy = CountSource(dask.from_array(study.X, chunks=(170, 400), asarray=False))
    shuffled = CountSource(study.X[::-1]).take(np.arange(900)[::-1])
    for rows in (CountSource(study.X), CountSource(study.X.toarray()), lazy, shuffled):
        for name, values in model(**options).fit(rows, genes).state().items():
            np.testing.assert_array_equal(values, expected[name])


@pytest.mark.parametrize("take_log", [False, True])
def test_moments(study, take_log, monkeypatch):
    monkeypatch.setattr(expression, "BLOCK", 130)
    found = gene_moments(CountSource(study.X), gene_ids(study), "hvg", logged=take_log)
    values = logged(study)[:, study.var_names.get_indexer(found.genes)]
    values = values if take_log else np.expm1(values)
    np.testing.assert_allclose(found.mean, values.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.variance, values.var(axis=0, ddof=1), rtol=1e-4)
    assert len(found.genes) == (study.X.sum(axis=0) > 0).sum()


def test_directions_without_variance_are_zero():
    X = np.tile([[5.0, 1, 0, 2, 4], [0, 3, 2, 0, 1]], (2, 1))  # two distinct cells: one component
    genes = gene_ids(ad.AnnData(X))
    model = PCA(n_components=3).fit(sparse.csr_matrix(X), genes)
    values = model.transform(sparse.csr_matrix(X), genes)
    assert np.ptp(values[:, 0]) > 0.1
    np.testing.assert_allclose(values[:, 1:], 0, atol=1e-6)


def test_too_many_genes_for_a_covariance_are_refused(study, monkeypatch):
    monkeypatch.setattr("scdrugmap.models.pca.MOST_GENES", 50)
    with pytest.raises(InputError, match="n_top_genes"):
        PCA(n_top_genes=100).fit(study.X, gene_ids(study))
