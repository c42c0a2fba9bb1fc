"""What users of such tools ran into: labels that are guessed, work that is lost, samples without names."""

from __future__ import annotations

import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scdrugmap as sd
from scdrugmap._anndata import writable
from scdrugmap._cohort import encode
from scdrugmap._errors import InputError, ScDrugMapWarning
from scdrugmap._labels import recognise_labels


@pytest.fixture
def adata():
    return sd.datasets.simulate(n_studies=1, n_cells=60, n_genes=60, rng=0)


ASKED = [
    ["PR", "PS"], ["R", "NR"], ["res", "nonres"], ["R", "responder"], ["PD", "control"], ["S", "CR"],
    ["less sensitive", "more sensitive"], ["highly resistant"], ["partially resistant"], ["sensitive?"],
    ["resistant before day 7"], ["probably sensitive"], ["sensitive to resistant"],
]  # fmt: skip


@pytest.mark.parametrize("values", ASKED, ids=" / ".join)
def test_what_may_mean_two_things_is_asked(values):
    assert recognise_labels(values)[values[0]] is False


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["CR", "PR", "PD"], ["sensitive", "sensitive", "resistant"]),
        (["CR", "PR", "SD", "PD"], ["sensitive", "sensitive", False, "resistant"]),
        (["R", "S"], ["resistant", "sensitive"]),
        (["R", "S", ""], ["resistant", "sensitive", None]),
        (["responder", "non-responder", "NR"], ["sensitive", "resistant", "resistant"]),
        (["never resistant", "resistant"], [False, "resistant"]),
    ],
)
def test_what_means_one_thing_is_read(values, labels):
    assert list(recognise_labels(values).values()) == labels


@pytest.mark.parametrize(
    ("values", "mapping"),
    [
        (["R", "S"], "{'R': 'resistant', 'S': 'sensitive'}"),
        (["Treated", "non-responder"], "{'Treated': '...', 'non-responder': 'resistant'}"),
        ([0, 1], "{0: '...', 1: '...'}"),
        ([True, False], "{True: '...', False: '...'}"),
        (["pd", "treated"], "{'pd': '...', 'treated': '...'}"),
    ],
)
def test_one_reader_one_rule(adata, values, mapping):
    adata.obs["label"] = pd.Series(np.resize(np.array(values, dtype=object), adata.n_obs), index=adata.obs_names)
    calls = [
        lambda: encode(adata.obs["label"]),
        lambda: sd.tl.train(adata, "pca", label_key="label"),
        lambda: sd.tl.benchmark(adata, models="pca", label_key="label", n_folds=2),
    ]
    for call in calls:
        with pytest.raises(InputError) as error:
            call()
        assert f"sd.pp.harmonize_response(adata, 'label', mapping={mapping})" in str(error.value)
    report = sd.pp.check(adata, label_key="label")
    assert not report.ok and mapping in str(report)


def test_the_proposal_can_be_pasted(adata):
    adata.obs["label"] = np.resize([1, 0], adata.n_obs)
    del adata.obs["response"]
    with pytest.raises(InputError, match=r"mapping\[1\]"):
        sd.pp.harmonize_response(adata, "label", mapping={1: "...", 0: "..."})
    sd.pp.harmonize_response(adata, "label", mapping={1: "resistant", 0: "sensitive"})
    assert adata.obs["response"].tolist()[:2] == ["resistant", "sensitive"]


def test_misspelt_columns_and_chosen_genes_are_not_ready(adata):
    report = sd.pp.check(adata, label_key="respons")
    assert not report.ok and "label_key='response'" in str(report)
    adata.obs = adata.obs.rename(columns={"response": "responce"})
    assert "label_key='responce'" in str(sd.pp.check(adata))
    adata.var["highly_variable"] = True
    report = sd.pp.check(adata)
    assert "models want all genes" in str(report) and ": ready" not in str(report)


def test_cells_without_a_sample_are_refused_before_training(adata):
    adata.obs["sample"] = adata.obs["sample"].astype(object).where(np.arange(adata.n_obs) % 9 > 0, np.nan)
    with pytest.raises(InputError, match=r"7 labelled cells without a value in obs\['sample'\]"):
        sd.tl.train(adata, model="pca", rng=0)


def reserved(adata):
    raw = adata.copy()
    adata.raw = raw
    adata.raw.var["_index"] = 1


SPOILS = {
    "reserved name in obs": (lambda a: a.obs.insert(0, "_index", 1), r"adata\.obs.*_index"),
    "reserved name in raw": (reserved, r"adata\.raw\.var.*to_adata"),
    "objects in obs": (lambda a: a.obs.insert(0, "x", [{1}] * a.n_obs), r"adata\.obs"),
    "objects in uns": (lambda a: a.uns.__setitem__("x", object()), r"adata\.uns\['x'\]"),
}


@pytest.mark.parametrize("name", SPOILS)
def test_what_no_file_can_hold_is_found_before(adata, name, tmp_path):
    spoil, words = SPOILS[name]
    writable(adata)
    spoil(adata)
    with pytest.raises(Exception):  # noqa: B017  what anndata says after hours
        adata.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(InputError, match=words):
        writable(adata)


def test_command_refuses_before_it_computes(adata, tmp_path, monkeypatch):
    adata.raw = adata.copy()
    adata.write_h5ad(tmp_path / "in.h5ad")
    with h5py.File(tmp_path / "in.h5ad", "a") as file:
        var = file["raw/var"]
        if var.attrs["_index"] == "_index":
            var.move("_index", "names")
            var.attrs["_index"] = "names"
        var.create_dataset("_index", data=["x"] * adata.n_vars, dtype=h5py.string_dtype())
        var["_index"].attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
        var.attrs["column-order"] = [*var.attrs["column-order"], "_index"]
    from scdrugmap.cli._runs import run
    from scdrugmap.spec import EmbedSpec

    monkeypatch.setattr(sd.tl, "embed", None)
    with pytest.raises(InputError, match=r"raw\.var.*_index"):
        run(EmbedSpec(input=tmp_path / "in.h5ad", output=tmp_path / "out.h5ad", model=["pca"]))


def test_part_of_a_backed_object_is_refused_before_anything_is_computed(adata, tmp_path):
    adata.write_h5ad(tmp_path / "a.h5ad")
    view = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")[::2]
    for call in (lambda: sd.tl.embed(view, "no such model"), lambda: sd.pp.harmonize_response(view, "response")):
        with pytest.raises(InputError, match=r"adata = adata\.to_memory\(\)"):
            call()


def test_moved_checkpoint_is_named_and_given(adata, tmp_path, monkeypatch):
    from scdrugmap.cli import _runs
    from scdrugmap.models import registry
    from scdrugmap.predictor import predictor
    from scdrugmap.spec import PredictSpec

    with pytest.raises(InputError, match=r"load_predictor\(folder, checkpoint=.*predict --checkpoint"):
        registry.resolve_checkpoint(registry.info("scGPT"), tmp_path / "gone")
    adata.write_h5ad(tmp_path / "in.h5ad")
    (tmp_path / "p").mkdir()
    given = {}

    def load(path, *, checkpoint=None):
        given.update(path=path, checkpoint=checkpoint)
        raise InputError("x", 1, "2", "3")

    monkeypatch.setattr(predictor, "load_predictor", load)
    spec = PredictSpec(
        input=tmp_path / "in.h5ad", output=tmp_path / "o.csv", predictor=tmp_path / "p", checkpoint=tmp_path / "c"
    )
    with pytest.raises(InputError):
        _runs.run(spec)
    assert given == {"path": tmp_path / "p", "checkpoint": tmp_path / "c"}


def test_ensembl_versions_of_two_studies(adata):
    ids = list(adata.var["ensembl_id"])
    a, b = adata.copy(), adata.copy()
    a.var = pd.DataFrame(index=[f"{e}.{5 if i % 3 else 7}" for i, e in enumerate(ids)])
    b.var = pd.DataFrame(index=[f"{e}.5" for e in ids])
    for join in ("inner", "outer"):
        with pytest.warns(ScDrugMapWarning, match="20 Ensembl ids differ .* version"):
            both = sd.pp.concat_studies({"A": a, "B": b}, join=join)
        assert both.n_vars == 60 and both.var["ensembl_id"].tolist() == ids
        assert (both[: a.n_obs].X != a.X).nnz == 0


def test_the_copy_on_y_stays_apart(adata):
    a = adata[:, :2].copy()
    a.var = pd.DataFrame(index=["ENSG00000182378.10", "ENSG00000182378.10_PAR_Y"])
    b = a.copy()
    b.var_names = ["ENSG00000182378.11", "ENSG00000182378.11_PAR_Y"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScDrugMapWarning)
        both = sd.pp.concat_studies({"A": a, "B": b}, join="outer")
    assert list(both.var_names) == ["ENSG00000182378", "ENSG00000182378_PAR_Y"]
    assert np.array_equal(both.X.toarray(), np.vstack([a.X.toarray(), b.X.toarray()]))


def test_counts_beside_log_values_are_named(adata):
    logged = adata.copy()
    logged.raw = adata.copy()
    logged.X = sparse.csr_matrix(np.log1p(adata.X.toarray()))
    with pytest.raises(InputError, match=r"no counts in logged.*layer='raw'"):
        sd.pp.concat_studies({"counts": adata, "logged": logged})
    both = sd.pp.concat_studies({"logged": logged, "b": logged.copy()}, layer="raw")
    assert (both.X[: adata.n_obs] != adata.X).nnz == 0
    with pytest.warns(ScDrugMapWarning, match="all studies are no counts"):
        sd.pp.concat_studies({"a": logged})
