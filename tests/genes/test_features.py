import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scdrugmap as sd
from scdrugmap import _anndata
from scdrugmap._errors import MissingKeyError, ScDrugMapWarning
from scdrugmap.genes import (
    Genes,
    dated,
    feature_kinds,
    packaged_table,
    read_table,
    reads_as,
    resolve_genes,
    split_pairs,
)
from scdrugmap.genes.mapping import duplicates


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ERCC-00002", "spike-in"), ("ERCC1", ""), ("SIRV1", "spike-in"), ("__no_feature", "summary"),
        ("__too_low_aQual", "summary"), ("N_unmapped", "summary"), ("CD3_TotalSeqB", "antibody"), ("ADT-CD4", "antibody"),
        ("HTO_1", "hashtag"), ("Hashtag3", "hashtag"), ("HTR1A", ""), ("NCAM1", ""), ("N4BP1", ""),
    ],
)  # fmt: skip
def test_names_that_no_gene_bears(name, kind):
    assert feature_kinds([name]).tolist() == [kind]


def test_no_gene_is_taken_for_something_else():
    assert not (feature_kinds(packaged_table()["symbol"]) != "").any()


def test_types_are_read_where_they_are_types():
    names = ["TP53", "CD3", "x"]
    assert feature_kinds(names, ["Gene Expression", "Antibody Capture", "CRISPR Guide Capture"]).tolist() == [
        "", "antibody", "CRISPR guide"
    ]  # fmt: skip
    assert feature_kinds(names, ["Gene Expression", "Gene Expression", "My Tags"]).tolist() == ["", "", "My Tags"]
    assert feature_kinds(names, ["protein_coding", "lncRNA", ""]).tolist() == ["", "", ""]


@pytest.fixture
def tagged():
    clean = sd.datasets.simulate(n_studies=1, n_cells=40, n_genes=60, rng=0)
    clean.X = clean.X.toarray()
    extra = np.full((40, 3), 5000.0, np.float32)
    names = ["CD3E", "ERCC-00002", "__no_feature"]
    var = pd.DataFrame({"feature_types": ["Gene Expression"] * 60 + ["Antibody Capture"] + ["Gene Expression"] * 2})
    var.index = [*clean.var_names, *names]
    both = ad.AnnData(np.hstack([clean.X, extra]), obs=clean.obs.copy(), var=var)
    clean.var = pd.DataFrame(index=clean.var_names)
    return clean, both


@pytest.mark.parametrize("stored", ["memory", "backed"])
def test_features_that_are_no_genes_are_left_out_loudly(tagged, tmp_path, stored):
    clean, both = tagged
    if stored == "backed":
        both.write_h5ad(tmp_path / "a.h5ad")
        both = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    with pytest.warns(ScDrugMapWarning, match=r"1 antibody \(CD3E\); 1 spike-in \(ERCC-00002\); 1 summary"):
        sd.tl.embed(both, "hvg", key_added="h", rng=0)
    sd.tl.embed(clean, "hvg", key_added="h", rng=0)
    assert np.allclose(both.obsm["X_h"], clean.obsm["X_h"])
    report = sd.pp.check(both)
    assert report.facts["n_no_genes"] == 3
    assert any(f.level == "warning" and "antibody" in f.message for f in report.findings)
    assert report.facts["median_counts_per_cell"] == sd.pp.check(clean).facts["median_counts_per_cell"]


def test_tags_are_not_added_to_the_gene_of_their_name(tagged):
    _, both = tagged
    names = list(both.var_names[:60])
    both.var_names = [*names, "tag-1", "s", "t"]
    both.var["gene_symbol"] = [*names, names[0], "", ""]
    before = both.X.copy()
    sd.pp.harmonize_genes(both)
    assert np.array_equal(both.X, before) and both.var["gene_symbol"].tolist().count(names[0]) == 1


def test_raw_is_read_as_a_layer(tagged):
    clean, _ = tagged
    clean.raw = clean.copy()
    clean.X = np.log1p(clean.X)
    chosen = clean[:, ::-2].copy()
    assert np.array_equal(_anndata.counts(chosen, "raw"), clean.raw.X)
    assert _anndata.gene_ids(chosen, "raw").names.tolist() == clean.raw.var_names.tolist()
    with pytest.raises(MissingKeyError, match='layer="raw"'):
        _anndata.counts(chosen, "nothing")
    finding = next(f for f in sd.pp.check(clean).findings if f.level == "error")
    assert "layer='raw'" in finding.fix


PAIRS = ["ENSG00000141510_TP53", "TP53|ENSG00000141510.5", "ENSG00000141510:TP53", "TP53 (ENSG00000141510)"]


@pytest.mark.parametrize("name", [*PAIRS, "GRCh38_ENSG00000141510-TP53", "ENSG00000141510|TP53|protein_coding"])
def test_names_with_both_forms(name):
    genes = Genes.from_names([name])
    assert (genes.symbols.tolist(), genes.ensembl.tolist()) == (["TP53"], ["ENSG00000141510"])


@pytest.mark.parametrize(
    ("name", "ensembl"),
    [
        ("ENSG00000223972.5_2", "ENSG00000223972"), ("ENSGR0000182378.10", "ENSG00000182378"),
        ("ensg00000141510", "ENSG00000141510"), ("ENSG00000228572.7_PAR_Y", "ENSG00000228572"),
    ],
)  # fmt: skip
def test_versions_and_spellings_of_ids(name, ensembl):
    assert Genes.from_names([name]).ensembl.tolist() == [ensembl]


def test_symbols_with_entrez_numbers_and_two_genomes():
    assert split_pairs(["EGFR|1956"])[1].tolist() == ["EGFR"]
    genes = Genes.from_names(["GRCh38_H19", "mm10___H19", "GRCh38_TP53"])
    assert genes.symbols.tolist() == ["H19", "", "TP53"]


@pytest.mark.parametrize(
    ("name", "symbol", "status"),
    [
        ("2-Sep", "SEPTIN2", "date"), ("Sep-02", "SEPTIN2", "date"), ("2023-09-07", "SEPTIN7", "date"),
        ("3-Mar", "MARCHF3", "date"), ("1-Mar", "", "ambiguous"), ("1-Dec", "", "ambiguous"), ("5-Dec", "", "unknown"),
        ("NKX2.1", "NKX2-1", "separator"), ("HLA_A", "HLA-A", "separator"), ("AC012345.1", "AC012345.1", "unknown"),
    ],
)  # fmt: skip
def test_dates_and_separators(name, symbol, status):
    got = resolve_genes(Genes.from_names([name]), read_table())
    assert (got.symbol.tolist(), got.status.tolist()) == ([symbol], [status])


def test_nothing_is_merged_that_may_be_two_genes():
    names = ["2-Sep", "SEPTIN2", "1-Mar", "1-Mar", "HLA.A", "HLA-A", "Y_RNA", "Y_RNA"]
    ids = [""] * 6 + ["ENSG00000199900", "ENSG00000199901"]
    genes = Genes.from_names(names, ensembl=ids)
    got = resolve_genes(genes, read_table())
    assert duplicates(got, genes.names).tolist() == list(range(8))
    assert got.candidates[2] == "MARCHF1|MTARC1"


def test_what_a_column_holds():
    table = packaged_table()
    assert reads_as(table["symbol"]) == "symbol" and reads_as(table["ensembl_id"]) == "ensembl"
    for other in (["protein_coding"] * 50 + ["lncRNA"] * 5, ["a long text", "another text"], [None, None], ["1", "1"]):
        assert reads_as(other) == "unknown"
    assert dated(["MARCH1", "SEPT2"]).tolist() == ["", ""]


def test_biotypes_in_a_symbol_column_are_no_symbols():
    names = packaged_table()["symbol"].head(30).tolist()
    var = pd.DataFrame({"gene_name": ["protein_coding"] * 30}, index=names)
    adata = ad.AnnData(np.ones((2, 30), np.float32), var=var)
    assert _anndata.gene_ids(adata).symbols.tolist() == names
    sd.pp.harmonize_genes(adata)
    assert adata.n_vars == 30
