import anndata
import numpy as np
import pandas as pd
import pytest

import scdrugmap as sd
from scdrugmap._anndata import gene_ids
from scdrugmap._errors import InputError, UnknownNameError
from scdrugmap.models.registry import get


@pytest.fixture
def adata():
    return sd.datasets.simulate(n_cells=60, n_genes=80, rng=0)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(sd.settings, "cache_dir", tmp_path)
    monkeypatch.setattr(sd.settings, "offline", True)


def test_a_loaded_model_is_compared_gene_by_gene(adata, offline):
    known = adata[:, :50]
    model = get("tgpt").random(gene_ids(known))
    row = sd.pp.gene_coverage(adata, model).iloc[0]
    assert row["n_found"] == 50
    assert row["n_genes"] == 80
    assert row["of_genes"] == pytest.approx(50 / 80)
    assert row["of_counts"] == pytest.approx(known.X.sum() / adata.X.sum())


def test_absent_checkpoints_are_rows_and_nothing_is_fetched(adata, offline):
    table = sd.pp.gene_coverage(adata)
    assert {"scGPT", "UCE", "Geneformer"} <= set(table["model"])
    assert not {"pca", "hvg", "scVI"} & set(table["model"])
    assert table["n_found"].isna().all()
    assert table["note"].str.contains("sd.models.fetch").all()


def test_check_uses_it(adata, offline):
    report = sd.pp.check(adata, models=["scGPT"])
    assert any("scGPT" in f.slot and "fetch" in f.message for f in report.findings)
    assert report.ok


def test_bad_names(adata, offline):
    with pytest.raises(UnknownNameError, match="scGPT"):
        sd.pp.gene_coverage(adata, "scGTP")
    with pytest.raises(InputError, match="vocabulary"):
        sd.pp.gene_coverage(adata, "pca")
    with pytest.raises(UnknownNameError):
        sd.pp.gene_coverage(adata, "scGPT", checkpoints={"nothing": "x"})
    with pytest.raises(InputError, match="exists"):
        sd.pp.gene_coverage(adata, "scGPT", checkpoints={"scGPT": "/no/such/folder"})


def test_real_study_against_official_layouts(shared, offline):
    adata = anndata.read_h5ad(shared / "data" / "kinker2020_scc47.h5ad")
    names = ["tgpt", "geneformer", "scgpt", "scbert"]
    folders = {name: shared / "parity" / name / "checkpoint" for name in names}
    table = sd.pp.gene_coverage(adata, names, checkpoints=folders).set_index("model")
    assert (table["n_found"] > 100).all()
    assert table["of_counts"].between(0, 1).all()
    words = set(get("scgpt").from_checkpoint(folders["scgpt"]).vocabulary)
    expected = np.isin(adata.var_names, list(words))
    assert table.loc["scGPT", "n_found"] == expected.sum()
    assert table.loc["scGPT", "of_counts"] == pytest.approx(adata.X[:, expected].sum() / adata.X.sum(), rel=1e-5)


def test_broken_checkpoint_is_a_note(adata, offline, tmp_path):
    table = sd.pp.gene_coverage(adata, "scGPT", checkpoints={"scGPT": tmp_path})
    assert pd.isna(table.loc[0, "n_found"])
    assert "cannot be read" in table.loc[0, "note"]
