import warnings

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import scdrugmap as sd
from scdrugmap._errors import InputError, InputTypeError, MissingKeyError, ScDrugMapWarning
from scdrugmap._labels import recognise_label


def make(values):
    obs = pd.DataFrame({"status": values}, index=[f"c{i}" for i in range(len(values))])
    return anndata.AnnData(np.ones((len(values), 1), np.float32), obs=obs)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("resistant", "resistant"),
        ("Resistant", "resistant"),
        ("R", "resistant"),
        ("Non-Responder", "resistant"),
        ("nonResponder", "resistant"),
        ("non_responder", "resistant"),
        ("NR", "resistant"),
        ("PD", "resistant"),
        ("Progressive disease", "resistant"),
        ("insensitive", "resistant"),
        ("MCF7_resistant_day3", "resistant"),
        ("S", "sensitive"),
        (" Sensitive ", "sensitive"),
        ("Responder", "sensitive"),
        ("CR", "sensitive"),
        ("A549-sensitive", "sensitive"),
        ("", None),
        ("nan", None),
        ("Unknown", None),
        ("n/a", None),
        ("non-resistant", False),
        ("not_sensitive_at_all", False),
        ("hyper-sensitive", False),
        ("sensitive/resistant", False),
        ("control", False),
        ("SD", False),
        ("1", False),
        ("0", False),
        ("treated", False),
    ],
)
def test_spellings(text, label):
    assert recognise_label(text) is label or recognise_label(text) == label


@given(st.text(max_size=20))
def test_any_text_has_an_answer(text):
    assert recognise_label(text) in ("resistant", "sensitive", None, False)


def test_labels_are_written():
    adata = make(["Resistant", "responder", "NR", "CR"])
    with pytest.raises(InputError, match="'NR'"):  # beside a word of another system a code is asked about
        sd.pp.harmonize_response(adata, "status")
    adata = make(["refractory", "responder", "NR", "CR"])
    assert sd.pp.harmonize_response(adata, "status") is None
    assert adata.obs["response"].tolist() == ["resistant", "sensitive", "resistant", "sensitive"]
    assert list(adata.obs["response"].cat.categories) == ["resistant", "sensitive"]
    assert adata.obs["status"].tolist() == ["refractory", "responder", "NR", "CR"]
    table = adata.uns["scdrugmap_labels"]["table"]
    assert dict(zip(table["value"], table["label"], strict=True))["CR"] == "sensitive"
    assert table["n_cells"].sum() == 4


def test_unclear_values_are_all_listed_and_nothing_changes():
    adata = make(["R", "control", "control", "day 7"])
    before = adata.obs.copy()
    with pytest.raises(InputError) as error:
        sd.pp.harmonize_response(adata, "status")
    assert "'control' (2 cells)" in str(error.value)
    assert "'day 7' (1 cells)" in str(error.value)
    assert adata.obs.equals(before)
    assert not adata.uns


def test_mapping_decides_first():
    adata = make(["R", "control", "day 7", None])
    with pytest.warns(ScDrugMapWarning, match="2 of 4 cells have no label"):
        sd.pp.harmonize_response(adata, "status", {"control": "sensitive", "day 7": None, "R": "resistant"})
    assert adata.obs["response"].isna().tolist() == [False, False, True, True]
    assert adata.obs["response"].tolist()[:2] == ["resistant", "sensitive"]


def test_numbers_need_a_decision():
    for values in ([0, 1, 1], [0.0, 1.0, 1.0], ["0", "1", "1"]):
        adata = make(values)
        with pytest.raises(InputError, match="'0'"):
            sd.pp.harmonize_response(adata, "status")
        sd.pp.harmonize_response(adata, "status", {0: "resistant", 1: "sensitive"})
        assert adata.obs["response"].tolist() == ["resistant", "sensitive", "sensitive"]


def test_categories_and_copy():
    adata = make(pd.Categorical(["S", "R", "S"], categories=["R", "S", "unused?"]))
    out = sd.pp.harmonize_response(adata, "status", key_added="label", copy=True)
    assert out.obs["label"].tolist() == ["sensitive", "resistant", "sensitive"]
    assert "label" not in adata.obs


def test_idempotent_on_its_own_column():
    adata = make(["R", "S"])
    sd.pp.harmonize_response(adata, "status")
    before = adata.obs["response"].copy()
    sd.pp.harmonize_response(adata, "response")
    pd.testing.assert_series_equal(before, adata.obs["response"])


def test_true_labels_are_not_overwritten():
    adata = make(["R", "S"])
    adata.obs["response"] = ["sensitive", "sensitive"]
    with pytest.raises(InputError, match="never overwritten"):
        sd.pp.harmonize_response(adata, "status")
    assert adata.obs["response"].tolist() == ["sensitive", "sensitive"]


def test_one_label_and_unused_decisions_are_said():
    with pytest.warns(ScDrugMapWarning) as caught:
        sd.pp.harmonize_response(make(["R", "R"]), "status", {"x": "sensitive"})
    text = " ".join(str(w.message) for w in caught)
    assert "all labelled cells are resistant" in text
    assert "'x'" in text


def test_bad_input():
    adata = make(["R", "S"])
    with pytest.raises(MissingKeyError, match="'status'"):
        sd.pp.harmonize_response(adata, "stat")
    with pytest.raises(InputError, match="'good'"):
        sd.pp.harmonize_response(adata, "status", {"R": "good"})
    with pytest.raises(InputTypeError):
        sd.pp.harmonize_response(adata, "status", ["R"])
    with pytest.raises(InputTypeError):
        sd.pp.harmonize_response(None, "status")
    assert list(adata.obs) == ["status"]


def test_mudata_is_mirrored():
    adata = make(["R", "S"])
    mdata = mudata.MuData({"rna": adata, "prot": anndata.AnnData(np.ones((2, 1), np.float32), obs=adata.obs[[]])})
    sd.pp.harmonize_response(mdata, "status")
    assert mdata.obs["rna:response"].tolist() == ["resistant", "sensitive"]


def test_survives_a_file(tmp_path):
    adata = make(["R", "S", None])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sd.pp.harmonize_response(adata, "status")
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert anndata.read_h5ad(tmp_path / "a.h5ad").obs["response"].isna().sum() == 1


@pytest.mark.parametrize("name", ["tian2019_lung_mixology", "kinker2020_jhu006", "aissa2021_pc9_day11_unlabelled"])
def test_real_labels(shared, name):
    adata = anndata.read_h5ad(shared / "data" / f"{name}.h5ad")
    before = adata.obs["response"].astype(str)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScDrugMapWarning)
        sd.pp.harmonize_response(adata, "response")
    after = adata.obs["response"].astype(object).where(adata.obs["response"].notna(), "unknown")
    assert (after == before).all()
