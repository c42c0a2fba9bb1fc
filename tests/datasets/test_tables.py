"""Tables as people upload them: labels and annotation among the genes, other separators, encodings, headers, cut-off files."""

from __future__ import annotations

import bz2
import gzip
import lzma
import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import io, sparse

import scdrugmap as sd
from scdrugmap._errors import InputError, ScDrugMapWarning
from scdrugmap.datasets import loaders
from scdrugmap.datasets.loaders import _roles
from scdrugmap.genes import packaged_table

GENES = ["ACTB", "B2M", "GAPDH", "TP53", "EGFR", "VIM", "MYC", "FTH1"]
IDS = [f"ENSG{i:011d}" for i in range(8)]
CELLS = [f"c{i}" for i in range(12)]


@pytest.fixture
def counts():
    return np.random.default_rng(0).poisson(3, (12, 8))


def quiet(function, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScDrugMapWarning)
        return function(*args, **options)


def write(path, heads, rows, separator="\t", encoding="utf-8", end="\n"):
    lines = [heads, *rows]
    path.write_bytes((end.join(separator.join(map(str, line)) for line in lines) + end).encode(encoding))
    return path


COLUMNS = {
    "response": np.arange(12) % 2, "Response": np.arange(12) % 2, "LABEL": np.arange(12) % 2,
    "drug_response": np.arange(12) % 2, "IC50": np.linspace(0.1, 3, 12), "cluster": np.arange(12) % 3,
    "percent.mt": np.linspace(0, 9, 12), "age": np.arange(40, 52), "y_binary": np.arange(12) % 2,
    "total_counts": None, "SCORE_OF_MINE": np.linspace(-1, 1, 12), "CTRL2": np.arange(12) % 2,
}  # fmt: skip


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("place", [0, 8])
def test_annotation_of_cells_is_no_gene(tmp_path, counts, name, place):
    if name == "CTRL2" and place:
        pytest.skip("behind the genes a name in capitals may be a gene that the table does not know")
    values = counts.sum(1) if COLUMNS[name] is None else COLUMNS[name]
    table = pd.DataFrame(counts, index=CELLS, columns=GENES)
    table.insert(place, name, values)
    table.to_csv(tmp_path / "a.tsv", sep="\t", index_label="cell")
    with pytest.warns(ScDrugMapWarning, match=f"no genes and go to obs: '{name}'"):
        adata = sd.datasets.load(tmp_path / "a.tsv")
    assert list(adata.var_names) == GENES and np.array_equal(adata.X.toarray(), counts)
    column = "source_response" if name == "response" else name
    assert np.allclose(adata.obs[column].astype(float), values)
    assert adata.uns["provenance"]["values"] == "counts"


def test_numeric_response_is_found_and_asked_about(tmp_path, counts):
    table = pd.DataFrame(counts, index=CELLS, columns=GENES)
    table.insert(0, "response", np.arange(12) % 2)
    table.to_csv(tmp_path / "a.tsv", sep="\t", index_label="cell")
    with pytest.warns(
        ScDrugMapWarning, match=r"harmonize_response\(adata, 'source_response', mapping=\{'0': '...', '1': '...'\}"
    ):
        adata = loaders.read_text(tmp_path / "a.tsv", response="response")
    assert adata.obs["response"].isna().all()
    quiet(sd.pp.harmonize_response, adata, "source_response", {"0": "resistant", "1": "sensitive"})
    assert adata.obs["response"].tolist() == ["resistant", "sensitive"] * 6


def test_annotation_and_tallies_of_a_table_of_genes(tmp_path, counts):
    table = pd.DataFrame(counts.T, index=GENES, columns=CELLS)
    table.insert(0, "Length", np.arange(1000, 1008))
    table.insert(0, "Chr", [1, 2, 3, 4, 5, 6, 7, 8])
    table.loc["Total"] = [0, 0, *counts.sum(1)]
    table.loc["response"] = [0, 0, *(np.arange(12) % 2)]
    table.loc["__no_feature"] = [0, 0, *np.full(12, 500)]
    table.astype(int).to_csv(tmp_path / "a.tsv", sep="\t", index_label="gene")
    adata = quiet(loaders.read_text, tmp_path / "a.tsv", orientation="genes x cells")
    assert list(adata.obs_names) == CELLS and list(adata.var_names) == [*GENES, "__no_feature"]
    assert np.array_equal(adata[:, GENES].X.toarray(), counts)
    assert adata.var["Length"].tolist()[:2] == [1000, 1001]
    assert adata.obs["source_response"].tolist() == [0, 1] * 6


def test_rows_that_add_up_the_cells_are_left_out(tmp_path, counts):
    table = pd.DataFrame(counts, index=CELLS, columns=GENES)
    table.loc["Total"] = counts.sum(0)
    table.to_csv(tmp_path / "a.csv", index_label="cell")
    with pytest.warns(ScDrugMapWarning, match="add up others and are left out: 'Total'"):
        adata = sd.datasets.load(tmp_path / "a.csv")
    assert list(adata.obs_names) == CELLS


def test_no_gene_of_the_table_is_taken_for_annotation():
    names = packaged_table()["symbol"].tolist()
    assert not _roles.not_genes(names).any()
    assert not _roles.not_genes([*names[:50], "7SK", "snoU13", "uc_338", "AC012345.1", *names[50:100]]).any()


@pytest.mark.parametrize("column", ["protein_coding", "chr1", "description"])
@pytest.mark.parametrize("first", [True, False])
def test_roles_of_text_columns(tmp_path, counts, column, first):
    other = [f"gene number {i}" for i in range(8)] if column == "description" else [column] * 8
    texts = {"id": IDS, "other": other, "name": GENES} if first else {"name": GENES, "id": IDS, "other": other}
    table = pd.concat([pd.DataFrame(texts), pd.DataFrame(counts.T, columns=CELLS)], axis=1)
    table.to_csv(tmp_path / "a.tsv", sep="\t", index=False)
    var = quiet(loaders.read_text, tmp_path / "a.tsv", orientation="genes x cells").var
    assert var["gene_symbol"].tolist() == GENES and var["ensembl_id"].tolist() == IDS
    assert var["other"].tolist() == other


@pytest.mark.parametrize("separator", ["\t", ",", ";", "|", " "])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_separator_encoding_and_line_ends(tmp_path, separator, encoding, end):
    cells = [f"Tag{x}µ{i}" for i, x in enumerate((" 7", ";8", ",9"))]
    cells = [c.replace(separator, "_") for c in cells]
    if separator == " ":
        cells = [c.replace(";", "").replace(",", "") for c in cells]
    rows = [[g, i, 2, 0] for i, g in enumerate(GENES)]
    write(tmp_path / "a.txt", ["gene", *cells], rows, separator, encoding, end)
    adata = quiet(loaders.read_text, tmp_path / "a.txt", orientation="genes x cells")
    assert list(adata.obs_names) == cells and adata.X.toarray()[0].tolist() == list(range(8))


def test_lines_above_the_header(tmp_path):
    path = write(tmp_path / "a.tsv", ["gene", "c1", "c2"], [[g, 1, 2] for g in GENES])
    path.write_text("# made by a tool\nSeries GSE1\n" + path.read_text())
    assert list(quiet(loaders.read_text, path, orientation="genes x cells").obs_names) == ["c1", "c2"]
    path.write_text(path.read_text().replace("VIM\t1", "VIM\tx"))
    with pytest.raises(InputError, match="line 9"):
        loaders.read_text(path, orientation="genes x cells")


@pytest.mark.parametrize(("opener", "end"), [(gzip, "gz"), (bz2, "bz2"), (lzma, "xz")])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.98])
def test_cut_off_text_files(tmp_path, opener, end, share):
    text = "gene," + ",".join(f"c{i}" for i in range(60)) + "\n"
    rng = np.random.default_rng(0)
    text += "".join(f"G{i}," + ",".join(map(str, rng.integers(0, 99, 60))) + "\n" for i in range(300))
    packed = opener.compress(text.encode())
    path = tmp_path / f"a.csv.{end}"
    path.write_bytes(packed[: int(len(packed) * share)])
    with pytest.raises(InputError, match=r"(?s)cut off.*Fix: fetch it again|a header and at least one row"):
        quiet(loaders.read_text, path, orientation="genes x cells")


def triplet(folder, counts, prefix="", header=(), turned=False, order=("id", "name")):
    folder.mkdir(exist_ok=True)
    io.mmwrite(folder / f"{prefix}matrix.mtx", sparse.coo_matrix(counts if turned else counts.T))
    columns = {"id": IDS, "name": GENES, "type": ["Gene Expression"] * 8}
    lines = ["\t".join(row) for row in zip(*(columns[c] for c in order), strict=True)]
    head = {"features": "\t".join(f"gene_{c}" for c in order), "barcodes": "barcode"}
    for name, content in (("features", lines), ("barcodes", CELLS)):
        text = "\n".join([*([head[name]] if name in header else []), *content]) + "\n"
        (folder / f"{prefix}{name}.tsv").write_text(text)
    return folder


@pytest.mark.parametrize("header", [(), ("features",), ("barcodes",), ("features", "barcodes")])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("order", [("id", "name"), ("name", "id"), ("id", "type", "name"), ("name",)])
def test_triplets_as_people_write_them(tmp_path, counts, header, turned, order):
    adata = quiet(sd.datasets.load, triplet(tmp_path / "a", counts, header=header, turned=turned, order=order))
    assert list(adata.obs_names) == CELLS and list(adata.var_names) == GENES
    assert np.array_equal(adata.X.toarray(), counts)
    assert "id" not in order or adata.var["ensembl_id"].tolist() == IDS


def test_a_line_too_many_that_is_no_header(tmp_path, counts):
    folder = triplet(tmp_path / "a", counts)
    (folder / "barcodes.tsv").write_text("\n".join([*CELLS, "c12"]) + "\n")
    with pytest.raises(InputError, match="header"):
        sd.datasets.load(folder)


def test_one_list_of_genes_for_several_matrices(tmp_path, counts):
    for prefix in ("GSM1_a_", "GSM2_b_"):
        triplet(tmp_path / "g", counts, prefix)
    (tmp_path / "g" / "GSM1_a_features.tsv").unlink()
    (tmp_path / "g" / "GSM2_b_features.tsv").rename(tmp_path / "g" / "GSE1_features.tsv")
    adata = quiet(sd.datasets.load, tmp_path / "g")
    assert adata.shape == (24, 8) and np.array_equal(adata.X.toarray(), np.vstack([counts, counts]))
    (tmp_path / "g" / "GSE2_features.tsv").write_text("x\n")
    with pytest.raises(InputError, match="features="):
        loaders.read_10x_mtx(tmp_path / "g", prefix="GSM1_a_")
    named = quiet(loaders.read_10x_mtx, tmp_path / "g", prefix="GSM1_a_", features="GSE1_features.tsv")
    assert list(named.var_names) == GENES


@pytest.mark.parametrize("bad", ["matrix.mtx", "matrix.mtx.gz", "features.tsv.gz"])
def test_one_bad_file_does_not_fail_the_others(tmp_path, counts, bad):
    for prefix in ("GSM1_a_", "GSM2_b_"):
        triplet(tmp_path / "g", counts, prefix)
    path = tmp_path / "g" / f"GSM1_a_{bad.removesuffix('.gz')}"
    content = path.read_bytes()
    path.unlink()
    content = gzip.compress(content) if bad.endswith(".gz") else content
    (tmp_path / "g" / f"GSM1_a_{bad}").write_bytes(content[: len(content) // 2])
    with pytest.warns(ScDrugMapWarning, match=r"(?s)1 files hold no matrix.*GSM1_a_matrix"):
        adata = sd.datasets.load(tmp_path / "g")
    assert set(adata.obs["sample"]) == {"GSM2"}
    for name in ("matrix.mtx", "features.tsv", "barcodes.tsv"):
        (tmp_path / "g" / f"GSM2_b_{name}").unlink()
    with pytest.raises(InputError, match="fetch it again"):
        sd.datasets.load(tmp_path / "g")


def test_several_genomes_want_a_choice(tmp_path, counts):
    for genome in ("GRCh38", "mm10"):
        triplet(tmp_path / genome, counts)
    with pytest.raises(InputError, match=r"load\(.*GRCh38"):
        sd.datasets.load(tmp_path)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for genome in ("GRCh38", "mm10"):
            group = file.create_group(genome)
            matrix = sparse.csc_matrix(counts.T)
            for name, values in (
                ("data", matrix.data), ("indices", matrix.indices), ("indptr", matrix.indptr),
                ("shape", matrix.shape), ("genes", np.array(IDS, "S")), ("gene_names", np.array(GENES, "S")),
                ("barcodes", np.array(CELLS, "S")),
            ):  # fmt: skip
                group[name] = values
    with pytest.raises(InputError, match="genome='GRCh38'"):
        sd.datasets.load(tmp_path / "a.h5")
    adata = quiet(sd.datasets.load, tmp_path / "a.h5", genome="mm10")
    assert np.array_equal(adata.X.toarray(), counts)


def test_labels_of_a_file_are_kept_where_they_are_not_read(tmp_path, counts):
    obs = pd.DataFrame({"response": ["R", "S"] * 6}, index=CELLS)
    ad.AnnData(counts.astype(np.float32), obs=obs, var=pd.DataFrame(index=GENES)).write_h5ad(tmp_path / "a.h5ad")
    with pytest.warns(ScDrugMapWarning, match="source_response"):
        adata = sd.datasets.load(tmp_path / "a.h5ad")
    assert adata.obs["source_response"].tolist() == ["R", "S"] * 6 and adata.obs["response"].isna().all()
    sd.pp.harmonize_response(adata, "source_response")
    assert adata.obs["response"].tolist() == ["resistant", "sensitive"] * 6
