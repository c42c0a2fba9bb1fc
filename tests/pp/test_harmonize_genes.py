import warnings

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scdrugmap as sd
from scdrugmap._errors import InputError, InputTypeError, ScDrugMapWarning

TABLE = pd.DataFrame(
    {
        "symbol": ["TP53", "ZNRD2", "SEPTIN2", "SEPTIN6", "EGFR"],
        "prev_symbol": ["", "SSSCA1", "SEPT2", "", ""],
        "alias_symbol": ["LFS1", "", "", "SEPT2", "ERBB"],
        "ensembl_gene_id": [f"ENSG0000000000{i}" for i in range(5)],
        "entrez_id": ["7157", "10534", "4735", "23157", "1956"],
    }
)
NAMES = ["TP53", "SSSCA1", "ENSG00000000004.7", "ZNRD2", "SEPT2", "XYZ1"]


@pytest.fixture
def adata():
    X = sparse.csr_matrix(np.arange(24, dtype=np.float32).reshape(4, 6))
    out = anndata.AnnData(X, obs=pd.DataFrame(index=list("abcd")), var=pd.DataFrame(index=NAMES))
    out.layers["raw"] = out.X.copy()
    out.varm["load"] = np.arange(12.0).reshape(6, 2)
    return out


def snapshot(adata):
    return adata.X.copy(), adata.obs.copy(), adata.var.copy(), list(adata.uns), list(adata.layers)


def unchanged(adata, before):
    X, obs, var, uns, layers = before
    same = (X != adata.X).nnz == 0 and obs.equals(adata.obs) and var.equals(adata.var)
    return same and uns == list(adata.uns) and layers == list(adata.layers)


def run(adata, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScDrugMapWarning)
        return sd.pp.harmonize_genes(adata, table=TABLE, **options)


def test_identifiers_and_sums(adata):
    dense = adata.X.toarray()
    assert run(adata) is None
    assert adata.var["gene_symbol"].tolist() == ["TP53", "ZNRD2", "EGFR", "SEPT2", "XYZ1"]
    assert adata.var["ensembl_id"].tolist() == ["ENSG00000000000", "ENSG00000000001", "ENSG00000000004", "", ""]
    expected = np.delete(dense, 3, axis=1)
    expected[:, 1] += dense[:, 3]
    assert np.array_equal(adata.X.toarray(), expected)
    assert np.array_equal(adata.layers["raw"].toarray(), expected)
    assert sparse.issparse(adata.X)
    assert adata.X.dtype == np.float32
    assert adata.varm["load"][:, 0].tolist() == [0, 2, 4, 8, 10]
    assert adata.var_names.tolist() == ["TP53", "SSSCA1", "ENSG00000000004.7", "SEPT2", "XYZ1"]


def test_record_leads_back_to_every_name(adata):
    run(adata)
    record = adata.uns["scdrugmap_genes"]
    table = record["table"]
    assert table["name"].tolist() == NAMES
    assert table["column"].tolist() == [0, 1, 2, 1, 3, 4]
    assert table["status"].tolist() == ["approved", "previous", "ensembl", "approved", "ambiguous", "unknown"]
    assert table["candidates"].tolist()[4] in ("SEPTIN2|SEPTIN6", "SEPTIN6|SEPTIN2")
    assert (record["n_before"], record["n_after"]) == (6, 5)


def test_second_call_changes_nothing(adata, tmp_path):
    run(adata)
    adata.write_h5ad(tmp_path / "a.h5ad")
    for again in (adata, anndata.read_h5ad(tmp_path / "a.h5ad")):
        before, table = snapshot(again), again.uns["scdrugmap_genes"]["table"].copy()
        run(again)
        assert unchanged(again, before)
        pd.testing.assert_frame_equal(table, again.uns["scdrugmap_genes"]["table"])


def test_copy_leaves_the_input(adata):
    before = snapshot(adata)
    out = run(adata, copy=True)
    assert unchanged(adata, before)
    assert out.n_vars == 5


def test_dense_and_csc(adata):
    for convert in (np.asarray, sparse.csc_matrix):
        other = anndata.AnnData(convert(adata.X.toarray()), obs=adata.obs, var=adata.var[[]])
        expected = run(adata, copy=True).X.toarray()
        run(other)
        got = other.X
        assert np.array_equal(got.toarray() if sparse.issparse(got) else got, expected)
        assert type(got) is type(convert(adata.X.toarray()))


def test_view_is_made_actual(adata):
    view = adata[1:3]
    run(view)
    assert view.shape == (2, 5)
    assert adata.shape == (4, 6)


def test_mudata(adata):
    mdata = mudata.MuData({"rna": adata, "prot": anndata.AnnData(np.ones((4, 1), np.float32), obs=adata.obs)})
    run(mdata)
    assert mdata["rna"].n_vars == 5
    assert mdata.n_vars == 6


def test_columns_of_var_come_first(adata):
    adata.var["gene_ids"] = ["ENSG00000000004.1", "", "", "", "", ""]
    with pytest.warns(ScDrugMapWarning, match="name two genes"):
        sd.pp.harmonize_genes(adata, table=TABLE)
    assert adata.var.loc["TP53", "gene_symbol"] == "EGFR"
    assert adata.n_vars == 4


def test_entrez_names_and_column(adata):
    adata.var_names = ["7157", "10534", "1956", "1", "2", "4735"]
    run(adata)
    assert adata.var["gene_symbol"].tolist() == ["TP53", "ZNRD2", "EGFR", "", "", "SEPTIN2"]
    other = anndata.AnnData(
        np.ones((2, 2), np.float32), var=pd.DataFrame({"entrez": [7157.0, np.nan]}, index=["X1", "X2"])
    )
    run(other)
    assert other.var["gene_symbol"].tolist() == ["TP53", "X2"]


def test_ambiguous_and_unknown_names_are_said(adata):
    with pytest.warns(ScDrugMapWarning) as caught:
        sd.pp.harmonize_genes(adata, table=TABLE)
    text = " ".join(str(w.message) for w in caught)
    assert "SEPT2" in text
    assert "not in the gene table" in text


def test_packaged_table_says_what_it_is():
    adata = sd.datasets.simulate(n_cells=50, n_genes=100, rng=0)
    before = adata.X.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScDrugMapWarning)
        sd.pp.harmonize_genes(adata)
    assert (before != adata.X).nnz == 0
    assert "no aliases" in adata.uns["scdrugmap_genes"]["source"]
    assert (adata.uns["scdrugmap_genes"]["table"]["status"] == "approved").all()


@pytest.mark.parametrize(
    ("names", "word"),
    [
        (["Trp53", "Egfr", "Gapdh", "mt-Co1"], "mouse"),
        (["ENSMUSG00000059552", "ENSMUSG00000020122"], "mouse"),
        (["0", "1", "2", "3"], "symbols"),
    ],
)
def test_other_species_and_no_genes(names, word):
    adata = anndata.AnnData(np.ones((2, len(names)), np.float32), var=pd.DataFrame(index=names))
    before = adata.var.copy()
    with pytest.raises(InputError, match=word):
        sd.pp.harmonize_genes(adata)
    assert adata.var.equals(before)
    assert not adata.uns


def test_bad_input_changes_nothing(adata, tmp_path):
    with pytest.raises(InputTypeError):
        sd.pp.harmonize_genes("a.h5ad")
    before = snapshot(adata)
    with pytest.raises(InputError):
        sd.pp.harmonize_genes(adata, table="/no/such/file")
    assert unchanged(adata, before)
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    with pytest.raises(InputError, match="in memory"):
        run(backed)
    assert backed.n_vars == 6
    backed.file.close()


@pytest.mark.parametrize(
    "name", ["tian2019_lung_mixology", "kinker2020_scc47", "kang2018_pbmc_subset", "zheng2017_pbmc"]
)
def test_real_studies(shared, name):
    adata = anndata.read_h5ad(shared / "data" / f"{name}.h5ad")
    tables = [
        shared / "data" / f
        for f in ("hgnc_symbol_alias_to_approved.tsv.gz", "gene_annotation_grch38_ensembl109.tsv.gz")
    ]
    total, before = np.asarray(adata.X.sum(axis=1)).ravel(), adata.n_vars
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScDrugMapWarning)
        sd.pp.harmonize_genes(adata, table=tables)
        assert np.array_equal(np.asarray(adata.X.sum(axis=1)).ravel(), total)
        symbols = adata.var["gene_symbol"]
        assert symbols[symbols != ""].is_unique
        assert adata.n_vars > 0.99 * before
        var, record = adata.var.copy(), adata.uns["scdrugmap_genes"]["table"].copy()
        if name == "kang2018_pbmc_subset":
            sd.pp.harmonize_genes(adata, table=tables)
            assert var.equals(adata.var)
            assert record.equals(adata.uns["scdrugmap_genes"]["table"])
    resolved = record["status"].isin(["approved", "ensembl", "alias", "previous"]).mean()
    assert resolved > 0.85
    given = (record["ensembl_before"] != "") & (record["status"] == "approved") & ~record["conflict"]
    agree = (record["ensembl_before"] == record["ensembl_id"])[given]
    assert agree.mean() > 0.98


def test_registered_hgnc_table_is_used(tmp_path, monkeypatch):
    from scdrugmap import download
    from scdrugmap.settings import settings

    monkeypatch.setattr(settings, "cache_dir", tmp_path / "cache")
    lines = ["symbol\talias_symbol\tprev_symbol\tensembl_gene_id\tentrez_id"]
    lines += ["ZNRD2\tp27\tSSSCA1\tENSG00000173465\t10534", "TP53\tp53\t\tENSG00000141510\t7157"]
    file = tmp_path / "hgnc_complete_set.txt"
    file.write_text("\n".join(lines) + "\n")
    adata = anndata.AnnData(np.array([[1.0, 2.0]]), var=pd.DataFrame(index=["SSSCA1", "TP53"]))
    before = sd.pp.harmonize_genes(adata, copy=True)
    assert "packaged" in before.uns["scdrugmap_genes"]["source"]
    assert before.var["gene_symbol"].tolist() == ["SSSCA1", "TP53"]
    download.register_local("datasets", "hgnc", file)
    for table in (None, "hgnc"):
        after = sd.pp.harmonize_genes(adata, table=table, copy=True)
        assert after.var["gene_symbol"].tolist() == ["ZNRD2", "TP53"]
        assert after.uns["scdrugmap_genes"]["source"] == "hgnc_complete_set.txt"
