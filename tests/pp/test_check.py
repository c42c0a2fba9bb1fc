import json

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scdrugmap as sd
from scdrugmap._errors import InputTypeError, MissingKeyError


@pytest.fixture
def adata():
    return sd.datasets.simulate(n_studies=2, n_cells=300, n_genes=200, rng=0)


def slots(report, level):
    return [f.slot for f in report.findings if f.level == level]


def text(report, level=None):
    return " ".join(f"{f.slot} {f.message} {f.fix}" for f in report.findings if level in (None, f.level))


def test_good_data_is_ready_and_unchanged(adata):
    X, obs, var, uns = adata.X.copy(), adata.obs.copy(), adata.var.copy(), set(adata.uns)
    report = sd.pp.check(adata)
    assert report.ok
    assert not report.warnings
    assert (X != adata.X).nnz == 0
    assert obs.equals(adata.obs)
    assert var.equals(adata.var)
    assert uns == set(adata.uns)
    assert report.facts["species"] == "human"
    assert report.facts["identifiers"] == "symbol"
    assert report.facts["raw_counts"] is True
    assert report.facts["median_counts_per_cell"] == np.median(adata.X.toarray().sum(1))
    assert report.facts["median_genes_per_cell"] == np.median((adata.X.toarray() > 0).sum(1))


def test_labels_per_study_and_sample(adata):
    labels = sd.pp.check(adata).labels
    expected = pd.crosstab([adata.obs["study"], adata.obs["sample"]], adata.obs["response"])
    assert labels[["resistant", "sensitive"]].sum().tolist() == expected.sum().tolist()
    row = labels[labels["sample"] == "study2-p1-s1"]
    assert row[["resistant", "sensitive"]].to_numpy().sum() == (adata.obs["sample"] == "study2-p1-s1").sum()
    assert len(labels) == adata.obs["sample"].nunique()


@pytest.mark.parametrize(
    ("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-3, "negative"), (0.5, "not whole")]
)
def test_values_that_are_no_counts(adata, value, word):
    adata.X.data[3] = value
    report = sd.pp.check(adata)
    assert not report.ok
    assert slots(report, "error") == ["X"]
    assert word in text(report, "error")


def test_log_values_are_told_and_the_counts_are_found(adata):
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.log1p()
    report = sd.pp.check(adata)
    assert "log-normalised?" in text(report, "error")
    assert "layer='counts'" in text(report, "error")
    assert sd.pp.check(adata, layer="counts").ok
    adata.layers["log"] = adata.X
    adata.X = adata.layers.pop("counts")
    assert "X holds whole numbers" in text(sd.pp.check(adata, layer="log"), "error")


@pytest.mark.parametrize("chunk_size", [7, 300, 10_000])
@pytest.mark.parametrize("form", ["dense", "csc", "backed", "dask"])
def test_storage_and_chunks_do_not_matter(adata, tmp_path, form, chunk_size):
    adata.X[5] = 0
    adata.X.eliminate_zeros()
    expected = sd.pp.check(adata)
    if form == "dense":
        adata.X = adata.X.toarray()
    elif form == "csc":
        adata.X = adata.X.tocsc()
    elif form == "backed":
        adata.write_h5ad(tmp_path / "a.h5ad")
        adata = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    else:
        dask_array = pytest.importorskip("dask.array")
        adata.X = dask_array.from_array(adata.X.toarray(), chunks=(50, 200))
    got = sd.pp.check(adata, chunk_size=chunk_size)
    assert got.facts == expected.facts
    assert got.findings == expected.findings
    assert got.facts["n_empty_cells"] == 1


def test_empty_cells_and_genes(adata):
    dense = adata.X.toarray()
    dense[[2, 4]] = 0
    dense[:, 7] = 0
    adata.X = sparse.csr_matrix(dense)
    report = sd.pp.check(adata)
    assert (report.facts["n_empty_cells"], report.facts["n_empty_genes"]) == (2, 1)
    assert "2 cells without any count" in text(report, "warning")


def test_repeated_names(adata):
    adata.var_names = ["A1BG", *adata.var_names[1:-1], "A1BG"]
    adata.obs_names = ["x", *adata.obs_names[1:-1], "x"]
    report = sd.pp.check(adata)
    assert "var_names" in slots(report, "error")
    assert "obs_names" in slots(report, "warning")


def test_copies_of_cells_are_counted():
    adata = sd.datasets.simulate(n_studies=3, n_cells=300, n_genes=200, shared_controls=True, rng=0)
    report = sd.pp.check(adata)
    assert report.facts["n_duplicated_cells"] == (adata.obs["sample"] == "control").sum()
    assert "in several studies" in text(report, "warning")


@pytest.mark.parametrize(
    ("names", "word", "level"),
    [
        (["Trp53", "Egfr", "Gapdh"], "mouse", "error"),
        (["0", "1", "2"], "no gene identifiers", "error"),
        (["7157", "1956", "3845"], "Entrez", "error"),
        (["ENSG00000141510", "ENSG00000146648", "ENSG00000133703"], "no symbols", "info"),
    ],
)
def test_identifiers(names, word, level):
    adata = anndata.AnnData(np.ones((4, 3), np.float32), var=pd.DataFrame(index=names))
    assert word in text(sd.pp.check(adata), level)


def test_missing_columns_are_findings(adata):
    del adata.obs["response"], adata.obs["sample"], adata.obs["study"]
    report = sd.pp.check(adata)
    assert report.ok
    assert {'obs["response"]', 'obs["sample"]', 'obs["study"]'} <= set(slots(report, "info"))
    assert report.labels.empty


def test_foreign_missing_and_single_labels(adata):
    adata.obs["response"] = np.where(np.arange(300) < 5, "R", adata.obs["response"].astype(str))
    report = sd.pp.check(adata)
    assert not report.ok and "not ready" in str(report)
    assert "harmonize_response" in text(report, "error")
    adata.obs["response"] = pd.Categorical([None] * 5 + ["resistant"] * 295, categories=["resistant", "sensitive"])
    report = sd.pp.check(adata)
    assert "only resistant" in text(report, "warning")
    assert "5 cells without a label" in text(report)
    assert report.facts["labels"] == {"resistant": 295, "": 5}


def test_one_sample_per_label_and_one_label_per_study(adata):
    adata.obs["sample"] = adata.obs["response"].astype(str)
    assert "cannot be told from the sample" in text(sd.pp.check(adata), "warning")
    adata.obs["study"] = adata.obs["response"].astype(str)
    assert "studies with one label only: " in text(sd.pp.check(adata), "warning")
    adata.obs["sample"] = "all"
    assert "hold both labels" in text(sd.pp.check(adata), "info")


def test_empty_data(adata):
    assert "no cells" in text(sd.pp.check(adata[:0].copy()), "error")
    assert "no genes" in text(sd.pp.check(adata[:, :0].copy()), "error")


def test_mudata_and_modality(adata):
    prot = anndata.AnnData(np.full((300, 2), 0.5, np.float32), obs=adata.obs[[]])
    mdata = mudata.MuData({"rna": adata, "prot": prot})
    assert sd.pp.check(mdata).ok
    assert not sd.pp.check(mdata, mod="prot").ok
    with pytest.raises(MissingKeyError):
        sd.pp.check(mdata, mod="atac")


def test_report_for_people_and_programs(adata):
    adata.X.data[0] = 0.5
    adata.obs["drug<b>"] = 1
    report = sd.pp.check(adata)
    assert str(report) == repr(report)
    assert "not ready (1 error, 0 warnings)" in str(report)
    frame = report.to_frame()
    assert list(frame.columns) == ["level", "slot", "message", "fix"]
    order = frame["level"].map({"error": 0, "warning": 1, "info": 2})
    assert order.is_monotonic_increasing
    again = json.loads(json.dumps(report.to_dict()))
    assert again["ok"] is False
    assert again["findings"][0]["slot"] == "X"
    assert report._repr_html_().count("<tr>") == len(report.findings) + 1


def test_html_is_escaped():
    report = sd.pp.CheckReport(1, 1, (sd.pp.Finding("error", "<b>", "<script>", "&"),))
    assert "<script>" not in report._repr_html_()


def test_wrong_types():
    with pytest.raises(InputTypeError):
        sd.pp.check("a.h5ad")
    with pytest.raises(MissingKeyError):
        sd.pp.check(anndata.AnnData(np.ones((2, 2), np.float32)), layer="counts")
    with pytest.raises(MissingKeyError):
        sd.pp.check(anndata.AnnData(obs=pd.DataFrame(index=["a"]), var=pd.DataFrame(index=["TP53"])))


@pytest.mark.parametrize(
    "name",
    ["tian2019_lung_mixology", "kinker2020_scc47", "kinker2020_jhu006", "kang2018_pbmc_subset", "zheng2017_pbmc"],
)
def test_real_studies_are_ready(shared, name):
    adata = anndata.read_h5ad(shared / "data" / f"{name}.h5ad", backed="r")
    report = sd.pp.check(adata, chunk_size=500)
    adata.file.close()
    assert report.ok
    assert report.facts["raw_counts"]
    assert report.facts["species"] == "human"
