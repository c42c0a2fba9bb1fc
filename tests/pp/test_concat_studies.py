import warnings

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scdrugmap as sd
from scdrugmap._errors import InputError, InputTypeError, ScDrugMapWarning


@pytest.fixture
def studies():
    both = sd.datasets.simulate(n_studies=2, n_cells=200, n_genes=120, shared_controls=True, rng=0)
    a = both[both.obs["study"] == "study1"][:, :100].copy()
    b = both[both.obs["study"] == "study2"][:, np.arange(119, 19, -1)].copy()
    return {"A": a, "B": b}


def concat(studies, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScDrugMapWarning)
        return sd.pp.concat_studies(studies, **options)


@pytest.mark.parametrize("join", ["inner", "outer"])
def test_counts_against_anndata(studies, join):
    got = concat(studies, join=join)
    expected = anndata.concat(studies, join=join, fill_value=0, keys=None)
    order = got.var_names
    assert set(order) == set(expected.var_names)
    assert np.array_equal(got.X.toarray(), expected[:, order].X.toarray())
    assert sparse.isspmatrix_csr(got.X)
    assert got.X.dtype == np.float32
    assert got.X.has_sorted_indices
    assert got.var["n_studies"].tolist() == [
        (g in studies["A"].var_names) + (g in studies["B"].var_names) for g in order
    ]
    assert (got.var["gene_symbol"] == order).all()
    assert (got.var["ensembl_id"].str.startswith("ENSG")).all()


def test_keys_stay_unique(studies):
    got = concat(studies)
    assert got.obs_names.is_unique
    assert got.obs["study"].unique().tolist() == ["A", "B"]
    assert got.obs["source_study"].unique().tolist() == ["study1", "study2"]
    assert {"A:control", "B:control"} <= set(got.obs["sample"])
    assert got.obs["patient"].str.match("^[AB]:").all()
    assert got.obs["batch"].str.match("^[AB]:").all()
    assert got.obs_names[0] == "A:" + studies["A"].obs_names[0]
    assert list(got.obs["response"].cat.categories) == ["resistant", "sensitive"]
    assert got.obs["response"].tolist() == [*studies["A"].obs["response"], *studies["B"].obs["response"]]


def test_columns_of_any_study_are_kept(studies):
    studies["B"].obs["dose"] = 1.5
    studies["B"].obs["arm"] = "x"
    studies["A"].obs["flag"] = True
    got = concat(studies)
    n = studies["A"].n_obs
    assert got.obs["dose"].isna().tolist() == [True] * n + [False] * (got.n_obs - n)
    assert got.obs["arm"].iloc[-1] == "x"
    assert got.obs["flag"].iloc[0] == "True"
    assert got.obs["flag"].isna().tolist() == [False] * n + [True] * (got.n_obs - n)


def test_shared_cells_are_found(studies):
    controls = [(s.obs["sample"] == "control").to_numpy() for s in studies.values()]
    with pytest.warns(ScDrugMapWarning, match=r"A and B \(\d+\)"):
        got = sd.pp.concat_studies(studies, join="outer")
    assert got.obs["duplicated"].tolist() == np.concatenate(controls).tolist()
    pairs = got.uns["scdrugmap_concat"]["duplicates"]
    assert pairs["n_cells"].tolist() == [controls[0].sum()]
    assert (pairs["study_a"].item(), pairs["study_b"].item()) == ("A", "B")


def test_no_false_duplicates_and_not_within_a_study(studies):
    a = studies["A"]
    twice = anndata.concat([a, a], index_unique="-")
    b = sd.datasets.simulate(n_studies=1, n_cells=100, n_genes=120, rng=9)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScDrugMapWarning)
        got = sd.pp.concat_studies({"A": twice, "B": b})
    assert not got.obs["duplicated"].any()


@pytest.mark.parametrize("join", ["inner", "outer"])
def test_disk_equals_memory_whatever_the_source(studies, tmp_path, join):
    studies["B"].X = studies["B"].X.tocsc()
    expected = concat(studies, join=join)
    files = {}
    for name, adata in studies.items():
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
        files[name] = tmp_path / f"{name}.h5ad"
    disk = concat(files, join=join, path=tmp_path / "all.h5ad", chunk_size=13)
    assert disk.isbacked
    got = disk.to_memory()
    disk.file.close()
    assert (got.X != expected.X).nnz == 0
    pd.testing.assert_frame_equal(got.obs, expected.obs)
    pd.testing.assert_frame_equal(got.var, expected.var)
    assert {p.name for p in tmp_path.iterdir()} == {"A.h5ad", "B.h5ad", "all.h5ad"}


def test_inputs_stay(studies):
    before = {k: (v.X.copy(), v.obs.copy(), v.var.copy()) for k, v in studies.items()}
    concat(studies, join="outer")
    for name, (X, obs, var) in before.items():
        assert (X != studies[name].X).nnz == 0
        assert obs.equals(studies[name].obs)
        assert var.equals(studies[name].var)


def test_study_without_samples_counts_as_one(studies):
    del studies["B"].obs["sample"]
    with pytest.warns(ScDrugMapWarning, match="one sample: B"):
        got = sd.pp.concat_studies(studies)
    assert got.obs.loc[got.obs["study"] == "B", "sample"].unique().tolist() == ["B:all"]


def test_mudata_and_layer(studies):
    studies["A"].layers["raw"] = studies["A"].X * 2
    studies["B"].layers["raw"] = studies["B"].X * 2
    wrapped = {"A": mudata.MuData({"rna": studies["A"]}), "B": studies["B"]}
    assert (concat(wrapped, layer="raw").X != concat(studies).X * 2).nnz == 0


def test_few_common_genes_are_said(studies):
    studies["B"] = studies["B"].copy()
    studies["B"].var_names = ["X" + g if i > 40 else g for i, g in enumerate(studies["B"].var_names)]
    with pytest.warns(ScDrugMapWarning, match="common to all"):
        sd.pp.concat_studies(studies)


def test_bad_input(studies, tmp_path):
    a = studies["A"]
    for wrong in ([a], a, None):
        with pytest.raises(InputTypeError):
            sd.pp.concat_studies(wrong)
    with pytest.raises(InputTypeError, match="studies"):
        sd.pp.concat_studies({"A": 5})
    for names in ({}, {"": a}, {"a:b": a}):
        with pytest.raises(InputError):
            sd.pp.concat_studies(names)
    with pytest.raises(InputError, match="join"):
        sd.pp.concat_studies(studies, join="left")
    with pytest.raises(InputError, match="path"):
        sd.pp.concat_studies(studies, path="/no/such/folder/a.h5ad")
    with pytest.raises(InputError, match="exists"):
        sd.pp.concat_studies({"A": tmp_path / "none.h5ad"})
    (tmp_path / "text.h5ad").write_text("hello")
    with pytest.raises(InputError, match="h5ad file"):
        sd.pp.concat_studies({"A": tmp_path / "text.h5ad"})
    other = a.copy()
    other.var_names = a.var["ensembl_id"].to_numpy()
    with pytest.raises(InputError, match="no gene that all have"):
        sd.pp.concat_studies({"A": a, "B": other})
    repeated = a.copy()
    repeated.var_names = ["A1BG", "A1BG", *a.var_names[2:]]
    with pytest.raises(InputError, match="repeated"):
        sd.pp.concat_studies({"A": repeated})


def test_real_studies_on_disk(shared, tmp_path):
    names = ["kinker2020_scc47", "kinker2020_jhu006", "kang2018_pbmc_subset"]
    files = {n: shared / "data" / f"{n}.h5ad" for n in names}
    disk = concat(files, join="outer", path=tmp_path / "all.h5ad", chunk_size=100)
    assert disk.n_obs == 120 + 66 + 1556
    assert sd.pp.check(disk).ok
    disk.file.close()
