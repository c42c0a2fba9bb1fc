"""The catalogue against the published totals, and fetching a study through a folder that stands for the web."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scdrugmap as sd
from scdrugmap import download
from scdrugmap._errors import DownloadError, InputError, ScDrugMapWarning, UnknownNameError
from scdrugmap.settings import settings

pytestmark = pytest.mark.filterwarnings("ignore::scdrugmap._errors.ScDrugMapWarning")


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "cache_dir", tmp_path / "cache")
    monkeypatch.setattr(settings, "offline", True)  # nothing here may touch the network
    monkeypatch.setattr(settings, "mirror", None)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return sd.datasets.catalogue()


def test_sizes_of_the_collections(table):
    assert table["collection"].value_counts().to_dict() == {"primary": 36, "external": 24}
    assert table.groupby("collection")["accession"].nunique().to_dict() == {"primary": 23, "external": 15}
    assert table["in_validation_17"].sum() == 17
    assert table.index.is_unique and table["id"].is_unique


def test_counts_add_up_to_the_published_totals(table):
    for name, cells, sensitive, resistant in (
        ("primary", 326_751, 162_957, 163_794),
        ("external", 168_486, 80_237, 88_249),
    ):
        part = table[table["collection"] == name]
        single = part[part["group"] == ""]
        groups = part[part["group"] != ""].drop_duplicates("group")
        assert single["n_cells"].sum() + groups["group_n_cells"].sum() == cells
        assert single["n_sensitive"].sum() + groups["group_n_sensitive"].sum() == sensitive
        assert single["n_resistant"].sum() + groups["group_n_resistant"].sum() == resistant


def test_labels_add_up_in_every_row(table):
    known = table[table["n_cells"].notna()]
    assert (known["n_sensitive"] + known["n_resistant"] == known["n_cells"]).all()
    assert (known["count_basis"] != "").all() and (table.loc[table["n_cells"].isna(), "group"] != "").all()
    assert known[known["collection"] == "primary"]["n_cells"].sum() == 326_856  # DRMref's count, 105 more


def test_groups_name_their_members(table):
    by_id = table.set_index("id")
    for ids in set(table["group"]) - {""}:
        assert set(by_id.loc[ids.split(), "group"]) == {ids}


def test_corrections(table):
    assert table.loc["GSE150930", ["cancer_type", "cancer_type_published"]].tolist() == [
        "MALT lymphoma",
        "Chronic lymphocytic leukemia",
    ]
    assert table.loc[["GSE247684_A375", "GSE247684_PC9"], "cancer_type"].tolist() == ["Melanoma", "Lung cancer"]
    assert table.loc["GSE262288", ["therapy_type", "therapy_type_published"]].tolist() == [
        "Targeted therapy",
        "Immunotherapy",
    ]
    assert not table["regimen"].str.contains("combimetinib|[^g]emcitabine").any()
    assert not table["cancer_subtype"].str.contains("E2:E57").any()
    assert table[table["accession"] == "GSE131984"]["date"].nunique() == 1
    assert not table[["tissue", "cancer_type", "therapy_type", "drug_class"]].eq("").drop(index="GSE138267").any().any()


def test_shared_controls(table):
    shared = table[table["shared_control"] != ""]
    assert shared.groupby("shared_control")["n_sensitive"].agg(["size", "nunique", "max"]).to_numpy().tolist() == [
        [5, 1, 1061],
        [3, 1, 6686],
    ]
    assert (shared["n_shared"] == shared["n_sensitive"]).all() and (
        table.drop(shared.index)["n_shared"].fillna(0) == 0
    ).all()


def test_table_agrees_with_the_reference(table, shared):
    source = pd.read_csv(shared / "datasets" / "collections.csv", dtype=str, keep_default_na=False)
    ids = source["collection"].str[0].str.upper() + source["series"].str.removeprefix("Data")
    mine = table.set_index("id").loc[ids]
    assert mine["accession"].tolist() == source["accession"].tolist()
    for column in ("n_samples", "n_samples_sensitive", "n_samples_resistant"):
        assert mine[column].astype(str).tolist() == source[column].tolist()
    given = (source["n_cells"] != "").to_numpy()
    assert mine["n_cells"][given].astype(str).tolist() == source["n_cells"][given].tolist()
    groups = pd.read_csv(shared / "datasets" / "categories.csv")
    assert len(sd.datasets.categories()) == len(groups)


def test_categories_are_made_of_catalogue_rows(table):
    categories = sd.datasets.categories()
    for row in categories.itertuples():
        assert len(row.keys) == row.n_datasets and set(table.loc[row.keys, "collection"]) == {row.collection}
        assert table.loc[row.keys, "accession"].nunique() == row.n_accessions
    tissue = sd.datasets.categories("tissue_type")
    for row in tissue.itertuples():
        assert set(table.loc[row.keys, "tissue_published"]) == {row.category}
    with pytest.raises(UnknownNameError, match="regimen"):
        sd.datasets.categories("regime")


def test_filters():
    catalogue = sd.datasets.catalogue
    assert len(catalogue(collection="primary", tissue="cell line")) == 18
    assert len(catalogue(tissue=["Cell line", "Organoid"])) == 30
    assert catalogue(drug="JQ1").index.tolist() == ["GSE131984_JQ1", "GSE131984_JQ1Pac", "GSE131984_JQ1Pal"]
    assert catalogue(key="gse140440")["id"].tolist() == ["P12"]
    assert len(catalogue(in_validation_17=True)) == 17
    with pytest.raises(UnknownNameError, match="tissue"):
        catalogue(tisue="Cell line")
    with pytest.raises(UnknownNameError, match="Cell line"):
        catalogue(tissue="Cel line")


def test_result_is_the_callers_own():
    sd.datasets.catalogue().loc[:, "drug"] = "nonsense"
    assert "nonsense" not in set(sd.datasets.catalogue()["drug"])


def test_info():
    row = sd.datasets.info("p12")
    assert row.name == "GSE140440" and row["sources"] == "GSE140440, GSE140440_drmref, GSE140440_geo"
    assert sd.datasets.info("GSE123813")["sources"] == "GSE123813_geo"
    with pytest.raises(InputError, match="GSE131984_Pac, GSE131984_JQ1"):
        sd.datasets.info("GSE131984")
    with pytest.raises(UnknownNameError, match="GSE140440"):
        sd.datasets.info("GSE14044")


def test_every_study_has_a_source(table):
    from scdrugmap.datasets._catalogue import sources_of

    for _, row in table.iterrows():
        known = sources_of(row)
        assert "geo" in known and ("published" in known) == (row["collection"] == "primary")
        for key in known.values():
            assert download.find("datasets", key).series == row["accession"]


def put(key: str, conditions: list[str], genes: list[str], seed: int = 0) -> np.ndarray:
    """Write a published matrix into the cache, as if it had been fetched."""
    entry = download.find("datasets", key)
    dense = np.random.default_rng(seed).poisson(1.0, (len(conditions), len(genes)))
    path = settings.cache_dir / "datasets" / entry.key / entry.files[0].name
    path.parent.mkdir(parents=True)
    rows = ["\t".join(["Cell_barcode", "Condition", *genes])]
    rows += ["\t".join([f"cell{i}", c, *map(str, x)]) for i, (c, x) in enumerate(zip(conditions, dense, strict=True))]
    path.write_text("\n".join(rows))
    return dense


def test_fetch_gives_the_facts_of_the_catalogue():
    dense = put("GSE140440", ["docetaxel_sensitive", "docetaxel_resistant"] * 3, ["ACTB", "TP53", "VIM"])
    adata = sd.datasets.fetch("GSE140440")
    np.testing.assert_array_equal(adata.X.toarray(), dense)
    assert adata.obs["response"].tolist() == ["sensitive", "resistant"] * 3
    facts = {"study": "GSE140440", "drug": "docetaxel", "tissue": "Cell line", "cancer_type": "Prostate cancer"}
    assert all(set(adata.obs[k]) == {v} for k, v in facts.items())
    assert set(adata.obs["sample"]) == {"GSE140440:sensitive", "GSE140440:resistant"}
    record = adata.uns["provenance"]
    entry = download.ledger.read()["datasets/GSE140440/GSE140440_mal_countsMatrix.csv"]
    assert record["sha256"] == entry["sha256"] and record["source"] == "published"
    assert "not told apart" in record["sample_basis"]


def test_conversion_is_kept(monkeypatch):
    from scdrugmap.datasets import loaders

    put("GSE115251", ["sensitive", "resistant"], ["ACTB"])
    first = sd.datasets.fetch("P13")
    assert first.uns["provenance"]["sample_basis"] == "one sample per label"
    monkeypatch.setattr(loaders, "read_published", None)
    again = sd.datasets.fetch("GSE115251", backed=True)
    assert again.isbacked and again.obs["response"].tolist() == ["sensitive", "resistant"]
    again.file.close()


def test_shared_controls_stay_in_one_sample():
    for key in ("GSE164897_Vem", "GSE164897_VemCob"):
        put(key, ["sensitive", "resistant"], ["ACTB"])
    a, b = (sd.datasets.fetch(k).obs for k in ("GSE164897_Vem", "GSE164897_VemCob"))
    assert a["sample"].tolist() == ["GSE164897:sensitive", "GSE164897_Vem:resistant"]
    assert b["sample"].tolist() == ["GSE164897:sensitive", "GSE164897_VemCob:resistant"]
    assert a["cell"].tolist() == b["cell"].tolist()


def test_fetch_from_a_path(tmp_path):
    (tmp_path / "mine.tsv").write_text("gene\tc1\tc2\nACTB\t1\t0\nGAPDH\t0\t2\nB2M\t3\t3\n")
    with pytest.warns(ScDrugMapWarning, match="harmonize_response"):
        adata = sd.datasets.fetch("GSE123813", path=tmp_path / "mine.tsv")
    assert adata.obs["response"].isna().all() and set(adata.obs["study"]) == {"GSE123813"}
    assert adata.obs["drug"].isna().all(), "a series may hold more than the catalogue's data set"


def test_fetch_of_a_data_set_outside_the_catalogue():
    folder = settings.cache_dir / "datasets" / "ZhaoSims2021"
    folder.mkdir(parents=True)
    obs = pd.DataFrame({"perturbation": ["etoposide", "control"]}, index=["a", "b"])
    ad.AnnData(np.ones((2, 1), np.float32), obs=obs, var=pd.DataFrame(index=["ACTB"])).write_h5ad(
        folder / "ZhaoSims2021.h5ad"
    )
    adata = sd.datasets.fetch("zhaosims2021")
    assert adata.obs["drug"].tolist() == ["etoposide", "control"] and adata.uns["provenance"]["licence"] == "CC-BY-4.0"


def test_fetch_refuses_what_it_does_not_know():
    with pytest.raises(UnknownNameError, match="GSE140440"):
        sd.datasets.fetch("GSE14044")
    with pytest.raises(InputError, match="one data set"):
        sd.datasets.fetch("GSE161801")
    with pytest.raises(UnknownNameError, match="auto, geo"):
        sd.datasets.fetch("GSE123813", source="published")
    with pytest.raises(DownloadError, match="offline"):
        sd.datasets.fetch("GSE140440")


def test_collection_fetches_on_look_up():
    chosen = sd.datasets.collection("primary", accession="GSE164897")
    assert list(chosen) == ["GSE164897_Vem", "GSE164897_VemCob", "GSE164897_VemTra"] and len(chosen) == 3
    put("GSE164897_Vem", ["sensitive", "resistant"], ["ACTB"])
    assert chosen["GSE164897_Vem"].n_obs == 2
    with pytest.raises(DownloadError):
        chosen["GSE164897_VemCob"]
    with pytest.raises(UnknownNameError):
        chosen["GSE140440"]
    with pytest.raises(InputError, match="at least one"):
        sd.datasets.collection("external", drug="docetaxel")


@pytest.mark.parametrize("join", ["inner", "outer"])
def test_collection_joined_on_disk(tmp_path, join):
    dense = put("GSE164897_Vem", ["sensitive", "resistant", "odd"], ["ACTB", "TP53"])
    put("GSE164897_VemCob", ["sensitive", "resistant"], ["TP53", "VIM"], seed=1)
    chosen = sd.datasets.collection(accession="GSE164897")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        adata = chosen.concat(tmp_path / "all.h5ad", join=join, skip_missing=True)
    assert any("GSE164897_VemTra is left out" in str(w.message) for w in said)
    assert adata.isbacked and adata.obs["dataset"].tolist() == ["GSE164897_Vem"] * 3 + ["GSE164897_VemCob"] * 2
    assert sorted(adata.var_names) == (["TP53"] if join == "inner" else ["ACTB", "TP53", "VIM"])
    np.testing.assert_array_equal(adata[:3].to_memory()[:, "TP53"].X.toarray().ravel(), dense[:, 1])
    response = adata.obs["response"].astype(object)
    expected = ["sensitive", "resistant", None, "sensitive", "resistant"]
    assert response.where(response.notna(), None).tolist() == expected
    assert adata.obs_names[0] == "GSE164897_Vem:cell0" and adata.obs["cell"].duplicated().sum() == 2
    adata.file.close()
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["all.h5ad"]
    with pytest.raises(DownloadError):
        chosen.concat(tmp_path / "again.h5ad")


def test_importing_the_room_is_light():
    import subprocess
    import sys

    code = "import sys, scdrugmap.datasets, scdrugmap.download; print([m for m in ('torch', 'scanpy', 'anndata', 'pandas') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path), "PATH": str(Path(sys.executable).parent)},
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_functions_are_not_shadowed_by_modules():
    for name in ("catalogue", "categories", "info", "fetch", "collection", "load"):
        assert callable(getattr(sd.datasets, name))


@pytest.mark.parametrize(("drug", "n"), [("dexamethasone", 6), ("carboplatin", 2), ("JQ1", 3)])
@pytest.mark.parametrize("dtype", [object, "string"])
def test_drugs_are_found_whatever_type_text_has(monkeypatch, drug, n, dtype):
    from scdrugmap.datasets import _catalogue

    table = _catalogue._table()
    texts = table.columns[[isinstance(value, str) for value in table.iloc[0]]]
    monkeypatch.setattr(_catalogue, "_table", lambda: table.astype(dict.fromkeys(texts, dtype)))
    assert len(sd.datasets.catalogue(drug=drug)) == n


@pytest.mark.parametrize(
    ("column", "said", "name"),
    [
        ("drug", "Tarceva", "erlotinib"),
        ("drug", "taxol", "paclitaxel"),
        ("drug", "nvp tae684", "TAE684"),
        ("tissue", "PBMC", "Peripheral blood mononuclear cells"),
        ("cancer_type", "AML", "Acute myeloid leukemia"),
    ],
)
def test_other_names_find_the_same_studies(column, said, name):
    assert (
        sd.datasets.catalogue(**{column: said}).index.tolist() == sd.datasets.catalogue(**{column: name}).index.tolist()
    )


def test_parts_of_alternatives_are_found():
    for drug in ("lenalidomide", "Revlimid", "pemetrexed"):
        assert len(sd.datasets.catalogue(drug=drug))


def test_every_synonym_stands_for_one_name_of_the_catalogue():
    from scdrugmap.datasets._catalogue import synonyms

    table = synonyms()
    assert not table.duplicated(["column", "synonym"]).any()
    for row in table.itertuples():
        found = sd.datasets.catalogue(**{row.column: row.synonym})
        assert found.index.tolist() == sd.datasets.catalogue(**{row.column: row.name}).index.tolist(), row
