"""Cells whose counts stay on disk: the numbers of cells in memory, and never many rows at once."""

from __future__ import annotations

import pickle
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr
from anndata.experimental import AnnCollection
from scipy import sparse
from typer.testing import CliRunner

import scdrugmap as sd
from scdrugmap import _disk
from scdrugmap._disk import DiskCounts, FileCounts, open_cells
from scdrugmap._errors import InputError
from scdrugmap.cli._app import app
from scdrugmap.datasets import files
from scdrugmap.embedding.source import CountSource
from scdrugmap.testing.cells import example_cells

N, MOST = 9000, 4096


def cells(n: int = N, seed: int = 0) -> ad.AnnData:
    """Few genes that differ between the classes, in samples of both."""
    rng = np.random.default_rng(seed)
    names = example_cells(2)[1].symbols[:60]
    sample = np.sort(rng.integers(0, 8, n))
    rate = rng.lognormal(-1, 0.7, 60) * np.exp(np.outer(sample % 2, np.linspace(-0.8, 0.8, 60)))
    obs = pd.DataFrame(
        {
            "response": pd.Categorical(np.where(sample % 2, "sensitive", "resistant")),
            "sample": pd.Categorical([f"s{i}" for i in sample]),
        },
        index=[f"c{i}" for i in range(n)],
    )
    X = sparse.csr_matrix(rng.poisson(rate).astype(np.float32))
    return ad.AnnData(X, obs=obs, var=pd.DataFrame(index=names), uns={"kept": "as it was"})


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A file, a zarr store, and a folder of three files with the same cells."""
    folder, adata = tmp_path_factory.mktemp("study"), cells()
    adata.write_h5ad(folder / "cells.h5ad")
    adata.write_zarr(folder / "cells.zarr")
    (folder / "shards").mkdir()
    for i, rows in enumerate((slice(0, 5000), slice(5000, 5700), slice(5700, N))):
        adata[rows].copy().write_h5ad(folder / "shards" / f"part{i}.h5ad")
    return folder


@pytest.fixture
def reads(monkeypatch) -> list[int]:
    """How many rows of a file were asked for at a time; nothing may ask for the matrix as a whole."""
    sizes: list[int] = []
    read = FileCounts.__getitem__

    def counted(self, rows):
        block = read(self, rows)
        sizes.append(block.shape[0])
        return block

    def whole(self, *args):
        raise AssertionError("read as a whole")

    monkeypatch.setattr(FileCounts, "__getitem__", counted)
    monkeypatch.setattr(DiskCounts, "to_memory", whole)
    monkeypatch.setattr(DiskCounts, "copy", whole)
    return sizes


PLACES = ["cells.h5ad", "cells.zarr", "shards"]


# Reading


@pytest.mark.parametrize("place", PLACES)
def test_rows_and_columns_are_those_of_the_matrix(study, place):
    X, expected = open_cells(study / place).X, cells().X
    assert isinstance(X, DiskCounts) and X.shape == expected.shape
    rng = np.random.default_rng(0)
    mask = rng.random(N) < 0.01
    some = rng.integers(0, N, 50)
    for rows in (slice(4990, 5710), slice(10, 9000, 700), slice(None, 3), mask, some, np.sort(some), [-1, 0]):
        assert (X[rows] != expected[rows]).nnz == 0
    assert (X[mask, 5:9] != expected[mask][:, 5:9]).nnz == 0
    assert (X[np.ix_(some, [3, 1])] != expected[some][:, [3, 1]]).nnz == 0
    assert X[np.empty(0, int)].shape == (0, 60)
    assert (pickle.loads(pickle.dumps(X))[100:200] != expected[100:200]).nnz == 0


@pytest.mark.parametrize("place", PLACES)
def test_an_opened_object_is_that_of_the_file(study, place):
    found, expected = open_cells(study / place), cells()
    pd.testing.assert_frame_equal(found.obs, expected.obs)
    assert found.var_names.equals(expected.var_names) and found.uns["kept"] == "as it was"
    part = found[["c7", "c5003"]].copy()
    assert sparse.issparse(part.X) and (part.X != expected[["c7", "c5003"]].X).nnz == 0


def test_layers_and_raw_stay_on_disk(tmp_path, reads):
    adata = cells(300)
    adata.layers["counts"] = adata.X.copy()
    adata.raw = adata.copy()
    adata.X = np.log1p(adata.X.toarray())
    adata.write_h5ad(tmp_path / "a.h5ad")
    found = open_cells(tmp_path / "a.h5ad")
    assert not reads and isinstance(found.layers["counts"], DiskCounts) and isinstance(found.raw.X, DiskCounts)
    np.testing.assert_array_equal(found.X[3:5].toarray(), adata.X[3:5])
    for layer in ("counts", "raw"):
        sd.tl.embed(found, "pca", layer=layer, n_components=3, key_added=layer)
    sd.tl.embed(adata, "pca", layer="counts", n_components=3)
    for layer in ("counts", "raw"):
        np.testing.assert_array_equal(found.obsm[f"X_{layer}"], adata.obsm["X_scdrugmap_pca"])


def test_rows_far_apart_are_not_read_along(study, monkeypatch):
    part, spans = open_cells(study / "cells.h5ad").X.parts[0], []
    monkeypatch.setattr(part, "_span", lambda a, b: spans.append(b - a) or FileCounts._span(part, a, b))
    part[np.array([0, 3, 4000, 8999])]
    assert spans == [4, 1, 1]
    spans.clear()
    part[np.arange(0, 9000, 5)]
    assert max(spans) <= _disk.SPAN


def test_parts_with_genes_in_another_order_are_aligned(study, tmp_path):
    a, b = cells(40), cells(30, seed=1)
    b.obs_names = [f"d{i}" for i in range(30)]
    shuffled = b[:, np.random.default_rng(0).permutation(60)].copy()
    a.write_h5ad(tmp_path / "a.h5ad")
    shuffled.write_h5ad(tmp_path / "b.h5ad")
    found, expected = sd.datasets.load(tmp_path, backed=True), ad.concat([a, b])
    assert found.var_names.equals(a.var_names) and (found.X[:] != expected.X).nnz == 0
    assert found.X[35:45].has_sorted_indices


def test_parts_with_other_genes_are_refused_by_name(tmp_path):
    cells(40).write_h5ad(tmp_path / "a.h5ad")
    cells(30)[:, 1:].copy().write_h5ad(tmp_path / "b.h5ad")
    with pytest.raises(InputError, match=r"b\.h5ad, which lacks 1 .*beside a\.h5ad(.|\n)*concat_studies"):
        sd.datasets.load(tmp_path, backed=True)


# Tools


def equal_reports(found, expected) -> None:
    assert str(found) == str(expected) and found.facts == expected.facts


@pytest.mark.parametrize("place", PLACES)
def test_check(study, place, reads):
    equal_reports(sd.pp.check(open_cells(study / place)), sd.pp.check(cells()))
    assert 0 < max(reads) <= MOST


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("model", ["pca", "hvg"])
def test_baselines_are_fitted_and_applied_block_by_block(study, place, model, reads):
    options = {"pca": {"n_components": 5}, "hvg": {"n_top_genes": 20}}[model]
    found, expected = open_cells(study / place), cells()
    sd.tl.embed(expected, model, **options)
    sd.tl.embed(found, model, **options)
    (key,) = expected.obsm
    np.testing.assert_array_equal(found.obsm[key], expected.obsm[key])
    assert 0 < max(reads) <= MOST


@pytest.mark.parametrize("place", PLACES)
def test_training_and_benchmark(study, place, reads):
    found, expected = open_cells(study / place), cells()
    options = {"model": "pca", "head": "logistic", "n_components": 4, "rng": 0}
    trained = [sd.tl.train(data, **options) for data in (found, expected)]
    scores = [p.predict(data)["score"] for p, data in zip(trained, (found, expected), strict=True)]
    pd.testing.assert_series_equal(*scores)
    assert 0 < max(reads) <= MOST
    grid = {"models": "hvg", "head": "logistic", "n_folds": 2, "baselines": ["depth"], "rng": 0}
    grid["embed_options"] = {"hvg": {"n_top_genes": 10}}
    tables = [sd.tl.benchmark(data, **grid).table for data in (found, expected)]
    pd.testing.assert_frame_equal(*tables)


def test_a_collection_is_read_as_one_object(study):
    parts = [ad.read_h5ad(p, backed="r") for p in sorted((study / "shards").iterdir())]
    collection = AnnCollection(parts)
    equal_reports(sd.pp.check(collection), sd.pp.check(cells()))
    predictor = sd.tl.train(collection, "pca", head="logistic", n_components=4, rng=0)
    expected = sd.tl.train(cells(), "pca", head="logistic", n_components=4, rng=0).predict(cells())["score"]
    pd.testing.assert_series_equal(predictor.predict(collection)["score"], expected)
    with pytest.raises(InputError, match=r"load\(adata, backed=True\)"):
        sd.tl.embed(collection, "pca")
    found = sd.datasets.load(collection, backed=True)
    sd.tl.embed(found, "hvg", n_top_genes=5)
    assert found.obsm["X_scdrugmap_hvg"].shape == (N, 5)


def test_no_copy_of_what_is_on_disk(study):
    with pytest.raises(InputError, match="copy"):
        sd.tl.embed(open_cells(study / "cells.h5ad"), "pca", copy=True)


# The command line


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def refuse_reading_whole(monkeypatch) -> None:
    def whole(*args, **kwargs):
        raise AssertionError("read as a whole")

    monkeypatch.setattr(files, "SMALL", 0)
    monkeypatch.setattr(ad, "read_h5ad", whole)


@pytest.mark.parametrize("place", PLACES)
def test_commands_write_beside_the_untouched_counts(study, tmp_path, place, reads, monkeypatch):
    trained = sd.tl.train(cells(400), "pca", head="logistic", n_components=4, rng=0)
    trained.save(tmp_path / "predictor")
    expected = cells()
    sd.tl.embed(expected, "pca", n_components=4)
    sd.tl.predict_response(expected, trained)
    source, ending = study / place, ".zarr" if place.endswith(".zarr") else ".h5ad"
    out, predicted = tmp_path / f"out{ending}", tmp_path / f"predicted{ending}"
    read = {".h5ad": ad.read_h5ad, ".zarr": ad.read_zarr}[ending]
    refuse_reading_whole(monkeypatch)
    assert "raw counts" in run("check", source)
    run("embed", source, "-m", "pca", "--set", "n_components=4", "-o", out)
    run("predict", out, "-p", tmp_path / "predictor", "-o", predicted)
    assert 0 < max(reads) <= MOST
    monkeypatch.undo()
    found = read(predicted)
    assert (found.X != expected.X).nnz == 0 and found.X.dtype == expected.X.dtype
    np.testing.assert_array_equal(found.obsm["X_scdrugmap_pca"], expected.obsm["X_scdrugmap_pca"])
    pd.testing.assert_frame_equal(found.obs, expected.obs)
    assert found.uns["kept"] == "as it was" and "shift" in found.uns["response"]
    assert (open_cells(source).X[:] != expected.X).nnz == 0


def test_pairwise_matrices_and_old_embeddings_stay_in_the_file(tmp_path, monkeypatch):
    adata = cells(200)
    adata.obsm["X_old"] = np.ones((200, 3), np.float32)
    adata.obsp["distances"] = sparse.eye_array(200, format="csr")
    adata.write_h5ad(tmp_path / "a.h5ad")
    refuse_reading_whole(monkeypatch)
    run("embed", tmp_path / "a.h5ad", "-m", "hvg", "--set", "n_top_genes=5", "-o", tmp_path / "b.h5ad")
    monkeypatch.undo()
    found = ad.read_h5ad(tmp_path / "b.h5ad")
    assert (
        set(found.obsm) == {"X_old", "X_scdrugmap_hvg"}
        and (found.obsp["distances"] != adata.obsp["distances"]).nnz == 0
    )
    assert "X_scdrugmap_hvg" not in ad.read_h5ad(tmp_path / "a.h5ad").obsm


def test_a_kill_while_writing_leaves_no_file(tmp_path, monkeypatch):
    cells(200).write_h5ad(tmp_path / "a.h5ad")
    refuse_reading_whole(monkeypatch)
    monkeypatch.setattr("scdrugmap._disk_write.write_elem", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    arguments = ["embed", tmp_path / "a.h5ad", "-m", "hvg", "-o", tmp_path / "b.h5ad"]
    assert CliRunner().invoke(app, [str(a) for a in arguments]).exit_code != 0
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5ad"]


# Stores


def test_store_keeps_the_embedding_on_disk(study, tmp_path, reads):
    found, expected = open_cells(study / "cells.h5ad"), cells()
    sd.tl.embed(expected, "pca", n_components=5)
    sd.tl.embed(found, "pca", n_components=5, store=tmp_path)
    values = found.obsm["X_scdrugmap_pca"]
    np.testing.assert_array_equal(values, expected.obsm["X_scdrugmap_pca"])
    base = values
    while base.base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap) and Path(base.filename) == tmp_path / "pca" / "embedding.npy"
    values[0] = 7  # stays in memory
    again = open_cells(study / "cells.h5ad")
    sd.tl.embed(again, "pca", n_components=5, store=tmp_path)
    np.testing.assert_array_equal(again.obsm["X_scdrugmap_pca"], expected.obsm["X_scdrugmap_pca"])


def test_baselines_resume_and_notice_other_cells(tmp_path, monkeypatch):
    from scdrugmap.models.hvg import HVG

    adata, calls = cells(), []
    model = HVG(n_top_genes=5).fit(adata.X, example_genes())
    transform = HVG.transform
    monkeypatch.setattr(HVG, "transform", lambda self, X, genes: calls.append(X.shape[0]) or transform(self, X, genes))
    sd.tl.embed(adata, model, store=tmp_path)
    assert sum(calls) == N
    adata.X.data[adata.X.indptr[5000]] += 1
    calls.clear()
    sd.tl.embed(adata, model, store=tmp_path)
    # The first block says how wide the embedding is.
    assert sum(calls) == 2048 + 2048
    np.testing.assert_array_equal(adata.obsm["X_scdrugmap_hvg"], transform(model, adata.X, example_genes()))
    with pytest.raises(InputError, match="another model"):
        sd.tl.embed(adata, HVG(n_top_genes=4).fit(adata.X, example_genes()), store=tmp_path)


def example_genes():
    from scdrugmap._anndata import gene_ids

    return gene_ids(cells(2))


def test_store_of_version_01_goes_on(tmp_path):
    from scdrugmap._device import Engine
    from scdrugmap.embedding.embed import begin, embed_counts
    from scdrugmap.embedding.runner import block_digest
    from scdrugmap.models.tgpt import TGPT

    X, genes = example_cells(50)
    model, engine = TGPT.random(genes), Engine("cpu", store=tmp_path)
    expected = np.asarray(embed_counts(model, CountSource(X), genes, Engine("cpu"), block_size=20).values)
    prints = begin(model, CountSource(X), genes, Engine("cpu"), 20, None).fingerprint()
    group = zarr.open_group(tmp_path, mode="a")
    done = group.create_array("done", shape=(3, 32), chunks=(1, 32), dtype="uint8", fill_value=0)
    group.attrs.update({"fingerprint": prints, "block": 20})
    values = group.create_array("embedding", shape=expected.shape, chunks=(20, 16), dtype="float32", fill_value=np.nan)
    values[:20], done[0] = expected[:20], np.frombuffer(block_digest(CountSource(X)[slice(0, 20)]), np.uint8)
    found = embed_counts(model, CountSource(X), genes, engine, block_size=20)
    assert found.work.n_resumed == 20
    np.testing.assert_array_equal(np.asarray(found.values), expected)
    assert embed_counts(model, CountSource(X), genes, engine, block_size=20).work.n_resumed == 50


@pytest.mark.parametrize("name", ["empty", "cells.h5", "raw.tar.gz", "matrix.mtx"])
def test_what_cannot_stay_on_disk_is_refused_by_name(tmp_path, name):
    (tmp_path / "empty").mkdir()
    if name != "empty":
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=rf"{name}, with backed=True"):
        sd.datasets.load(tmp_path / name, backed=True)
