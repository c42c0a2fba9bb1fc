import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scdrugmap.genes import Genes, as_text, classify, recognise, species_of, strip_genome, strip_version


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("TP53", "symbol"),
        ("HLA-DRA", "symbol"),
        ("C1orf112", "symbol"),
        ("7SK", "symbol"),
        ("5_8S_rRNA", "symbol"),
        ("RP11-206L10.9", "symbol"),
        ("ENSG00000141510", "ensembl"),
        ("ENSG00000141510.18", "ensembl"),
        ("ENSG00000182378.15_PAR_Y", "ensembl"),
        ("ENSMUSG00000059552", "ensembl"),
        ("GRCh38_ENSG00000141510", "ensembl"),
        ("ENST00000269305", "symbol"),
        ("ENSG0000014151", "symbol"),
        ("7157", "entrez"),
        ("", "unknown"),
        ("--", "unknown"),
    ],
)
def test_kind_of_a_name(name, kind):
    assert classify([name]).tolist() == [kind]


@pytest.mark.parametrize(
    ("name", "species"),
    [
        ("TP53", "human"),
        ("C1orf112", "human"),
        ("MT-CO1", "human"),
        ("HLA-DRB1", "human"),
        ("Trp53", "mouse or rat"),
        ("mt-Co1", "mouse or rat"),
        ("Gm12345", "mouse or rat"),
        ("1700001P01Rik", "mouse or rat"),
        ("tp53", "zebrafish"),
        ("ENSG00000141510.18", "human"),
        ("ENSMUSG00000059552", "mouse"),
        ("ENSRNOG00000010756", "rat"),
        ("ENSDARG00000035559", "zebrafish"),
        ("FBgn0039044", "fruit fly"),
        ("mm10___Trp53", "mouse"),
        ("GRCh38_TP53", "human"),
        ("7157", "unknown"),
        ("", "unknown"),
    ],
)
def test_species_of_a_name(name, species):
    assert species_of([name]).tolist() == [species]


def test_versions_and_genome_prefixes_go_and_nothing_else():
    names = ["ENSG00000141510.18", "ENSG00000182378.15_PAR_Y", "RP11-206L10.9", "GRCh38_ENSG00000141510.2", "A.1"]
    assert strip_version(names).tolist() == [
        "ENSG00000141510",
        "ENSG00000182378",
        "RP11-206L10.9",
        "ENSG00000141510",
        "A.1",
    ]
    assert strip_genome(["GRCh38_TP53", "mm10___Trp53", "hg19_A"]).tolist() == ["TP53", "Trp53", "A"]


@given(st.integers(0, 10**11 - 1), st.integers(1, 99))
def test_every_version_is_stripped(number, version):
    bare = f"ENSG{number:011d}"
    assert strip_version([f"{bare}.{version}"]).tolist() == [bare]
    assert strip_version([bare]).tolist() == [bare]


@given(st.lists(st.text(max_size=12), max_size=20))
@settings(deadline=None)
def test_any_text_is_classified(names):
    kinds = classify(names)
    assert len(kinds) == len(species_of(names)) == len(names)
    assert set(kinds) <= {"symbol", "ensembl", "entrez", "unknown"}
    assert len(Genes.from_names(names)) == len(names)


def test_majority_decides_and_row_numbers_are_no_genes():
    assert recognise(["TP53", "EGFR", "ENSG00000141510"]).kind == "symbol"
    assert recognise(["7157", "1956", "3845"]).kind == "entrez"
    assert recognise([str(i) for i in range(50)]).kind == "unknown"
    assert recognise([]).kind == "unknown"
    mouse = recognise(["ENSMUSG00000059552", "ENSMUSG00000020122"])
    assert (mouse.kind, mouse.species, mouse.share, mouse.species_share) == ("ensembl", "mouse", 1.0, 1.0)


def test_as_text_of_every_column_type():
    assert as_text(pd.Categorical(["a", None, "b"])).tolist() == ["a", "", "b"]
    assert as_text(pd.Series([7157.0, np.nan])).tolist() == ["7157", ""]
    assert as_text([7157, "x ", None]).tolist() == ["7157", "x", ""]
    assert as_text([]).tolist() == []


def test_genes_take_explicit_identifiers_first():
    genes = Genes.from_names(
        ["A", "ENSG00000000003.14", "B"], symbols=["X", "TSPAN6", ""], ensembl=["", None, "ENSG00000000005.1"]
    )
    assert genes.symbols.tolist() == ["X", "TSPAN6", "B"]
    assert genes.ensembl.tolist() == ["", "ENSG00000000003", "ENSG00000000005"]
    assert genes.names.tolist() == ["A", "ENSG00000000003.14", "B"]


def test_ensembl_ids_in_a_symbol_column_are_not_symbols():
    genes = Genes.from_names(["ENSG00000000003"], symbols=["ENSG00000000003"])
    assert genes.symbols.tolist() == [""]


def test_genes_refuse_uneven_columns():
    with pytest.raises(ValueError, match="one entry per gene"):
        Genes(np.array(["a"]), np.array([]), np.array(["b"]))
