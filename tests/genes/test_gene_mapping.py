import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from scdrugmap._errors import InputError, InputTypeError
from scdrugmap.genes import (
    Genes,
    coverage,
    duplicates,
    packaged_table,
    read_table,
    resolve_genes,
    sum_columns,
)

HGNC = pd.DataFrame(
    {
        "symbol": ["SEPTIN2", "SEPTIN6", "CCN3", "PLXNA1", "TP53", "ZNRD2", "OLDGENE"],
        "status": ["Approved"] * 6 + ["Entry Withdrawn"],
        "alias_symbol": ["DIFF6", "SEPT2|KIAA0128", "IGFBP9", "NOV", "p53|LFS1", "p27", ""],
        "prev_symbol": ["SEPT2", "SEPT6", "NOVH", "", "", "SSSCA1", ""],
        "ensembl_gene_id": [f"ENSG0000000000{i}" for i in range(7)],
        "entrez_id": ["4735", "23157", "4856", "5361", "7157", "10534", "1"],
    }
)


def resolve(names, table=HGNC, **columns):
    genes = Genes.from_names(names, symbols=columns.get("symbols"), ensembl=columns.get("ensembl"))
    return resolve_genes(genes, read_table(table), entrez=columns.get("entrez"))


def test_each_way_to_a_symbol():
    got = resolve(["TP53", "ENSG00000000004.3", "SSSCA1", "IGFBP9", "7157", "XYZ1"])
    assert got.symbol.tolist() == ["TP53", "TP53", "ZNRD2", "CCN3", "TP53", "XYZ1"]
    assert got.status.tolist() == ["approved", "ensembl", "previous", "alias", "entrez", "unknown"]
    assert got.ensembl.tolist()[:5] == ["ENSG00000000004"] * 2 + [
        "ENSG00000000005",
        "ENSG00000000002",
        "ENSG00000000004",
    ]


def test_ambiguous_names_are_reported_and_kept():
    got = resolve(["SEPT2", "TP53"])
    assert got.status.tolist() == ["ambiguous", "approved"]
    assert got.symbol[0] == "SEPT2"
    assert got.ensembl[0] == ""
    assert set(got.candidates[0].split("|")) == {"SEPTIN2", "SEPTIN6"}


def test_an_ensembl_id_settles_an_ambiguous_name():
    got = resolve(["SEPT2"], ensembl=["ENSG00000000001"])
    assert (got.symbol[0], got.status[0]) == ("SEPTIN6", "ensembl")


def test_an_alias_beside_its_gene_means_something_else_but_a_previous_symbol_does_not():
    got = resolve(["IGFBP9", "CCN3", "SSSCA1", "ZNRD2"])
    assert got.status.tolist() == ["ambiguous", "approved", "previous", "approved"]
    assert got.symbol.tolist() == ["IGFBP9", "CCN3", "ZNRD2", "ZNRD2"]
    two_names = resolve(["p53", "LFS1"])
    assert two_names.status.tolist() == ["ambiguous", "ambiguous"]


def test_an_approved_symbol_is_never_read_as_an_alias():
    table = pd.DataFrame({"symbol": ["A1", "B1"], "alias_symbol": ["B1", ""]})
    assert resolve(["B1"], table).symbol.tolist() == ["B1"]


def test_withdrawn_symbols_are_not_approved():
    assert resolve(["OLDGENE"]).status.tolist() == ["unknown"]


def test_contradiction_is_marked_and_the_ensembl_id_decides():
    got = resolve(["TP53", "CCN3"], ensembl=["ENSG00000000002", "ENSG00000000002"])
    assert got.conflict.tolist() == [True, False]
    assert got.symbol.tolist() == ["CCN3", "CCN3"]


def test_symbol_with_several_ensembl_ids_gets_none():
    table = pd.DataFrame({"symbol": ["Y_RNA", "Y_RNA"], "ensembl_id": ["ENSG00000000011", "ENSG00000000012"]})
    assert resolve(["Y_RNA"], table).ensembl.tolist() == [""]
    assert resolve(["ENSG00000000012"], table).symbol.tolist() == ["Y_RNA"]


def test_entrez_that_leads_to_two_genes_is_not_followed():
    table = pd.DataFrame({"symbol": ["A1", "B1"], "entrez_id": ["5", "5"]})
    assert resolve(["5"], table).status.tolist() == ["unknown"]


def test_genes_of_another_species_stay_apart():
    got = resolve(["GRCh38_TP53", "mm10___TP53"])
    assert got.symbol.tolist()[0] == "TP53"
    names = np.array(["TP53", "Trp53"])
    assert resolve(names).status.tolist() == ["approved", "other species"]


def test_same_gene_same_column():
    genes = Genes.from_names(["SSSCA1", "TP53", "ZNRD2", "XYZ1", "SEPT2", "SEPTIN2"])
    got = resolve_genes(genes, read_table(HGNC))
    assert duplicates(got, genes.names).tolist() == [0, 1, 0, 2, 3, 4]


def test_packaged_table_is_sound():
    table = packaged_table()
    assert len(table) > 19_000
    assert table["ensembl_id"].is_unique
    assert table["ensembl_id"].str.fullmatch(r"ENSG\d{11}").all()
    assert table["entrez_id"].str.fullmatch(r"\d*").all()
    assert (table["symbol"] != "").all()
    table.loc[0, "symbol"] = "changed"
    assert packaged_table().loc[0, "symbol"] != "changed"


def test_formats_of_real_tables(shared):
    names = read_table(shared / "data" / "hgnc_symbol_alias_to_approved.tsv.gz")
    ensembl = read_table(shared / "data" / "gene_annotation_grch38_ensembl109.tsv.gz")
    both = read_table([shared / "data" / "hgnc_symbol_alias_to_approved.tsv.gz", ensembl.approved])
    assert len(names.aliases) > 50_000
    assert len(ensembl.approved) > 40_000
    assert not names.aliases["alias"].isin(names.approved["symbol"]).any()
    got = resolve_genes(Genes.from_names(["NOV", "AARS", "TP53", "SARS", "NCRNA00181", "ENSG00000141510.3"]), both)
    assert got.symbol.tolist()[1:3] == ["AARS1", "TP53"]
    assert got.symbol.tolist()[4:] == ["A1BG-AS1", "TP53"]
    assert got.status.tolist()[3] == "ambiguous"


def test_packaged_table_agrees_with_ensembl(shared):
    ensembl = read_table(shared / "data" / "gene_annotation_grch38_ensembl109.tsv.gz").approved
    known = ensembl.drop_duplicates("ensembl_id").set_index("ensembl_id")["symbol"]
    table = packaged_table()
    assert (known.loc[table["ensembl_id"]].to_numpy() == table["symbol"].to_numpy()).all()


def test_tables_from_files(tmp_path):
    for name, sep in (("a.tsv", "\t"), ("b.csv", ","), ("c.tsv.gz", "\t")):
        HGNC.to_csv(tmp_path / name, sep=sep, index=False)
        table = read_table(tmp_path / name)
        assert resolve_genes(Genes.from_names(["SSSCA1"]), table).symbol.tolist() == ["ZNRD2"]
        assert table.source == name


@pytest.mark.parametrize(
    ("table", "error"),
    [
        ("/no/such/file.tsv", InputError),
        (pd.DataFrame({"x": [1]}), InputError),
        ([], InputError),
        (42, InputTypeError),
    ],
)
def test_bad_tables(table, error):
    with pytest.raises(error) as caught:
        read_table(table)
    assert caught.value.argument == "table"


@given(st.data())
def test_sum_columns_against_numpy(data):
    n_genes = data.draw(st.integers(1, 8))
    values = np.array(
        data.draw(st.lists(st.lists(st.integers(0, 5), min_size=n_genes, max_size=n_genes), min_size=1, max_size=5))
    )
    target = pd.factorize(np.array(data.draw(st.lists(st.integers(0, 4), min_size=n_genes, max_size=n_genes))))[0]
    expected = np.zeros((len(values), target.max() + 1), dtype=values.dtype)
    for j, t in enumerate(target):
        expected[:, t] += values[:, j]
    assert np.array_equal(sum_columns(values, target), expected)
    for form in ("csr", "csc"):
        X = sparse.csr_matrix(values.astype(np.float32)).asformat(form)
        before = X.copy()
        got = sum_columns(X, target)
        assert got.format == form
        assert got.dtype == np.float32
        assert np.array_equal(got.toarray(), expected)
        assert (before != X).nnz == 0


def test_coverage_counts_distinct_names():
    got = coverage(np.array(["A", "B", "B", "", "C"]), {"A": 0, "B": 1, "D": 2, "<pad>": 3}, np.array([1, 2, 3, 4, 10]))
    assert (got.n_vocabulary, got.n_genes, got.n_found) == (3, 4, 2)
    assert got.of_vocabulary == pytest.approx(2 / 3)
    assert got.of_genes == pytest.approx(0.5)
    assert got.of_counts == pytest.approx(6 / 20)
    assert np.isnan(coverage(np.array(["A"]), {"A"}).of_counts)
    assert coverage(np.array([], dtype=str), {}).of_genes == 0
