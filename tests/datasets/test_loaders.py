"""Every loader against files that the tests write, with dense NumPy as the oracle."""

from __future__ import annotations

import gzip
import io
import sys
import tarfile
import types
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.io import mmwrite

from scdrugmap._errors import InputError, MissingDependencyError, ScDrugMapWarning
from scdrugmap.datasets import loaders
from scdrugmap.datasets.loaders import _parse, _store, _tidy

COLUMNS = ["response", "sample", "patient", "study", "drug", "tissue", "cancer_type", "time_point"]
GENES = ["ACTB", "GAPDH", "B2M", "TP53", "HLA-DRA", "MT-CO1", "RPL3"]
pytestmark = pytest.mark.filterwarnings("ignore::scdrugmap._errors.ScDrugMapWarning")


@pytest.fixture
def counts() -> np.ndarray:
    return np.random.default_rng(0).poisson(0.8, (11, len(GENES))).astype(np.float32)


def cells(n: int) -> list[str]:
    rng = np.random.default_rng(1)
    return ["".join(rng.choice(list("ACGT"), 12)) + f"-{i}" for i in range(n)]


def check_tidy(adata: ad.AnnData, dense: np.ndarray) -> None:
    assert sparse.isspmatrix_csr(adata.X) or isinstance(adata.X, sparse.csr_array)
    assert adata.X.dtype == np.float32
    np.testing.assert_array_equal(adata.X.toarray(), dense)
    assert set(COLUMNS) <= set(adata.obs)
    assert adata.obs["response"].cat.categories.tolist() == ["resistant", "sensitive"]
    assert adata.obs_names.is_unique and adata.var_names.is_unique
    record = adata.uns["provenance"]
    assert record["values"] == "counts" and record["reader"] and record["scdrugmap"]


def published(path: Path, dense: np.ndarray, *, conditions=None, opener=open) -> list[str]:
    conditions = conditions or [f"GSE1_{'sensitive' if i % 3 else 'resistant'}_day{i}" for i in range(len(dense))]
    lines = ["\t".join(f'"{h}"' for h in ["Cell_barcode", "Condition", *GENES])]
    lines += [
        "\t".join([b, c, *map(str, map(int, row))])
        for b, c, row in zip(cells(len(dense)), conditions, dense, strict=True)
    ]
    with opener(path, "wt") as out:
        out.write("\n".join(lines) + "\n")
    return conditions


@pytest.mark.parametrize("opener", [open, gzip.open])
def test_published_matrix(tmp_path, counts, opener):
    path = tmp_path / "GSE140440_mal_countsMatrix.csv"
    conditions = published(path, counts, opener=opener)
    adata = loaders.read_published(path, facts={"drug": "docetaxel"})
    check_tidy(adata, counts)
    assert adata.var_names.tolist() == GENES == adata.var["gene_symbol"].tolist()
    assert adata.obs["response"].tolist() == ["sensitive" if "sensitive" in c else "resistant" for c in conditions]
    assert adata.obs["Condition"].tolist() == conditions
    assert set(adata.obs["study"]) == {"GSE140440"} and set(adata.obs["drug"]) == {"docetaxel"}
    assert adata.obs_names.tolist() == cells(11)


def test_published_matrix_with_another_state(tmp_path, counts):
    path = tmp_path / "x.csv"
    published(path, counts, conditions=["persister", "sensitive or resistant", *["resistant"] * 9])
    with pytest.warns(ScDrugMapWarning, match=r"'persister', 'sensitive or resistant'.*harmonize_response"):
        adata = loaders.read_published(path)
    assert adata.obs["response"].isna().tolist() == [True, True, *[False] * 9]


def test_published_matrix_is_recognised(tmp_path, counts):
    published(tmp_path / "x.csv", counts)
    assert loaders.load(tmp_path / "x.csv").obs["response"].notna().all()


@pytest.mark.parametrize("separator", ["\t", ",", ";"])
@pytest.mark.parametrize("corner", [True, False])
@pytest.mark.parametrize("turned", [True, False])
def test_text_matrix_either_way_round(tmp_path, counts, separator, corner, turned):
    rows, columns, dense = (GENES, cells(11), counts.T) if turned else (cells(11), GENES, counts)
    head = (["id"] if corner else []) + columns
    lines = [separator.join(head)] + [
        separator.join([r, *(f"{v:g}" for v in x)]) for r, x in zip(rows, dense, strict=True)
    ]
    (tmp_path / "m.txt").write_text("\r\n".join(lines))
    adata = loaders.load(tmp_path / "m.txt")
    check_tidy(adata, counts)
    assert adata.var_names.tolist() == GENES and adata.obs_names.tolist() == cells(11)
    assert adata.obs["response"].isna().all()


def test_unlabelled_matrix_says_what_to_do(tmp_path, counts):
    (tmp_path / "m.tsv").write_text("g\tc1\tc2\nACTB\t1\t0\nGAPDH\t0\t2\nB2M\t3\t3\n")
    with pytest.warns(ScDrugMapWarning, match="harmonize_response"):
        loaders.read_text(tmp_path / "m.tsv")


def test_identifier_and_symbol_columns(tmp_path):
    (tmp_path / "m.tsv").write_text(
        "id\tsymbol\tc1\tc2\nENSG00000075624.17\tACTB\t1\t0\nENSG00000111640\tGAPDH\t0\t2\n"
    )
    adata = loaders.read_text(tmp_path / "m.tsv")
    assert adata.var["ensembl_id"].tolist() == ["ENSG00000075624", "ENSG00000111640"]
    assert adata.var["gene_symbol"].tolist() == ["ACTB", "GAPDH"]
    np.testing.assert_array_equal(adata.X.toarray(), [[1, 0], [0, 2]])


def test_orientation_that_cannot_be_told(tmp_path):
    (tmp_path / "m.tsv").write_text("x\ta\tb\nc\t1\t0\nd\t0\t2\n")
    with pytest.raises(InputError, match="orientation="):
        loaders.read_text(tmp_path / "m.tsv")
    assert loaders.read_text(tmp_path / "m.tsv", orientation="genes x cells").obs_names.tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("GAPDH\t1", "2 fields in line 3"),
        ("GAPDH\tNA\t1", "'NA' in line 3"),
        ("GAPDH\t\t1", "'' in line 3"),
        ("GAPDH\tnan\t1", "'nan' in line 3"),
    ],
)
def test_damaged_rows_are_named(tmp_path, line, found):
    (tmp_path / "m.tsv").write_text(f"g\tc1\tc2\nACTB\t1\t0\n{line}\nB2M\t3\t3\n")
    with pytest.raises(InputError, match=found):
        loaders.read_text(tmp_path / "m.tsv", orientation="genes x cells")
    assert [p.name for p in tmp_path.iterdir()] == ["m.tsv"]


def test_values_that_are_not_counts_are_told(tmp_path):
    (tmp_path / "m.tsv").write_text("g\tc1\tc2\nACTB\t1.5\t0\nGAPDH\t1e2\t-2\nB2M\t3\t+3\n")
    with pytest.warns(ScDrugMapWarning, match="not counts"):
        adata = loaders.read_text(tmp_path / "m.tsv", orientation="genes x cells")
    np.testing.assert_array_equal(adata.X.toarray(), [[1.5, 100, 3], [0, -2, 3]])
    assert adata.uns["provenance"]["values"] == "not counts"


def test_repeated_names(tmp_path):
    (tmp_path / "m.tsv").write_text("g\tc1\tc1\nACTB\t1\t0\nACTB\t0\t2\n")
    adata = loaders.read_text(tmp_path / "m.tsv", orientation="genes x cells")
    assert adata.obs_names.is_unique and adata.var_names.is_unique
    assert adata.var["gene_symbol"].tolist() == ["ACTB", "ACTB"]


def test_small_blocks_give_the_same(tmp_path, counts, monkeypatch):
    path = tmp_path / "x.csv"
    published(path, counts)
    whole = loaders.read_published(path)
    monkeypatch.setattr(_parse, "BLOCK", 64)
    layout = _parse.sniff(path)
    pieces = list(_parse.blocks(path, layout, 64))
    assert len(pieces) > 3
    np.testing.assert_array_equal(sparse.vstack([p.values for p in pieces]).toarray(), whole.X.toarray())


def test_converted_file_is_kept_and_backed(tmp_path, counts):
    published(tmp_path / "x.csv", counts)
    adata = loaders.read_published(tmp_path / "x.csv", out=tmp_path / "out" / "x.h5ad", backed=True)
    assert adata.isbacked
    check_tidy(ad.read_h5ad(tmp_path / "out" / "x.h5ad"), counts)
    with pytest.raises(InputError, match="out"):
        loaders.read_published(tmp_path / "x.csv", backed=True)


field = st.one_of(
    st.integers(0, 10**6).map(str),
    st.floats(-1e6, 1e6, width=32).map(repr),
    st.sampled_from(["0", "00", "0.0", "1e3", "-0", "+7", "999999999999999", "1234567890123456789"]),
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), rows=st.integers(1, 6), columns=st.integers(1, 5), quote=st.booleans(), size=st.integers(8, 80))
def test_parser_agrees_with_pandas(tmp_path, data, rows, columns, quote, size):
    texts = [[data.draw(field) for _ in range(columns)] for _ in range(rows)]
    names = [f'"row, {i}"' if quote else f"row{i}" for i in range(rows)]
    content = "\n".join(
        [
            ",".join(["", *(f"c{j}" for j in range(columns))]),
            *(",".join([n, *t]) for n, t in zip(names, texts, strict=True)),
        ]
    )
    path = tmp_path / "h.csv"
    path.write_text(content)
    layout = _parse.sniff(path, 1)
    got = list(_parse.blocks(path, layout, size))
    frame = pd.read_csv(io.StringIO(content), index_col=0)
    np.testing.assert_allclose(sparse.vstack([b.values for b in got]).toarray(), frame.to_numpy(np.float64), rtol=1e-6)
    assert [label for b in got for (label,) in b.labels] == frame.index.tolist()


@pytest.mark.parametrize("bucket", [1, 3, 100])
def test_transposition_on_disk(tmp_path, monkeypatch, bucket):
    monkeypatch.setattr(_store, "BUCKET", bucket)
    matrix = sparse.random(23, 17, 0.3, "csr", random_state=0, dtype=np.float32)
    turned = list(_store.transposed((matrix[i : i + 5] for i in range(0, 23, 5)), 17, tmp_path))
    np.testing.assert_array_equal(sparse.vstack(turned).toarray(), matrix.T.toarray())
    assert not list(tmp_path.iterdir())


def triplet(folder: Path, prefix: str, dense: np.ndarray, *, packed: bool = True, features: str = "features") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    out = io.BytesIO()
    mmwrite(out, sparse.coo_matrix(dense.T.astype(int)))
    genes = "".join(f"ENSG{i:011d}\t{g}\tGene Expression\n" for i, g in enumerate(GENES))
    parts = {
        "matrix.mtx": out.getvalue(),
        "barcodes.tsv": "".join(f"{c}\n" for c in cells(len(dense))).encode(),
        f"{features}.tsv": genes.encode(),
    }
    for name, content in parts.items():
        (folder / f"{prefix}{name}{'.gz' if packed else ''}").write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("features", ["features", "genes"])
def test_10x_triplet(tmp_path, counts, packed, features):
    triplet(tmp_path, "", counts, packed=packed, features=features)
    adata = loaders.load(tmp_path)
    check_tidy(adata, counts)
    assert adata.var["gene_symbol"].tolist() == GENES
    assert adata.var["ensembl_id"].iloc[1] == "ENSG00000000001"


def test_10x_triplet_of_different_samples(tmp_path, counts):
    triplet(tmp_path, "", counts)
    (tmp_path / "barcodes.tsv.gz").write_bytes(gzip.compress(b"AAAC\n"))
    with pytest.raises(InputError, match="1 barcodes"):
        loaders.read_10x_mtx(tmp_path)
    with pytest.raises(InputError, match=r"GSM1_matrix\.mtx"):
        loaders.read_10x_mtx(tmp_path, prefix="GSM1_")


def test_10x_triplet_keeps_gene_expression_only(tmp_path, counts):
    triplet(tmp_path, "", counts, packed=False)
    text = (tmp_path / "features.tsv").read_text().splitlines()
    text[3] = text[3].replace("Gene Expression", "Antibody Capture")
    (tmp_path / "features.tsv").write_text("\n".join(text) + "\n")
    check_tidy(loaders.load(tmp_path), np.delete(counts, 3, axis=1))


def test_10x_h5(tmp_path, counts):
    matrix = sparse.csc_matrix(counts.T.astype(np.int32))
    with h5py.File(tmp_path / "GSM1_filtered.h5", "w") as f:
        group = f.create_group("matrix")
        group["data"], group["indices"], group["indptr"] = matrix.data, matrix.indices, matrix.indptr
        group["shape"], group["barcodes"] = matrix.shape, np.array(cells(11), "S")
        features = group.create_group("features")
        features["id"] = np.array([f"ENSG{i:011d}" for i in range(len(GENES))], "S")
        features["name"] = np.array(GENES, "S")
        features["feature_type"] = np.array(["Gene Expression"] * len(GENES), "S")
        features["genome"] = np.array(["GRCh38"] * len(GENES), "S")
    check_tidy(loaders.load(tmp_path / "GSM1_filtered.h5"), counts)
    (tmp_path / "bad.h5").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="a 10x h5 file"):
        loaders.load(tmp_path / "bad.h5")


def bundle(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_raw_tar_with_samples_of_each_kind(tmp_path, counts):
    triplet(tmp_path / "x", "GSM1_parental_", counts)
    files = {p.name: p.read_bytes() for p in (tmp_path / "x").iterdir()}
    table = pd.DataFrame(counts.T[:5], GENES[:5], cells(11)).astype(int)
    files["GSM2_resistant.counts.txt.gz"] = gzip.compress(table.to_csv(sep="\t").encode())
    files["GSM2_metadata.txt"] = b"cell\tage\nA\t3\n"
    files["GSM3_readme.txt"] = b"a text\nnot a matrix\n"
    bundle(tmp_path / "GSE7_RAW.tar", files)
    with pytest.warns(ScDrugMapWarning) as said:
        adata = loaders.load(tmp_path / "GSE7_RAW.tar")
    check_tidy(adata, np.vstack([counts, np.hstack([counts[:, :5], np.zeros((11, 2))])]))
    assert adata.obs["sample"].tolist() == ["GSM1"] * 11 + ["GSM2"] * 11
    assert adata.obs["sample_title"].drop_duplicates().tolist() == ["parental", "resistant"]
    assert adata.obs["response"].isna().all(), "a file name is not a label"
    assert set(adata.obs["study"]) == {"GSE7"}
    texts = [str(w.message) for w in said]
    assert any("GSM3_readme.txt" in t for t in texts) and any("harmonize_response" in t for t in texts)


def test_raw_tar_without_matrices(tmp_path):
    bundle(tmp_path / "GSE7_RAW.tar", {"GSM1.cel": b"1"})
    with pytest.raises(InputError, match="matrix"):
        loaders.load(tmp_path / "GSE7_RAW.tar")


def test_folder_of_a_whole_series_does_not_invent_samples(tmp_path, counts):
    triplet(tmp_path / "s", "GSE111014_", counts)
    adata = loaders.load(tmp_path / "s")
    check_tidy(adata, counts)
    assert adata.obs["sample"].isna().all() and set(adata.obs["study"]) == {"GSE111014"}


def test_h5ad_of_another_collection(tmp_path, counts):
    obs = pd.DataFrame({"perturbation": "erlotinib", "disease": "lung cancer", "batch": "1"}, index=cells(11))
    source = ad.AnnData(np.log1p(counts), obs=obs, var=pd.DataFrame({"n": 1}, index=GENES), layers={"counts": counts})
    source.obsm["X_pca"] = np.ones((11, 2))
    source.uns["provenance"] = {"origin": "elsewhere"}
    source.write_h5ad(tmp_path / "a.h5ad")
    adata = loaders.load(tmp_path / "a.h5ad")
    check_tidy(adata, counts)
    assert set(adata.obs["drug"]) == {"erlotinib"} and set(adata.obs["cancer_type"]) == {"lung cancer"}
    assert set(adata.obs["study"]) == {"a"} and "X_pca" in adata.obsm and "n" in adata.var
    assert adata.uns["provenance"]["of_the_file"] == {"origin": "elsewhere"}
    with pytest.raises(InputError, match="perturbation"):
        loaders.load(tmp_path / "a.h5ad", response="outcome")


def test_h5ad_with_labels(tmp_path, counts):
    source = ad.AnnData(
        counts,
        obs=pd.DataFrame({"response": ["sensitive", "resistant", "unknown"] + ["sensitive"] * 8}, index=cells(11)),
        var=pd.DataFrame(index=GENES),
    )
    source.write_h5ad(tmp_path / "a.h5ad")
    with pytest.warns(ScDrugMapWarning, match="'unknown'"):
        adata = loaders.load(tmp_path / "a.h5ad")
    assert adata.obs["response"].tolist()[:2] == ["sensitive", "resistant"] and adata.obs["response"].isna().sum() == 1


def test_real_studies(shared):
    for path in sorted((shared / "data").glob("*.h5ad")):
        source = ad.read_h5ad(path)
        if source.n_vars == 0:
            continue
        adata = loaders.load(path)
        assert adata.uns["provenance"]["values"] == "counts", path.name
        assert set(COLUMNS) <= set(adata.obs)
        if "response" in source.obs:
            for label in ("sensitive", "resistant"):
                assert (adata.obs["response"] == label).sum() == (source.obs["response"] == label).sum()


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match="existing"):
        loaders.load(tmp_path / "absent.csv")
    (tmp_path / "bad.h5ad").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="h5ad"):
        loaders.load(tmp_path / "bad.h5ad")
    (tmp_path / "empty.txt").write_bytes(b"")
    with pytest.raises(InputError, match="a header"):
        loaders.load(tmp_path / "empty.txt")


def test_seurat_without_the_reader(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rds2py", None)
    (tmp_path / "GSE1.RDS").write_bytes(b"")
    with pytest.raises(MissingDependencyError, match="rds2py"):
        loaders.load(tmp_path / "GSE1.RDS")


def test_seurat_object(tmp_path, counts, monkeypatch):
    def vector(data, **attributes):
        return {"data": data, "attributes": attributes}

    matrix = sparse.csc_matrix(counts.T)
    names = vector([vector(GENES), vector(cells(11))])
    slot = {"x": matrix.data, "i": matrix.indices, "p": matrix.indptr, "Dim": vector([7, 11]), "Dimnames": names}
    slot = {k: v if isinstance(v, dict) else vector(v) for k, v in slot.items()}
    assays = vector([{"attributes": {"counts": {"attributes": slot}}}], names=vector(["RNA"]))
    condition = vector([1, 2] * 5 + [1], levels=vector(["resistant", "sensitive"]))
    meta = vector([condition, vector(["p1"] * 11)], names=vector(["condition", "orig.ident"]))
    fake = types.SimpleNamespace(parse_rds=lambda path: {"attributes": {"assays": assays, "meta.data": meta}})
    monkeypatch.setitem(sys.modules, "rds2py", fake)
    (tmp_path / "GSE9_seurat.RDS").write_bytes(b"x")
    adata = loaders.load(tmp_path / "GSE9_seurat.RDS")
    check_tidy(adata, counts)
    assert adata.obs["response"].tolist() == (["resistant", "sensitive"] * 5 + ["resistant"])
    assert set(adata.obs["sample"]) == {"p1"}
    fake.parse_rds = lambda path: {"attributes": {}}
    with pytest.raises(InputError, match="Seurat object"):
        loaders.load(tmp_path / "GSE9_seurat.RDS")


def test_reading_a_label_never_guesses():
    texts = pd.Series(["Sensitive_d0", "RESISTANT", "insensitive?", "responder", None, "sensitive/resistant"])
    assert [None if pd.isna(x) else x for x in _tidy.response_of(texts)] == [
        "sensitive",
        "resistant",
        None,
        None,
        None,
        None,
    ]
