"""Files that people bring to the command line, and files that it must not take from them."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp
from typer.testing import CliRunner

import scdrugmap as sd
from scdrugmap._errors import SpecError
from scdrugmap.cli._app import app
from scdrugmap.cli._overwrite import refuse_own_input
from scdrugmap.datasets.files import read_cells
from scdrugmap.spec import EmbedSpec


@pytest.fixture(scope="module")
def cells():
    return sd.datasets.simulate(n_studies=1, n_cells=60, n_genes=80, rng=0)


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200", "TERM": "dumb"})


def test_a_10x_folder_and_a_text_matrix_are_read(cells, tmp_path):
    folder = tmp_path / "filtered"
    folder.mkdir()
    with gzip.open(folder / "matrix.mtx.gz", "wb") as file:
        scipy.io.mmwrite(file, sp.csr_matrix(cells.X).T.astype(int), field="integer")
    with gzip.open(folder / "features.tsv.gz", "wt") as file:
        file.writelines(f"{g}\t{g}\tGene Expression\n" for g in cells.var_names)
    with gzip.open(folder / "barcodes.tsv.gz", "wt") as file:
        file.writelines(f"{c}\n" for c in cells.obs_names)
    table = tmp_path / "counts.csv"
    cells.to_df().astype(int).T.to_csv(table)
    want = np.asarray(sp.csr_matrix(cells.X).sum(axis=1)).ravel()
    for source in (folder, table):
        got = read_cells(source)
        assert got.shape == cells.shape
        total = dict(zip(got.obs_names, np.asarray(sp.csr_matrix(got.X).sum(axis=1)).ravel(), strict=True))
        np.testing.assert_allclose(
            [v for _, v in sorted(total.items())], [v for _, v in sorted(zip(cells.obs_names, want, strict=True))]
        )


def test_the_input_is_not_replaced_unasked(cells, tmp_path):
    file = tmp_path / "x.h5ad"
    cells.write_h5ad(file)
    before = file.read_bytes()
    out = run("embed", file, "--model", "pca", "-o", tmp_path / "." / "x.h5ad")
    assert out.exit_code == 2 and "--overwrite" in out.stderr
    assert file.read_bytes() == before
    spec = {"input": file, "output": file, "model": ["pca"]}
    with pytest.raises(SpecError):
        refuse_own_input(EmbedSpec(**spec))
    refuse_own_input(EmbedSpec(**spec, overwrite=True))


def test_a_missing_flag_is_named_as_it_is_typed(tmp_path, cells):
    file = tmp_path / "x.h5ad"
    cells.write_h5ad(file)
    out = run("embed", file, "--model", "pca")
    assert out.exit_code == 2
    assert "--output" in out.stderr or "-o" in out.stderr
    assert "Field required" not in out.stderr and "PosixPath" not in out.stderr
