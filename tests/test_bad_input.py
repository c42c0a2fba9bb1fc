"""Every public call on input that cannot be used: one clear error, and nothing changed or left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata as ad
import matplotlib
import numpy as np
import pandas as pd
import pytest
from mudata import MuData
from scipy import sparse

import scdrugmap as sd
from scdrugmap._errors import (
    CheckpointError,
    InputError,
    InputTypeError,
    MissingKeyError,
    ScDrugMapError,
    UnknownNameError,
)

matplotlib.use("agg")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimpleNamespace:
    """What the calls need besides the input: labelled cells, predictors, a benchmark result."""
    from scdrugmap._anndata import gene_ids
    from scdrugmap.models.geneformer import Geneformer

    cells = sd.datasets.simulate(n_studies=2, n_patients=2, n_cells=96, n_genes=60, rng=0)
    cells.layers["log"] = cells.X.log1p()
    rng = np.random.default_rng(0)
    cells.obsm["X_rep"] = rng.normal(size=(cells.n_obs, 4)).astype(np.float32)
    cells.obsm["X_umap"] = rng.normal(size=(cells.n_obs, 2))
    folder = tmp_path_factory.mktemp("bad")
    by_model = sd.tl.train(cells, "pca", head="logistic", rng=0)
    by_rep = sd.tl.train(cells, use_rep="X_rep", head="logistic", rng=0)
    by_model.save(folder / "by_model")
    result = sd.tl.benchmark(cells, models="X_rep", n_folds=2, head="logistic", baselines=["all_sensitive"], rng=0)
    network = Geneformer.random(gene_ids(cells))
    return SimpleNamespace(
        cells=cells, by_model=by_model, by_rep=by_rep, folder=folder, result=result, network=network,
        mdata=sd.datasets.simulate(n_studies=1, n_patients=2, n_cells=40, n_genes=60, protein=True, rng=0),
    )  # fmt: skip


def assert_same(found: Any, expected: Any, where: str = "input") -> None:
    """Compare two objects all the way down."""
    assert type(found) is type(expected), where
    if isinstance(expected, ad.AnnData | MuData):
        assert found.obs_names.equals(expected.obs_names), f"{where}.obs_names"
        for slot in ("X", "obs", "var", "obsm", "varm", "obsp", "varp", "layers", "uns", "mod"):
            if hasattr(expected, slot):
                a, b = getattr(found, slot), getattr(expected, slot)
                assert_same(dict(a), dict(b), f"{where}.{slot}") if isinstance(b, Mapping) else assert_same(
                    a, b, f"{where}.{slot}"
                )
    elif isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(found, expected)
    elif isinstance(expected, Mapping):
        assert list(found) == list(expected), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}[{key!r}]")
    elif sparse.issparse(expected):
        for part in ("indptr", "indices", "data"):
            np.testing.assert_array_equal(getattr(found, part), getattr(expected, part), err_msg=where)
        assert found.dtype == expected.dtype, where
    elif isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(found, expected, err_msg=where)
        assert found.dtype == expected.dtype, where
    else:
        assert found == expected or found is expected, where


def listing(folder: Path) -> dict[str, int]:
    """Every file and folder with its size, hidden ones too."""
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*"))}


def refused(
    call: Callable[[], Any], *words: str, kind: type[ScDrugMapError] = ScDrugMapError, argument: str | None = None
) -> None:
    """One error that names the argument, the value, the expectation and the fix."""
    with pytest.raises(ScDrugMapError) as caught:
        call()
    error, message = caught.value, str(caught.value)
    assert isinstance(error, kind), f"{type(error).__name__}: {message}"
    for word in words:
        assert word.lower() in message.lower(), message
    if isinstance(error, InputError):
        assert error.argument and error.expected and error.fix, message
        assert "Fix: " in message and "expected " in message
        assert argument is None or argument in error.argument, message


# The public calls that take cells. The first argument is what a test makes of the cells, the second what is ready.

Call = Callable[[Any, SimpleNamespace], Any]

READERS: dict[str, Call] = {
    "pp.check": lambda a, w: sd.pp.check(a),
    "pp.gene_coverage": lambda a, w: sd.pp.gene_coverage(a, w.network),
    "pp.harmonize_genes": lambda a, w: sd.pp.harmonize_genes(a),
    "pp.harmonize_response": lambda a, w: sd.pp.harmonize_response(a, "response", key_added="again"),
    "pp.concat_studies": lambda a, w: sd.pp.concat_studies({"A": w.cells, "B": a}),
    "pl.response": lambda a, w: sd.pl.response(a, color="response"),
    "tl.leakage_report": lambda a, w: sd.tl.leakage_report(a),
    "tl.profile": lambda a, w: sd.tl.profile(a, "pca", n_cells=8),
    "tl.train(use_rep)": lambda a, w: sd.tl.train(a, use_rep="X_rep", head="logistic", rng=0),
    "tl.predict_response(use_rep)": lambda a, w: sd.tl.predict_response(a, w.by_rep),
    "tl.benchmark(use_rep)": lambda a, w: sd.tl.benchmark(a, models="X_rep", head="logistic", baselines=[], n_folds=2),
    "tl.few_shot_curve(use_rep)": lambda a, w: sd.tl.few_shot_curve(
        a, use_rep="X_rep", target="study2", head="logistic", shots=(0, 1), n_repeats=1
    ),
    "predictor.predict(use_rep)": lambda a, w: w.by_rep.predict(a),
}
COUNTS: dict[str, Call] = {
    "tl.embed(pca)": lambda a, w: sd.tl.embed(a, "pca", n_components=3),
    "tl.embed(hvg)": lambda a, w: sd.tl.embed(a, "hvg", n_top_genes=10),
    "tl.embed(network)": lambda a, w: sd.tl.embed(a, w.network),
    "tl.train": lambda a, w: sd.tl.train(a, "pca", head="logistic", rng=0),
    "tl.train(network)": lambda a, w: sd.tl.train(a, w.network, head="logistic", rng=0),
    "tl.train(lora)": lambda a, w: sd.tl.train(a, w.network, strategy="lora", lora_options={"epochs": 1}, rng=0),
    "tl.predict_response": lambda a, w: sd.tl.predict_response(a, w.by_model),
    "tl.predict_response(folder)": lambda a, w: sd.tl.predict_response(a, w.folder / "by_model"),
    "tl.predict_response(reference=)": lambda a, w: sd.tl.predict_response(
        w.cells.copy(), model="pca", reference=a, head="logistic"
    ),
    "tl.predict_response(prompt)": lambda a, w: sd.tl.predict_response(
        a, strategy="prompt", base_url="http://127.0.0.1:9/v1", confirm=False
    ),
    "tl.biomarkers": lambda a, w: sd.tl.biomarkers(a, min_cells=1),
    "tl.attribute": lambda a, w: sd.tl.attribute(a, w.by_model, max_cells_per_sample=2),
    "tl.perturb": lambda a, w: sd.tl.perturb(a, w.by_model, genes=[w.cells.var_names[0]], n_null=0),
    "tl.pathways(cells)": lambda a, w: sd.tl.pathways(a, source="resistance", of="cells", min_genes=1),
    "tl.attribution_report": lambda a, w: sd.tl.attribution_report(a, w.by_model, max_cells_per_sample=2),
    "tl.benchmark": lambda a, w: sd.tl.benchmark(a, models="pca", head="logistic", baselines=[], n_folds=2),
    "tl.few_shot_curve": lambda a, w: sd.tl.few_shot_curve(
        a, "pca", target="study2", head="logistic", shots=(0, 1), n_repeats=1
    ),
    "predictor.predict": lambda a, w: w.by_model.predict(a),
    "predictor.predict_proba": lambda a, w: w.by_model.predict_proba(a),
    "predictor.features": lambda a, w: w.by_model.features(a),
}
CALLS = READERS | COUNTS


@pytest.mark.parametrize("name", [n for n in CALLS if "prompt" not in n])
def test_the_calls_themselves_work(made, name):
    CALLS[name](made.cells.copy(), made)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    "thing",
    [None, np.ones((3, 2)), pd.DataFrame({"a": [1]}), 3, {"X": 1}, "cells.h5ad"],
    ids=lambda v: type(v).__name__,
)
def test_not_an_anndata(made, name, thing):
    if name == "tl.predict_response(reference=)" and thing is None:
        refused(lambda: CALLS[name](thing, made), "reference")
    elif name == "pp.concat_studies" and isinstance(thing, str):
        refused(lambda: CALLS[name](thing, made), "cells.h5ad", "exists", argument="studies")
    else:
        argument = "studies" if "concat" in name else "reference" if "reference" in name else "adata"
        refused(lambda: CALLS[name](thing, made), "AnnData", kind=InputTypeError, argument=argument)


def no_cells(a):
    return a[:0].copy()


def no_genes(a):
    return a[:, :0].copy()


@pytest.mark.parametrize("name", [n for n in CALLS if n not in ("pp.check", "pp.gene_coverage", "pp.harmonize_genes")])
def test_no_cells(made, name):
    word = "(0, " if name == "pl.response" else "0 cells"
    check_unchanged(made, name, no_cells, word, kind=InputError)


@pytest.mark.parametrize("name", ["pp.harmonize_genes", "pp.concat_studies", "tl.profile", *COUNTS])
def test_no_genes(made, name):
    word = "expression" if name == "tl.benchmark" else "gene"
    check_unchanged(made, name, no_genes, word, kind=InputError)


def check_unchanged(made, name, spoil, *words, kind=ScDrugMapError, argument=None, calls=CALLS):
    """Refuse the spoilt cells and leave them as they are."""
    cells = spoil(made.cells.copy())
    before, base = cells.copy(), made.cells.copy()
    files = listing(made.folder)
    refused(lambda: calls[name](cells, made), *words, kind=kind, argument=argument)
    assert_same(cells, before)
    assert_same(made.cells, base)
    assert listing(made.folder) == files


def normalised(a):
    a.X = a.layers["log"].copy()
    return a


def with_value(value):
    def spoil(a):
        a.X = a.X.astype(np.float32)
        a.X.data[5] = value
        return a

    return spoil


def without_x(a):
    return ad.AnnData(obs=a.obs, var=a.var, obsm=dict(a.obsm), layers=dict(a.layers))


COUNT_FAULTS = {
    "normalised": (normalised, ("whole numbers", "sd.pp.check")),
    "NaN": (with_value(np.nan), ("NaN",)),
    "infinite": (with_value(np.inf), ("infinite",)),
    "negative": (with_value(-1), ("negative",)),
    "no X": (without_x, ("layer",)),
}
#: A prompt ranks the genes of a cell, for which normalised values serve as well.
RANKS = ("tl.predict_response(prompt)",)


@pytest.mark.parametrize(
    ("name", "fault"),
    [(n, f) for n in COUNTS for f in COUNT_FAULTS if not (n in RANKS and f == "normalised")],
)
def test_counts_that_are_none(made, name, fault):
    spoil, words = COUNT_FAULTS[fault]
    check_unchanged(made, name, spoil, *words, kind=InputError)


def twice(axis):
    def spoil(a):
        names = getattr(a, f"{axis}_names").to_numpy().astype(object)
        names[1] = names[0]
        setattr(a, f"{axis}_names", names)
        return a

    return spoil


def test_duplicate_names(made):
    check_unchanged(made, "pp.concat_studies", twice("var"), "repeated gene names", "harmonize_genes", kind=InputError)
    for axis in ("var", "obs"):
        report = sd.pp.check(twice(axis)(made.cells.copy()))
        assert any("repeated" in f.message and f.fix for f in report.findings)


def relabel(values):
    def spoil(a):
        a.obs["response"] = values(a)
        return a

    return spoil


def without_column(key):
    def spoil(a):
        del a.obs[key]
        return a

    return spoil


LABEL_FAULTS = {
    "no column": (without_column("response"), ("response", "column of obs"), MissingKeyError),
    "one label": (relabel(lambda a: "resistant"), (), InputError),
    "unknown": (relabel(lambda a: np.where(np.arange(a.n_obs) % 2, "yes", "no")), ("yes", "map"), InputError),
    "all missing": (relabel(lambda a: np.full(a.n_obs, np.nan)), (), InputError),
}
LABELLED = [
    "tl.train", "tl.train(use_rep)", "tl.train(network)", "tl.train(lora)", "tl.predict_response(reference=)",
    "tl.few_shot_curve", "tl.few_shot_curve(use_rep)", "tl.benchmark", "tl.benchmark(use_rep)", "tl.leakage_report",
]  # fmt: skip
#: A category with one class is a row with its reason in a benchmark, a finding in a report.
REPORTS = {("tl.benchmark", "one label"), ("tl.benchmark(use_rep)", "one label"), ("tl.leakage_report", "one label"),
           ("tl.leakage_report", "all missing")}  # fmt: skip


@pytest.mark.parametrize(("name", "fault"), [(n, f) for n in LABELLED for f in LABEL_FAULTS if (n, f) not in REPORTS])
def test_labels_that_teach_nothing(made, name, fault):
    spoil, words, kind = LABEL_FAULTS[fault]
    check_unchanged(made, name, spoil, *words, kind=kind, argument="label_key")


def test_one_label_is_a_reason_in_a_benchmark(made):
    cells = made.cells.copy()
    cells.obs["response"] = "resistant"
    result = CALLS["tl.benchmark(use_rep)"](cells, made)
    assert result.table["value"].isna().all() and result.table["reason"].str.len().gt(0).all()


def nan_embedding(a):
    a.obsm["X_rep"][3, 1] = np.nan
    return a


def other_width(a):
    a.obsm["X_rep"] = a.obsm["X_rep"][:, :2]
    return a


def words_embedding(a):
    a.obsm["X_rep"] = a.obsm["X_rep"].astype(str)
    return a


def without_embedding(a):
    del a.obsm["X_rep"]
    return a


USES_REP = ["tl.train(use_rep)", "tl.predict_response(use_rep)", "tl.benchmark(use_rep)", "tl.few_shot_curve(use_rep)",
            "predictor.predict(use_rep)"]  # fmt: skip


@pytest.mark.parametrize("name", USES_REP)
def test_embeddings_that_cannot_be_used(made, name):
    check_unchanged(made, name, without_embedding, "X_rep", "obsm")
    check_unchanged(made, name, nan_embedding, "NaN", kind=InputError)
    check_unchanged(made, name, words_embedding, "num", kind=InputError)
    if "predict" in name:
        check_unchanged(made, name, other_width, "2 columns", "4", kind=InputError)


def foreign(a):
    a.var_names = [f"GENE{i}X" for i in range(a.n_vars)]
    return ad.AnnData(a.X, obs=a.obs, var=pd.DataFrame(index=a.var_names), obsm=dict(a.obsm), layers=dict(a.layers))


def mouse(a):
    names = [n.capitalize() for n in a.var_names]
    return ad.AnnData(a.X, obs=a.obs, var=pd.DataFrame(index=names), obsm=dict(a.obsm), layers=dict(a.layers))


@pytest.mark.parametrize(
    "name", ["tl.predict_response", "tl.predict_response(folder)", "predictor.predict", "predictor.predict_proba"]
)
def test_predictor_whose_genes_are_not_there(made, name):
    check_unchanged(made, name, foreign, "none of the", "genes", "harmonize_genes", kind=InputError)


@pytest.mark.parametrize("name", ["tl.embed(network)", "tl.train(network)", "pp.harmonize_genes"])
def test_genes_of_another_species(made, name):
    check_unchanged(made, name, mouse, "mouse", "human", kind=InputError)


ABSENT: dict[str, tuple[Call, str]] = {
    "pp.check layer": (lambda a, w: sd.pp.check(a, layer="absent"), "layer"),
    "pp.gene_coverage layer": (lambda a, w: sd.pp.gene_coverage(a, w.network, layer="absent"), "layer"),
    "pp.concat_studies layer": (lambda a, w: sd.pp.concat_studies({"A": a}, layer="absent"), "layer"),
    "pp.harmonize_response column": (lambda a, w: sd.pp.harmonize_response(a, "absent"), "column"),
    "tl.embed layer": (lambda a, w: sd.tl.embed(a, "pca", layer="absent"), "layer"),
    "tl.embed context": (lambda a, w: sd.tl.embed(a, "scvi", context="absent"), "context"),
    "tl.train layer": (lambda a, w: sd.tl.train(a, "pca", layer="absent"), "layer"),
    "tl.train label_key": (lambda a, w: sd.tl.train(a, "pca", label_key="absent"), "label_key"),
    "tl.train groups": (lambda a, w: sd.tl.train(a, "pca", groups="absent"), "groups"),
    "tl.train conformal_by": (lambda a, w: sd.tl.train(a, "pca", conformal=0.9, conformal_by="absent"), "conformal_by"),
    "tl.train use_rep": (lambda a, w: sd.tl.train(a, use_rep="absent"), "use_rep"),
    "tl.predict_response layer": (lambda a, w: sd.tl.predict_response(a, w.by_model, layer="absent"), "layer"),
    "tl.predict_response sample_key": (
        lambda a, w: sd.tl.predict_response(a, w.by_model, sample_key="absent"),
        "sample_key",
    ),
    "tl.predict_response label_key": (
        lambda a, w: sd.tl.predict_response(a, model="pca", n_shots=2, label_key="absent"),
        "label_key",
    ),
    "tl.predict_response prompt source_key": (
        lambda a, w: sd.tl.predict_response(a, strategy="prompt", source_key="absent"),
        "source_key",
    ),
    "tl.benchmark label_key": (lambda a, w: sd.tl.benchmark(a, models="pca", label_key="absent"), "label_key"),
    "tl.benchmark sample_key": (lambda a, w: sd.tl.benchmark(a, models="pca", sample_key="absent"), "sample_key"),
    "tl.benchmark study_key": (
        lambda a, w: sd.tl.benchmark(a, models="pca", setting="cross", study_key="absent"),
        "study_key",
    ),
    "tl.benchmark patient_key": (
        lambda a, w: sd.tl.benchmark(a, models="pca", split="patient", patient_key="absent"),
        "patient_key",
    ),
    "tl.benchmark by": (lambda a, w: sd.tl.benchmark(a, models="pca", by="absent"), "by"),
    "tl.benchmark layer": (lambda a, w: sd.tl.benchmark(a, models="pca", layer="absent"), "layer"),
    "tl.few_shot_curve layer": (lambda a, w: sd.tl.few_shot_curve(a, "pca", target="study1", layer="absent"), "layer"),
    "tl.few_shot_curve label_key": (
        lambda a, w: sd.tl.few_shot_curve(a, "pca", target="study1", label_key="absent"),
        "label_key",
    ),
    "tl.few_shot_curve study_key": (
        lambda a, w: sd.tl.few_shot_curve(a, "pca", target="study1", study_key="absent"),
        "study_key",
    ),
    "tl.few_shot_curve sample_key": (
        lambda a, w: sd.tl.few_shot_curve(a, "pca", target="study1", unit="sample", sample_key="absent"),
        "sample_key",
    ),
    "tl.leakage_report label_key": (lambda a, w: sd.tl.leakage_report(a, label_key="absent"), "label_key"),
    "tl.leakage_report layer": (lambda a, w: sd.tl.leakage_report(a, layer="absent"), "layer"),
    "tl.profile layer": (lambda a, w: sd.tl.profile(a, "pca", layer="absent"), "layer"),
    "pl.response basis": (lambda a, w: sd.pl.response(a, basis="absent"), "basis"),
    "pl.response color": (lambda a, w: sd.pl.response(a, color="absent"), "color"),
    "predictor.predict layer": (lambda a, w: w.by_model.predict(a, layer="absent"), "layer"),
}


@pytest.mark.parametrize("name", ABSENT)
def test_missing_keys(made, name):
    call, argument = ABSENT[name]
    check_unchanged(made, name, lambda a: a, "absent", kind=MissingKeyError, argument=argument, calls={name: call})


MOD: dict[str, Call] = {
    "pp.check": lambda a, w: sd.pp.check(a, mod="x"),
    "pp.gene_coverage": lambda a, w: sd.pp.gene_coverage(a, w.network, mod="x"),
    "pp.harmonize_genes": lambda a, w: sd.pp.harmonize_genes(a, mod="x"),
    "pp.harmonize_response": lambda a, w: sd.pp.harmonize_response(a, "response", mod="x"),
    "pp.concat_studies": lambda a, w: sd.pp.concat_studies({"A": a}, mod="x"),
    "tl.embed": lambda a, w: sd.tl.embed(a, "pca", mod="x"),
    "tl.train": lambda a, w: sd.tl.train(a, "pca", mod="x"),
    "tl.train use_rep": lambda a, w: sd.tl.train(a, use_rep={"rna": "X_pca", "x": "X_pca"}),
    "tl.predict_response": lambda a, w: sd.tl.predict_response(a, w.by_model, mod="x"),
    "tl.predict_response prompt": lambda a, w: sd.tl.predict_response(a, strategy="prompt", mod="x"),
    "tl.benchmark": lambda a, w: sd.tl.benchmark(a, models="pca", mod="x"),
    "tl.few_shot_curve": lambda a, w: sd.tl.few_shot_curve(a, "pca", target="study1", mod="x"),
    "tl.leakage_report": lambda a, w: sd.tl.leakage_report(a, mod="x"),
    "tl.profile": lambda a, w: sd.tl.profile(a, "pca", mod="x"),
    "pl.response": lambda a, w: sd.pl.response(a, mod="x"),
    "predictor.predict": lambda a, w: w.by_model.predict(a, mod="x"),
}


@pytest.mark.parametrize("name", MOD)
def test_missing_modality(made, name):
    mdata = made.mdata.copy()
    mdata.mod["rna"].obsm["X_pca"] = np.zeros((mdata.n_obs, 2))
    before = mdata.copy()
    refused(lambda: MOD[name](mdata, made), "'x'", "rna", "prot", kind=MissingKeyError, argument="mod")
    assert_same(mdata, before)


NAMES: dict[str, tuple[Call, str, str]] = {
    "tl.embed model": (lambda a, w: sd.tl.embed(a, "scgtp"), "scgtp", "did you mean 'scGPT'"),
    "tl.embed option": (lambda a, w: sd.tl.embed(a, "pca", n_component=3), "n_component", "n_components"),
    "tl.embed recipe": (lambda a, w: sd.tl.embed(a, "pca", recipe="oficial"), "oficial", "known names"),
    "tl.train model": (lambda a, w: sd.tl.train(a, "genefromer"), "genefromer", "did you mean 'Geneformer'"),
    "tl.train strategy": (lambda a, w: sd.tl.train(a, "pca", strategy="lorra"), "lorra", "'lora'"),
    "tl.train head": (lambda a, w: sd.tl.train(a, "pca", head="logistics"), "logistics", "'logistic'"),
    "tl.train lora option": (
        lambda a, w: sd.tl.train(a, w.network, strategy="lora", lora_options={"epoch": 1}),
        "epoch",
        "epochs",
    ),
    "tl.predict_response model": (
        lambda a, w: sd.tl.predict_response(a, model="pcaa", reference=w.cells),
        "pcaa",
        "did you mean 'PCA'",
    ),
    "tl.predict_response strategy": (
        lambda a, w: sd.tl.predict_response(a, w.by_model, strategy="promt"),
        "promt",
        "'prompt'",
    ),
    "tl.predict_response unit": (
        lambda a, w: sd.tl.predict_response(a, model="pca", n_shots=1, shot_unit="cells"),
        "cells",
        "'cell'",
    ),
    "tl.predict_response template": (
        lambda a, w: sd.tl.predict_response(a, strategy="prompt", template="defualt"),
        "defualt",
        "default",
    ),
    "tl.benchmark model": (lambda a, w: sd.tl.benchmark(a, models=["X_repp"]), "X_repp", "'X_rep'"),
    "tl.benchmark setting": (lambda a, w: sd.tl.benchmark(a, models="pca", setting="crosss"), "crosss", "'cross'"),
    "tl.benchmark metric": (lambda a, w: sd.tl.benchmark(a, models="pca", metrics=["auroc", "f2"]), "f2", "f1"),
    "tl.benchmark level": (lambda a, w: sd.tl.benchmark(a, models="pca", levels=["cells"]), "cells", "'cell'"),
    "tl.benchmark baseline": (lambda a, w: sd.tl.benchmark(a, models="pca", baselines=["majorty"]), "majorty", "ity"),
    "tl.benchmark preset": (lambda a, w: sd.tl.benchmark(a, models="pca", preset="strickt"), "strickt", "'strict'"),
    "tl.benchmark strategy": (lambda a, w: sd.tl.benchmark(a, models="pca", strategy="frosen"), "frosen", "'frozen'"),
    "tl.benchmark head": (lambda a, w: sd.tl.benchmark(a, models="pca", head="mpl"), "mpl", "'mlp'"),
    "tl.few_shot_curve model": (lambda a, w: sd.tl.few_shot_curve(a, "uec", target="study1"), "uec", "UCE"),
    "tl.few_shot_curve unit": (
        lambda a, w: sd.tl.few_shot_curve(a, "pca", target="study1", unit="samples"),
        "samples",
        "'sample'",
    ),
    "tl.profile model": (lambda a, w: sd.tl.profile(a, "cellml"), "cellml", "CellLM"),
    "pp.gene_coverage model": (lambda a, w: sd.pp.gene_coverage(a, "scbret"), "scbret", "scBERT"),
    "pp.gene_coverage checkpoints": (
        lambda a, w: sd.pp.gene_coverage(a, "scBERT", checkpoints={"scbret": "."}),
        "scbret",
        "scBERT",
    ),
    "pp.check models": (lambda a, w: sd.pp.check(a, models="scbret"), "scbret", "scBERT"),
    "models.info": (lambda a, w: sd.models.info("scfoundatoin"), "scfoundatoin", "scFoundation"),
    "models.load": (lambda a, w: sd.models.load("celplm"), "celplm", "CellPLM"),
    "models.fetch": (lambda a, w: sd.models.fetch("scgtp"), "scgtp", "scGPT"),
    "models.where": (lambda a, w: sd.models.where("scgtp"), "scgtp", "scGPT"),
    "models.verify": (lambda a, w: sd.models.verify("scgtp"), "scgtp", "scGPT"),
    "models.remove": (lambda a, w: sd.models.remove("scgtp"), "scgtp", "scGPT"),
    "datasets.info": (lambda a, w: sd.datasets.info("GSE14044"), "GSE14044", "GSE140440"),
    "datasets.fetch": (lambda a, w: sd.datasets.fetch("GSE14044"), "GSE14044", "GSE140440"),
    "datasets.fetch source": (lambda a, w: sd.datasets.fetch("GSE140440", source="gео"), "gео", "geo"),
    "datasets.catalogue column": (lambda a, w: sd.datasets.catalogue(tisue="Cell line"), "tisue", "tissue"),
    "datasets.catalogue value": (lambda a, w: sd.datasets.catalogue(tissue="Cel line"), "Cel line", "Cell line"),
    "datasets.categories": (lambda a, w: sd.datasets.categories("drugtype"), "drugtype", "drug_type"),
    "datasets.collection": (lambda a, w: sd.datasets.collection("primry"), "primry", "primary"),
    "datasets.collection key": (lambda a, w: sd.datasets.collection("primary")["GSE14044"], "GSE14044", "GSE140440"),
    "pl.benchmark metric": (lambda a, w: sd.pl.benchmark(w.result, metric="aurok"), "aurok", "auroc"),
    "pl.benchmark level": (lambda a, w: sd.pl.benchmark(w.result, level="cells"), "cells", "cell"),
    "pl.heatmap models": (lambda a, w: sd.pl.heatmap(w.result, models=["X_repp"]), "X_repp", "X_rep"),
    "pl.violin over": (lambda a, w: sd.pl.violin(w.result, over="folds"), "folds", "fold"),
    "pl.radar kind": (lambda a, w: sd.pl.radar(w.result, kind="bars"), "bars", "bar"),
    "pl.roc category": (lambda a, w: sd.pl.roc(w.result, category="lung"), "lung", ""),
    "pl.precision_recall models": (lambda a, w: sd.pl.precision_recall(w.result, models=["nope"]), "nope", "X_rep"),
    "pl.calibration models": (lambda a, w: sd.pl.calibration(w.result, models=["nope"]), "nope", "X_rep"),
    "pl.critical_difference metric": (
        lambda a, w: sd.pl.critical_difference(w.result, metric="aurok"),
        "aurok",
        "auroc",
    ),
    "pl.catalogue by": (lambda a, w: sd.pl.catalogue(by="tisue"), "tisue", "tissue"),
    "pl.profile columns": (lambda a, w: sd.pl.profile(sd.models.list(), columns="dims"), "dims", "dim"),
}


@pytest.mark.parametrize("name", NAMES)
def test_unknown_names(made, name):
    call, wrong, suggestion = NAMES[name]
    check_unchanged(made, name, lambda a: a, wrong, suggestion, kind=InputError, calls={name: call})


RNG: dict[str, Call] = {
    "tl.embed": lambda r, w: sd.tl.embed(w.cells, "pca", rng=r),
    "tl.train": lambda r, w: sd.tl.train(w.cells, "pca", rng=r),
    "tl.predict_response": lambda r, w: sd.tl.predict_response(w.cells, w.by_model, rng=r),
    "tl.predict_response prompt": lambda r, w: sd.tl.predict_response(w.cells, strategy="prompt", rng=r),
    "tl.benchmark": lambda r, w: sd.tl.benchmark(w.cells, models="X_rep", baselines=[], rng=r),
    "tl.few_shot_curve": lambda r, w: sd.tl.few_shot_curve(w.cells, "pca", target="study1", rng=r),
    "tl.profile": lambda r, w: sd.tl.profile(w.cells, "pca", rng=r),
    "datasets.simulate": lambda r, w: sd.datasets.simulate(rng=r),
}


@pytest.mark.parametrize("name", RNG)
@pytest.mark.parametrize("rng", ["zero", -1, 1.5, True, [0], np.random.RandomState(0)], ids=lambda v: str(v)[:11])
def test_rng_of_another_type(made, name, rng):
    before = made.cells.copy()
    refused(lambda: RNG[name](rng, made), "generator", kind=InputError, argument="rng")
    assert_same(made.cells, before)


COMBINATIONS: dict[str, tuple[Call, tuple[str, ...]]] = {
    "train nothing": (lambda a, w: sd.tl.train(a), ("model", "use_rep")),
    "train both": (lambda a, w: sd.tl.train(a, "pca", use_rep="X_rep"), ("one of the two",)),
    "train use_rep mapping": (lambda a, w: sd.tl.train(a, use_rep={"rna": "X_rep"}), ("use_rep", "MuData")),
    "train use_rep number": (lambda a, w: sd.tl.train(a, use_rep=3), ("use_rep", "3")),
    "train use_rep empty": (lambda a, w: sd.tl.train(a, use_rep=[]), ("use_rep",)),
    "train model number": (lambda a, w: sd.tl.train(a, 3), ("model", "3")),
    "train head number": (lambda a, w: sd.tl.train(a, "pca", head=3), ("head",)),
    "train head without proba": (lambda a, w: sd.tl.train(a, "pca", head=svc()), ("predict_proba",)),
    "train head option": (
        lambda a, w: sd.tl.train(a, "pca", head_options={"epoch": 3}),
        ("head_options", "epoch", "epochs"),
    ),
    "train lora head": (lambda a, w: sd.tl.train(a, w.network, strategy="lora", head="logistic"), ("head", "mlp")),
    "train lora baseline": (lambda a, w: sd.tl.train(a, "pca", strategy="lora"), ("PCA", "network")),
    "train lora_options": (lambda a, w: sd.tl.train(a, "pca", lora_options={"r": 4}), ("strategy='lora'",)),
    "train calibrate": (lambda a, w: sd.tl.train(a, "pca", calibrate="platt"), ("platt", "sigmoid")),
    "train conformal": (lambda a, w: sd.tl.train(a, "pca", conformal=1.5), ("conformal", "1.5")),
    "train n_folds": (lambda a, w: sd.tl.train(a, "pca", calibrate="sigmoid", n_folds=1), ("n_folds", "1")),
    "train checkpoint": (lambda a, w: sd.tl.train(a, "scGPT", checkpoint="nowhere"), ("nowhere", "layout")),
    "train prompt model": (lambda a, w: sd.tl.train(a, "gpt-4o-mini"), ("GPT-4o-mini",)),
    "predict nothing": (lambda a, w: sd.tl.predict_response(a), ("predictor", "reference")),
    "predict both": (lambda a, w: sd.tl.predict_response(a, w.by_model, model="pca"), ("predictor", "model")),
    "predict other type": (lambda a, w: sd.tl.predict_response(a, 3), ("predictor", "folder")),
    "predict key_added": (lambda a, w: sd.tl.predict_response(a, w.by_model, key_added="a/b"), ("key_added", "/")),
    "predict key_added number": (lambda a, w: sd.tl.predict_response(a, w.by_model, key_added=3), ("key_added",)),
    "predict conformal": (lambda a, w: sd.tl.predict_response(a, w.by_model, conformal=True), ("conformal=0.9",)),
    "predict ood": (lambda a, w: sd.tl.predict_response(a, w.by_model, ood=True), ("ood=True",)),
    "predict abstain": (lambda a, w: sd.tl.predict_response(a, w.by_model, abstain=0.2), ("abstain", "0.2")),
    "predict abstain list": (lambda a, w: sd.tl.predict_response(a, w.by_model, abstain=[1]), ("abstain",)),
    "predict shots": (lambda a, w: sd.tl.predict_response(a, model="pca", n_shots=9999), ("n_shots", "9999")),
    "predict negative shots": (lambda a, w: sd.tl.predict_response(a, model="pca", n_shots=-1), ("n_shots", "-1")),
    "embed several": (lambda a, w: sd.tl.embed(a, ["pca", "hvg"], key_added="k"), ("key_added", "several")),
    "embed no model": (lambda a, w: sd.tl.embed(a, []), ("model",)),
    "embed key_added number": (lambda a, w: sd.tl.embed(a, "pca", key_added=3), ("key_added", "3")),
    "embed number": (lambda a, w: sd.tl.embed(a, 3), ("model", "3")),
    "embed prompt": (lambda a, w: sd.tl.embed(a, "gpt-4o-mini"), ("strategy='prompt'",)),
    "embed key_added": (lambda a, w: sd.tl.embed(a, "pca", key_added="a/b"), ("key_added", "/")),
    "embed checkpoint": (lambda a, w: sd.tl.embed(a, "pca", checkpoint="x"), ("checkpoint", "fitted")),
    "embed options": (lambda a, w: sd.tl.embed(a, w.network, max_length=4), ("loaded",)),
    "embed option value": (lambda a, w: sd.tl.embed(a, "pca", n_components="many"), ("n_components", "many")),
    "embed batch_size": (lambda a, w: sd.tl.embed(a, w.network, batch_size=0), ("batch_size", "0")),
    "embed device": (lambda a, w: sd.tl.embed(a, w.network, device="abacus"), ("device", "abacus")),
    "embed precision": (lambda a, w: sd.tl.embed(a, w.network, precision="int3"), ("precision", "int3")),
    "embed backed copy": (lambda a, w: sd.tl.embed(backed(a, w), "pca", copy=True), ("copy", "to_memory")),
    "benchmark number": (lambda a, w: sd.tl.benchmark(a, models=3), ("models", "3")),
    "benchmark none": (lambda a, w: sd.tl.benchmark(a, models=[], baselines=[]), ("models",)),
    "benchmark twice": (lambda a, w: sd.tl.benchmark(a, models=["X_rep", "X_rep"]), ("twice",)),
    "benchmark array": (lambda a, w: sd.tl.benchmark(a, models=np.ones((3, 2))), ("3",)),
    "benchmark n_folds": (lambda a, w: sd.tl.benchmark(a, models="X_rep", n_folds=1), ("n_folds", "1")),
    "benchmark n_folds text": (lambda a, w: sd.tl.benchmark(a, models="X_rep", n_folds="ten"), ("n_folds", "ten")),
    "benchmark test_size": (lambda a, w: sd.tl.benchmark(a, models="X_rep", split="cell", test_size=2), ("test_size",)),
    "few_shot target": (lambda a, w: sd.tl.few_shot_curve(a, "pca", target="study9"), ("target", "study9", "study1")),
    "few_shot shots": (lambda a, w: sd.tl.few_shot_curve(a, "pca", target="study1", shots=[-1]), ("shots",)),
    "few_shot many": (lambda a, w: sd.tl.few_shot_curve(a, "pca", target="study1", shots=[9999]), ("shots", "9999")),
    "few_shot number": (lambda a, w: sd.tl.few_shot_curve(a, "pca", target="study1", shots=4), ("shots",)),
    "profile prompt": (lambda a, w: sd.tl.profile(a, "gpt-4o-mini"), ("GPT-4o-mini", "embedding")),
    "profile n_cells": (lambda a, w: sd.tl.profile(a, "pca", n_cells=0), ("n_cells",)),
    "check chunk_size": (lambda a, w: sd.pp.check(a, chunk_size=0), ("chunk_size", "0")),
    "harmonize mapping": (lambda a, w: sd.pp.harmonize_response(a, "response", mapping=["R"]), ("mapping", "dict")),
    "harmonize decision": (
        lambda a, w: sd.pp.harmonize_response(a, "response", mapping={"resistant": "res"}),
        ("mapping", "res"),
    ),
    "harmonize open": (lambda a, w: sd.pp.harmonize_response(a, "drug"), ("erlotinib", "mapping")),
    "harmonize target": (
        lambda a, w: sd.pp.harmonize_response(a, "response", {"resistant": "sensitive"}, key_added="true_state"),
        ("key_added", "true_state"),
    ),
    "harmonize_genes table": (lambda a, w: sd.pp.harmonize_genes(a, table="absent.tsv"), ("table", "absent.tsv")),
    "concat list": (lambda a, w: sd.pp.concat_studies([a]), ("studies", "dict")),
    "concat nothing": (lambda a, w: sd.pp.concat_studies({}), ("studies", "no study")),
    "concat name": (lambda a, w: sd.pp.concat_studies({"a:b": a}), ("studies", "colon")),
    "concat join": (lambda a, w: sd.pp.concat_studies({"a": a}, join="left"), ("join", "left")),
    "concat genes": (lambda a, w: sd.pp.concat_studies({"a": a, "b": foreign(a.copy())}), ("gene", "harmonize_genes")),
    "gene_coverage baseline": (lambda a, w: sd.pp.gene_coverage(a, "pca"), ("PCA", "vocabulary")),
    "gene_coverage number": (lambda a, w: sd.pp.gene_coverage(a, 3), ("model", "3")),
    "predict width": (lambda a, w: w.by_rep.predict_features(np.ones((3, 9))), ("X", "9", "4")),
    "response size": (lambda a, w: sd.pl.response(a, size=0), ("size", "0")),
    "models.info number": (lambda a, w: sd.models.info(3), ("3",)),
    "models.load baseline": (lambda a, w: sd.models.load("pca"), ("PCA", "fitted")),
    "models.load checkpoint": (lambda a, w: sd.models.load("scGPT", "nowhere"), ("nowhere", "scgpt")),
    "models.fetch baseline": (lambda a, w: sd.models.fetch("pca"), ("pca", "checkpoint")),
    "models.register": (lambda a, w: sd.models.register(int), ("model", "ModelCard")),
    "datasets.info number": (lambda a, w: sd.datasets.info(3), ("key", "3")),
    "datasets.load absent": (lambda a, w: sd.datasets.load("absent.h5ad"), ("path", "absent.h5ad")),
    "datasets.collection empty": (
        lambda a, w: sd.datasets.collection("external", accession="GSE140440"),
        ("filters",),
    ),
    "simulate n_cells": (lambda a, w: sd.datasets.simulate(n_cells=2), ("n_cells", "2")),
    "simulate n_studies": (lambda a, w: sd.datasets.simulate(n_studies=0), ("n_studies", "0")),
    "simulate fraction": (lambda a, w: sd.datasets.simulate(resistant_fraction=2), ("resistant_fraction",)),
    "simulate text": (lambda a, w: sd.datasets.simulate(n_cells="many"), ("n_cells", "many")),
    "simulate protein path": (lambda a, w: sd.datasets.simulate(protein=True, path="x.h5ad"), ("path", "protein")),
}


def svc():
    from sklearn.svm import LinearSVC

    return LinearSVC()


def backed(a, w):
    path = w.folder / "backed.h5ad"
    if not path.exists():
        w.cells.write_h5ad(path)
    return ad.read_h5ad(path, backed="r")


@pytest.mark.parametrize("name", COMBINATIONS)
def test_arguments_that_do_not_fit(made, name):
    backed(None, made).file.close()
    call, words = COMBINATIONS[name]
    check_unchanged(made, name, lambda a: a, *words, calls={name: call})


PLOTS: dict[str, Callable[..., Any]] = {
    name: getattr(sd.pl, name)
    for name in (
        "benchmark",
        "heatmap",
        "violin",
        "radar",
        "roc",
        "precision_recall",
        "calibration",
        "critical_difference",
    )
}


@pytest.mark.parametrize("name", [*PLOTS, "profile", "catalogue"])
@pytest.mark.parametrize("thing", [3, "result", pd.DataFrame()], ids=lambda v: type(v).__name__)
def test_figures_of_something_else(name, thing):
    argument = "result" if name in PLOTS else "" if isinstance(thing, pd.DataFrame) else "table"
    refused(lambda: getattr(sd.pl, name)(thing), kind=InputError, argument=argument)


@pytest.mark.parametrize("name", ["benchmark", "heatmap", "violin", "roc", "precision_recall", "calibration"])
def test_figures_into_something_else(made, name):
    refused(lambda: PLOTS[name](made.result, ax=3), "axes", kind=InputError, argument="ax")


def test_too_little_to_draw(made):
    refused(lambda: sd.pl.radar(made.result), "categories", "bar", kind=InputError, argument="kind")
    refused(lambda: sd.pl.critical_difference(made.result), "categories", kind=InputError, argument="result")
    refused(lambda: sd.pl.calibration(made.result, n_bins=1), "1", kind=InputError, argument="n_bins")


SAVED: dict[str, Call] = {
    "predictor.save": lambda p, w: w.by_model.save(p / "x"),
    "datasets.simulate": lambda p, w: sd.datasets.simulate(n_cells=60, n_genes=40, path=p / "x.h5ad"),
    "pp.concat_studies": lambda p, w: sd.pp.concat_studies({"A": w.cells}, path=p / "x.h5ad"),
    "datasets.collection.concat": lambda p, w: sd.datasets.collection("primary").concat(p / "x.h5ad"),
    "tl.embed store": lambda p, w: sd.tl.embed(w.cells.copy(), w.network, store=p / "x"),
    "tl.benchmark store": lambda p, w: sd.tl.benchmark(
        w.cells, models="X_rep", head="logistic", baselines=[], n_folds=2, store=p / "x"
    ),
    "result.to_parquet": lambda p, w: w.result.to_parquet(p / "x"),
    "result.to_csv": lambda p, w: w.result.to_csv(p / "x.csv"),
    "result.report": lambda p, w: w.result.report(p / "x.html"),
    "pl.benchmark": lambda p, w: sd.pl.benchmark(w.result, save=p / "x.png"),
    "pl.heatmap": lambda p, w: sd.pl.heatmap(w.result, save=p / "x.png"),
    "pl.violin": lambda p, w: sd.pl.violin(w.result, save=p / "x.png"),
    "pl.roc": lambda p, w: sd.pl.roc(w.result, save=p / "x.png"),
    "pl.calibration": lambda p, w: sd.pl.calibration(w.result, save=p / "x.png"),
    "pl.response": lambda p, w: sd.pl.response(w.cells, save=p / "x.png"),
    "pl.profile": lambda p, w: sd.pl.profile(sd.models.list(), columns="dim", save=p / "x.png"),
    "pl.catalogue": lambda p, w: sd.pl.catalogue(by="tissue", save=p / "x.png"),
}


@pytest.mark.parametrize("name", SAVED)
def test_output_that_cannot_be_written(made, name, tmp_path):
    (tmp_path / "file").write_text("in the way")
    before, files = made.cells.copy(), listing(tmp_path)
    refused(lambda: SAVED[name](tmp_path / "file", made), "file", kind=InputError)
    assert_same(made.cells, before)
    assert listing(tmp_path) == files
    assert (tmp_path / "file").read_text() == "in the way"


def test_figure_of_unknown_kind(made, tmp_path):
    refused(lambda: sd.pl.heatmap(made.result, save=tmp_path / "x.docx"), "docx", "png", argument="save")
    assert listing(tmp_path) == {}


def test_saving_over_something_else(made, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    refused(lambda: made.by_model.save(tmp_path), "not a predictor", kind=InputError, argument="path")
    assert listing(tmp_path) == {"notes.txt": 4}
    made.by_model.save(tmp_path / "p")
    files = listing(tmp_path)
    refused(lambda: made.by_rep.save(tmp_path / "p"), "overwrite=True", kind=InputError, argument="path")
    assert listing(tmp_path) == files


def test_head_that_only_a_pickle_holds(made, tmp_path):
    from sklearn.ensemble import RandomForestClassifier

    predictor = sd.tl.train(made.cells, use_rep="X_rep", head=RandomForestClassifier(n_estimators=2), rng=0)
    refused(lambda: predictor.save(tmp_path / "p"), "pickle", kind=InputTypeError, argument="head")
    assert listing(tmp_path) == {}


FOLDER_FAULTS: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "absent": (lambda p: shutil.rmtree(p), ("predictor.json",)),
    "no manifest": (lambda p: (p / "predictor.json").unlink(), ("predictor.json",)),
    "empty manifest": (lambda p: (p / "predictor.json").write_text(""), ("JSON",)),
    "cut manifest": (lambda p: cut(p / "predictor.json"), ("JSON",)),
    "binary manifest": (lambda p: (p / "predictor.json").write_bytes(b"\xff\xfe\x00"), ("JSON",)),
    "list": (lambda p: (p / "predictor.json").write_text("[1]"), ("format",)),
    "other format": (lambda p: edit(p, format=99), ("format 99",)),
    "fields missing": (lambda p: (p / "predictor.json").write_text('{"format": 1}'), ("predictor.json",)),
    "files of another type": (lambda p: edit(p, files=["head.safetensors"]), ("predictor.json",)),
    "head of another type": (lambda p: edit(p, head=3), ("predictor.json",)),
    "head unknown": (lambda p: edit(p, head={"kind": "forest", "params": {}, "classes": []}), ("forest",)),
    "representation unknown": (lambda p: edit(p, representation={"kind": "dream"}), ("predictor.json",)),
    "no arrays": (lambda p: (p / "head.safetensors").unlink(), ("head.safetensors", "missing")),
    "cut arrays": (lambda p: cut(p / "head.safetensors"), ("head.safetensors", "changed")),
    "outside": (lambda p: edit(p, files={"../secret": "0"}), ("../secret",)),
}


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def edit(folder: Path, **values: Any) -> None:
    manifest = json.loads((folder / "predictor.json").read_text())
    (folder / "predictor.json").write_text(json.dumps(manifest | values))


@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_predictor_folders_that_are_none(made, fault, tmp_path):
    spoil, words = FOLDER_FAULTS[fault]
    folder = tmp_path / "p"
    shutil.copytree(made.folder / "by_model", folder)
    spoil(folder)
    files = listing(tmp_path)
    refused(lambda: sd.load_predictor(folder), *words, kind=CheckpointError)
    cells = made.cells.copy()
    refused(lambda: sd.tl.predict_response(cells, folder), *words, kind=CheckpointError)
    assert_same(cells, made.cells)
    assert listing(tmp_path) == files


@pytest.mark.parametrize("thing", [None, 3, b"p"], ids=repr)
def test_predictor_path_of_another_type(thing):
    refused(lambda: sd.load_predictor(thing), "folder", kind=InputError, argument="path")


def test_checkpoint_for_a_predictor_without_one(made):
    refused(lambda: sd.load_predictor(made.folder / "by_model", checkpoint="x"), "fitted", argument="checkpoint")


@pytest.mark.parametrize("name", ["calibrate", "conformal"])
def test_fewer_groups_than_the_split_needs(made, name):
    """Calibration and conformal sets hold groups out; one group per class leaves nothing to hold out."""
    options: Any = {"calibrate": "sigmoid"} if name == "calibrate" else {"conformal": 0.9}
    cells = made.cells.copy()
    cells.obs["sample"] = cells.obs["response"].astype(str)
    del cells.obs["study"]  # samples of different studies are different samples
    before = cells.copy()
    refused(lambda: sd.tl.train(cells, "pca", **options), "group", "two or more", kind=InputError, argument="groups")
    assert_same(cells, before)


def test_fewer_samples_than_folds_is_said(made):
    cells = made.cells.copy()
    cells.obs["sample"] = cells.obs["response"].astype(str)
    del cells.obs["study"]
    result = CALLS["tl.benchmark(use_rep)"](cells, made)
    assert result.table["value"].isna().all() and result.table["reason"].str.contains("sample").all()


def test_embedding_of_another_model(made):
    reference, query = made.cells.copy(), made.cells.copy()
    sd.tl.embed(reference, made.network, key_added="both")
    sd.tl.embed(query, "pca", key_added="both", n_components=made.network.dim)
    predictor = sd.tl.train(reference, use_rep="X_both", head="logistic", rng=0)
    before = query.copy()
    refused(lambda: sd.tl.predict_response(query, predictor), "pca", "Geneformer", kind=InputError, argument="obsm")
    assert_same(query, before)


def test_unknown_names_are_key_errors_too():
    with pytest.raises(KeyError):
        sd.models.info("nothing")
    assert issubclass(UnknownNameError, InputError)


# The command line: exit code 2, one sentence, no traceback, nothing left behind.

COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "normalised": ("embed log.h5ad --model pca -o x.h5ad", ("adata.X", "whole numbers", "layer=")),
    "no genes": ("embed empty.h5ad --model pca -o x.h5ad", ("adata", "0 genes")),
    "layer": ("embed cells.h5ad --model pca --layer absent -o x.h5ad", ("layer", "absent")),
    "option": ("embed cells.h5ad --model pca --set n_component=3 -o x.h5ad", ("n_component", "n_components")),
    "option value": ("embed cells.h5ad --model pca --set n_components=many -o x.h5ad", ("n_components", "many")),
    "option form": ("embed cells.h5ad --model pca --set n_components -o x.h5ad", ("--set", "name=value")),
    "option yaml": ("embed cells.h5ad --model pca --set n_components=[1 -o x.h5ad", ("--set", "n_components")),
    "precision": ("embed cells.h5ad --model pca --precision int3 -o x.h5ad", ("precision", "int3")),
    "seed": ("embed cells.h5ad --model pca --seed -1 -o x.h5ad", ("seed", "-1")),
    "modality": ("embed cells.h5mu --model pca --mod x -o x.h5mu", ("mod", "rna", "prot")),
    "output kind": ("embed cells.h5mu --model pca -o x.h5ad", ("output", "x.h5ad", ".h5mu")),
    "folder in the way": ("embed cells.h5ad --model pca -o file/x.h5ad", ("output", "file")),
    "check layer": ("check cells.h5ad --layer absent", ("layer", "absent")),
    "check kind": ("check run.yaml", ("run.yaml", ".h5ad")),
    "train labels": ("train yes.h5ad --model pca -o p", ("label_key", "yes", "sensitive")),
    "train one label": ("train one.h5ad --model pca -o p", ("label_key", "both classes")),
    "train strategy": ("train cells.h5ad --model pca --strategy lorra -o p", ("strategy", "lorra", "lora")),
    "train head": ("train cells.h5ad --model pca --head mpl -o p", ("head", "mpl", "mlp")),
    "train use_rep": ("train cells.h5ad --use-rep absent -o p", ("use_rep", "absent", "X_rep")),
    "train nothing": ("train cells.h5ad -o p", ("model", "use_rep")),
    "train option": ("train cells.h5ad --model pca --set n_fold=3 -o p", ("n_fold",)),
    "train option twice": ("train cells.h5ad --model pca --head mlp --set head=mlp -o p", ("options", "head")),
    "train over": ("train cells.h5ad --model pca -o by_model", ("output", "overwrite")),
    "train file": ("train cells.h5ad --model pca -o file", ("output", "folder")),
    "predict genes": ("predict foreign.h5ad --predictor by_model -o x.csv", ("adata.var", "none of the")),
    "predict broken": ("predict cells.h5ad --predictor broken -o x.csv", ("predictor.json", "JSON")),
    "predict kind": ("predict cells.h5ad --predictor by_model -o x.xlsx", ("output", ".parquet")),
    "predict key": ("predict cells.h5ad --predictor by_model --key-added a/b -o x.csv", ("key_added", "a/b")),
    "predict option": ("predict cells.h5ad --predictor by_model --set abstain=7 -o x.csv", ("abstain", "7")),
    "benchmark model": ("benchmark cells.h5ad --model X_repp -o r", ("X_repp", "X_rep")),
    "benchmark split": ("benchmark cells.h5ad --model X_rep --split sideways -o r", ("sideways", "sample")),
    "benchmark folds": ("benchmark cells.h5ad --model X_rep --n-folds 1 -o r", ("n_folds", "1")),
    "benchmark by": ("benchmark cells.h5ad --model X_rep --by absent -o r", ("by", "absent")),
    "benchmark labels": ("benchmark yes.h5ad --model X_rep -o r", ("label_key", "yes")),
    "benchmark option": ("benchmark cells.h5ad --model X_rep --set test_sise=0.2 -o r", ("test_sise", "test_size")),
    "benchmark spec field": ("benchmark run.yaml", ("modles", "models")),
    "benchmark spec absent": ("benchmark absent.yaml", ("absent.yaml",)),
    "report": ("report absent -o x.html", ("absent", "benchmark")),
    "models fetch": ("models fetch pca", ("pca", "checkpoint")),
    "datasets info": ("datasets info GSE14044", ("GSE14044", "GSE140440")),
    "datasets fetch": ("datasets fetch GSE14044", ("GSE14044", "GSE140440")),
}

#: Commands that were understood, but whose files cannot be used (exit code 3).
REFUSED = {
    "normalised", "no genes", "layer", "modality", "check layer", "check kind", "train labels", "train one label",
    "train use_rep", "predict genes", "predict broken", "benchmark by", "benchmark split", "benchmark labels",
    "report", "models fetch",
}  # fmt: skip


@pytest.fixture(scope="module")
def desk(made, tmp_path_factory) -> Path:
    """A folder of good and bad files."""
    folder = tmp_path_factory.mktemp("desk")
    files = {
        "cells": made.cells, "log": normalised(made.cells.copy()), "empty": no_genes(made.cells),
        "yes": relabel(lambda a: np.where(np.arange(a.n_obs) % 2, "yes", "no"))(made.cells.copy()),
        "one": relabel(lambda a: "resistant")(made.cells.copy()), "foreign": foreign(made.cells.copy()),
    }  # fmt: skip
    for name, cells in files.items():
        cells.write_h5ad(folder / f"{name}.h5ad")
    made.mdata.write_h5mu(folder / "cells.h5mu")
    for name in ("by_model", "broken"):
        made.by_model.save(folder / name)
    (folder / "broken" / "predictor.json").write_text("{")
    (folder / "file").write_text("in the way")
    (folder / "run.yaml").write_text("input: cells.h5ad\noutput: r\nmodles: [pca]\n")
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(desk, name, monkeypatch, capsys):
    from scdrugmap.cli import main

    command, words = COMMANDS[name]
    monkeypatch.chdir(desk)
    monkeypatch.setattr("sys.argv", ["scdrugmap", *command.split()])
    files = listing(desk)
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert ended.value.code == (3 if name in REFUSED else 2), printed
    assert "Traceback" not in printed.err
    assert printed.err.count("scdrugmap: ") == 1, printed.err
    for word in words:
        assert word.lower() in printed.err.lower(), printed.err
    assert listing(desk) == files
