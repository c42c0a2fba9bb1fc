"""``sd.tl.benchmark``: the table, baselines, presets, resuming, bad input."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score

import scdrugmap as sd
from scdrugmap._errors import InputError, MissingKeyError, ScDrugMapWarning, UnknownNameError
from scdrugmap._keys import SAME_SAMPLE
from scdrugmap.evaluation.grid.contenders import rule_scores
from scdrugmap.evaluation.grid.table import COLUMNS, aggregate
from scdrugmap.evaluation.result.result import BenchmarkResult

RULES = ["all_sensitive", "majority", "random"]


@pytest.fixture
def run(cohort):
    def go(adata=None, **kwargs):
        args = {"models": "X_log", "head": "logistic", "n_folds": 4, "baselines": RULES, "rng": 0} | kwargs
        return sd.tl.benchmark(cohort() if adata is None else adata, **args)

    return go


def test_table_is_tidy_and_complete(run):
    result = run(setting=["pooled", "cross"], by=[None, "tissue"])
    table = result.table
    assert list(table.columns) == COLUMNS
    assert not table.duplicated([*COLUMNS[:7], "fold", "level", "metric"]).any()
    assert (table["value"].isna() == (table["reason"] != "")).all()
    assert set(table["model"]) == {"X_log", *RULES}
    cross = table[(table["setting"] == "cross") & (table["category"] == "all")]
    assert set(cross["group"]) == {"S0", "S1", "S2", "S3"}
    lone = table[(table["setting"] == "cross") & (table["category"] == "marrow")]
    assert set(lone["model"]) == {"X_log", *RULES}
    assert lone["reason"].str.contains("only one study: S3").all()


def test_values_equal_scikit_learn_on_the_stored_folds(run, cohort):
    adata = cohort()
    result = run(adata)
    X, y = adata.obsm["X_log"], (adata.obs["response"] == "sensitive").to_numpy().astype(int)
    table = result.table.query("model == 'X_log' and level == 'cell'").set_index(["fold", "metric"])["value"]
    from scdrugmap.response import make_head

    for fold in result.partitions[0].folds:
        assert not set(adata.obs["sample"].iloc[fold.train]) & set(adata.obs["sample"].iloc[fold.test])
        model = make_head("logistic", random_state=0).fit(X[fold.train], y[fold.train])
        score = model.predict_proba(X[fold.test])[:, 1]
        assert table[fold.name, "auroc"] == pytest.approx(roc_auc_score(y[fold.test], score), abs=1e-6)
        assert table[fold.name, "f1"] == pytest.approx(f1_score(y[fold.test], score >= 0.5), abs=1e-6)


def test_all_models_share_partitions_and_models_do_not_change_them(run, cohort):
    adata = cohort()
    one = run(adata, models=["X_log"])
    two = run(adata, models={"a": adata.obsm["X_log"][:, :3], "b": "X_log"})
    assert [p.hash for p in one.partitions] == [p.hash for p in two.partitions]
    assert run(adata, rng=1).partitions[0].hash != one.partitions[0].hash


def test_all_sensitive_is_the_floor(run):
    result = run(by="tissue")
    for row in result.data.itertuples():
        found = result.summary(metrics="f1").query("category == @row.category and model == 'all_sensitive'")
        assert found["value"].item() == pytest.approx(row.floor_f1)
    assert (result.summary(metrics="f1")["floor"].notna()).all()


def test_rules():
    y = np.array([1, 0, 0, 0])
    assert (rule_scores("all_sensitive", y, np.arange(3), 0) == 1).all()
    assert (rule_scores("majority", y, np.arange(3), 0) == 0.25).all()
    draws = rule_scores("random", y, np.arange(20_000), 0)
    assert draws.mean() == pytest.approx(0.25, abs=0.02)
    np.testing.assert_array_equal(draws, rule_scores("random", y, np.arange(20_000), 0))


def test_fitted_baselines_learn_from_training_cells_only(run, cohort, monkeypatch):
    from scdrugmap.models.pca import PCA

    adata = cohort()
    seen = []
    fit = PCA.fit

    def spied(self, X, genes, **kw):
        seen.append(X[slice(None)].toarray())
        return fit(self, X, genes, **kw)

    monkeypatch.setattr(PCA, "fit", spied)
    result = run(adata, models="X_log", baselines=["pca"])
    rows = {r.tobytes(): i for i, r in enumerate(adata.X)}
    trained = [sorted(rows[r.tobytes()] for r in X) for X in seen]
    assert trained == [sorted(f.train) for f in result.partitions[0].folds]


def test_depth_and_sample_probe(run, cohort):
    adata = cohort(sample_effect=2.0)
    result = run(adata, baselines=["depth", "sample_probe"])
    probe = result.table.query("setting == 'probe' and model == 'X_log'").set_index("metric")["value"]
    assert probe["sample_accuracy"] > 0.9
    assert probe["sample_chance"] == pytest.approx(1 / 16)
    assert "depth" in set(result.table.query("setting == 'pooled'")["model"])
    assert "probe" not in set(result.summary()["setting"])


def test_random_cells_say_so_everywhere(run):
    result = run(split="cell")
    assert result.table["note"].str.contains(SAME_SAMPLE).all()
    assert result.summary()["note"].str.contains(SAME_SAMPLE).all()
    assert SAME_SAMPLE in result.info["warnings"]
    assert SAME_SAMPLE in "".join(result.partition_frame()["notes"])


def test_presets(run):
    published = run(preset="published", head="mlp", head_options={"epochs": 1})
    assert published.contenders["head"][0] == "published"
    assert set(published.table["split"]) == {"cell"}
    assert set(published.table["metric"]) == {"f1", "auroc", "accuracy", "precision", "recall"}
    assert published.info["duplicates"] == "ignore"
    assert set(run(preset="published", metrics="mcc").table["metric"]) == {"mcc"}
    assert len(run(preset="published", test_size=0.2).partitions[0].folds) == 1
    with pytest.raises(UnknownNameError, match="strict"):
        run(preset="stric")


def test_leave_one_patient_or_drug_out(run, cohort):
    adata = cohort()
    adata.obs["patient"] = [f"P{int(s[1:]) // 4}" for s in adata.obs["sample"]]
    adata.obs["drug"] = np.where(adata.obs["study"].isin(["S0", "S1"]), "x", "y")
    by_patient = run(adata, setting="cross", split="patient", levels=("cell", "sample", "patient"))
    assert set(by_patient.table["group"]) == {"S0/P0", "S1/P1", "S2/P2", "S3/P3"}
    assert set(by_patient.table["level"]) == {"cell", "sample", "patient"}
    assert set(run(adata, setting="cross", split="drug").table["group"]) == {"x", "y"}


def test_sample_level():
    y, score = np.array([1, 1, 0, 0, 1]), np.array([0.9, 0.3, 0.2, 0.4, 0.1])
    got = aggregate(y, score, np.array(["b", "b", "a", "a", "c"]))
    np.testing.assert_array_equal(got[0], [0, 1, 1])
    np.testing.assert_allclose(got[1], [0.3, 0.6, 0.1])
    np.testing.assert_array_equal(got[2], [0, 1, 0])
    assert "both labels" in aggregate(y, score, np.zeros(5))[4]


def test_heads_by_name_list_and_estimator(run):
    result = run(head=["logistic", LogisticRegression(C=0.1)])
    assert list(result.contenders["head"][:2]) == ["logistic", "LogisticRegression"]
    assert result.compare("X_log (frozen, logistic)", "X_log (frozen, LogisticRegression)")["n_folds"].eq(4).all()
    with pytest.raises(UnknownNameError):
        result.compare("X_log", "majority")


def test_mlp_folds_train_together_and_alone_alike(run):
    batched = run(head="mlp", head_options={"epochs": 3, "hidden": (16,)}).predictions
    again = run(head="mlp", head_options={"epochs": 3, "hidden": (16,)}).predictions
    pd.testing.assert_frame_equal(batched, again)


def test_custom_model_and_metric(run, cohort):
    adata = cohort()
    truth = (adata.obs["response"] == "sensitive").to_numpy()

    def oracle(train, test, seed):
        return truth[test].astype(float)

    result = run(adata, models={"oracle": oracle}, metrics={"hit": lambda y, s, p: float((y == p).mean())})
    assert result.summary(metrics="hit").query("model == 'oracle'")["value"].item() == 1


def test_a_failing_model_is_a_row_with_the_reason_and_a_warning(run):
    def broken(train, test, seed):
        raise RuntimeError("out of ideas")

    with pytest.warns(ScDrugMapWarning, match="out of ideas"):
        result = run(models={"broken": broken, "fine": "X_log"})
    assert result.table.query("model == 'broken'")["reason"].str.contains("out of ideas").all()
    assert result.table.query("model == 'fine'")["value"].notna().any()


def test_cells_without_embedding_train_nothing_and_get_the_training_share(run, cohort):
    adata = cohort()
    adata.obsm["X_log"][::7] = np.nan
    result = run(adata)
    assert np.isfinite(result.predictions["score"]).all()
    fold = result.partitions[0].folds[0]
    rows = result.predictions.query("unit == 0").set_index("row")["score"]
    y = (adata.obs["response"] == "sensitive").to_numpy()
    usable = fold.train[np.isfinite(adata.obsm["X_log"][fold.train]).all(axis=1)]
    absent = [r for r in fold.test if r % 7 == 0]
    np.testing.assert_allclose(rows[absent], y[usable].mean(), atol=1e-6)


def test_input_is_not_changed(run, cohort):
    adata = cohort()
    before = adata.copy()
    run(adata, models=["X_log", "pca"], baselines=["depth", "hvg"])
    np.testing.assert_array_equal(adata.X, before.X)
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert list(adata.obsm) == list(before.obsm)
    assert dict(adata.uns) == dict(before.uns)


def test_mudata(run, cohort):
    mudata = pytest.importorskip("mudata")
    adata = cohort()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mdata = mudata.MuData({"rna": adata})
    pd.testing.assert_frame_equal(run(mdata).table, run(adata).table)


def test_unlabelled_cells_take_no_part(run, cohort):
    adata = cohort()
    adata.obs["response"] = adata.obs["response"].where(adata.obs["sample"] != "p0")
    with pytest.warns(ScDrugMapWarning, match="12 of 192"):
        result = run(adata)
    assert not set(result.predictions["row"]) & set(range(12))


# Resuming ------------------------------------------------------------------------------------------------


def test_second_call_computes_nothing_and_agrees(run, tmp_path):
    first = run(store=tmp_path, baselines=[*RULES, "pca", "sample_probe"])
    stamps = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "units").iterdir()}
    second = run(store=tmp_path, baselines=[*RULES, "pca", "sample_probe"])
    assert first.info["n_resumed"] == 0
    assert second.info["n_resumed"] == second.info["n_units"] == len(stamps)
    assert stamps == {f.name: f.stat().st_mtime_ns for f in (tmp_path / "units").iterdir()}
    pd.testing.assert_frame_equal(first.table, second.table)
    manifest = json.loads(next((tmp_path / "manifests").iterdir()).read_text())
    for key in ("versions", "representation_sha256", "partition_sha256", "seed", "device", "seconds", "memory_bytes"):
        assert key in manifest
    assert pd.read_parquet(tmp_path / "units")["model"].nunique() == 5
    loaded = BenchmarkResult.from_parquet(tmp_path)
    pd.testing.assert_frame_equal(loaded.table, first.table)


def test_missing_units_are_filled_and_nothing_else(run, tmp_path):
    first = run(store=tmp_path)
    units = sorted((tmp_path / "units").iterdir())
    for file in units[::3]:
        file.unlink()
    units[1].write_bytes(b"torn")
    with pytest.warns(ScDrugMapWarning, match="cannot be read"):
        again = run(store=tmp_path)
    assert again.info["n_resumed"] == len(units) - len(units[::3]) - 1
    pd.testing.assert_frame_equal(first.table, again.table)


def test_changed_content_is_computed_again(run, cohort, tmp_path):
    adata = cohort()
    run(adata, store=tmp_path, baselines=[])
    adata.obsm["X_log"] = adata.obsm["X_log"] + 1
    assert run(adata, store=tmp_path, baselines=[]).info["n_resumed"] == 0
    assert run(adata, store=tmp_path, baselines=[], rng=5).info["n_resumed"] == 0
    assert run(adata, store=tmp_path, baselines=[], head=LogisticRegression(C=2)).info["n_resumed"] == 0
    assert run(adata, store=tmp_path, baselines=[]).info["n_resumed"] == 4


# Bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"models": "scGTP"}, UnknownNameError, "scgpt"),
        ({"models": np.zeros((3, 2))}, InputError, "192"),
        ({"models": {"x": np.array([["a"] * 2] * 192)}}, InputError, "numeric"),
        ({"models": []}, InputError, "at least one"),
        ({"models": ["X_log", "X_log"]}, InputError, "twice"),
        ({"models": 3}, InputError, "models"),
        ({"setting": "poold"}, UnknownNameError, "pooled"),
        ({"strategy": "frozn"}, UnknownNameError, "frozen"),
        ({"by": "tisue"}, MissingKeyError, "tissue"),
        ({"label_key": "resp"}, MissingKeyError, "response"),
        ({"sample_key": "smpl"}, MissingKeyError, "sample"),
        ({"study_key": "x", "setting": "cross"}, MissingKeyError, "study"),
        ({"split": "cell", "setting": "cross"}, InputError, "leave out"),
        ({"n_folds": 1}, InputError, "2 or more"),
        ({"metrics": "acuracy"}, UnknownNameError, "accuracy"),
        ({"head": "mpl"}, UnknownNameError, "mlp"),
        ({"baselines": ["hgv"]}, UnknownNameError, "hvg"),
        ({"duplicates": "merg"}, UnknownNameError, "merge"),
        ({"levels": ["cells"]}, UnknownNameError, "cell"),
        ({"rng": -1}, InputError, "rng"),
    ],
)
def test_bad_arguments_are_named(run, change, error, words):
    with pytest.raises(error, match=words):
        run(**({"baselines": []} | change))


def test_bad_data_are_named(run, cohort):
    with pytest.raises(InputError, match="0 cells"):
        run(cohort()[:0].copy())
    with pytest.raises(TypeError, match="AnnData"):
        run(np.zeros((3, 3)))
    adata = cohort()
    adata.obs["response"] = "partial"
    with pytest.raises(InputError, match="partial"):
        run(adata)
    adata.obs["response"] = None
    with pytest.raises(InputError, match="labelled cells"):
        run(adata)
    adata = cohort()
    adata.obs.loc[adata.obs_names[0], "sample"] = None
    with pytest.raises(InputError, match="1 labelled cells without"):
        run(adata)
    adata = cohort()
    adata.X = adata.X + 0.5
    with pytest.raises(InputError, match="raw counts"):
        run(adata, baselines=["hvg"])
    with pytest.warns(ScDrugMapWarning, match="left out"):
        result = run(adata, baselines=None)
    gone = result.table[result.table["model"].isin(["depth", "hvg", "pca", "scvi"])]
    assert gone["model"].nunique() == 4, "a baseline that is left out stands in the table"
    assert gone["value"].isna().all()
    assert gone["reason"].str.contains("left out: .*raw counts").all()
    assert any("hvg: left out" in warning for warning in result.info["warnings"])


def test_one_class_is_a_reason(run, cohort):
    adata = cohort()
    adata.obs["response"] = "sensitive"
    table = run(adata).table
    assert table["reason"].str.contains("one class only").all()


# Foundation models ---------------------------------------------------------------------------------------


@pytest.fixture
def parity(shared):
    import anndata as ad

    adata = ad.read_h5ad(shared / "parity" / "input.h5ad")
    adata.obs["sample"] = [f"s{i // 8}" for i in range(adata.n_obs)]
    adata.obs["response"] = np.where(np.arange(adata.n_obs) // 8 % 2, "sensitive", "resistant")
    return adata, {"tGPT": {"checkpoint": shared / "parity" / "tgpt" / "checkpoint"}}


@pytest.mark.filterwarnings("ignore::scdrugmap._errors.ScDrugMapWarning")
def test_a_network_embeds_once_and_resumes(run, parity, tmp_path, monkeypatch):
    adata, options = parity
    from scdrugmap.tl import _embed

    calls = []
    embed = _embed.embed
    monkeypatch.setattr(_embed, "embed", lambda *a, **k: calls.append(k) or embed(*a, **k))
    slots = set(adata.obsm), set(adata.uns)
    kwargs = {"models": "tGPT", "embed_options": options, "n_folds": 2, "store": tmp_path, "split": ["sample", "cell"]}
    first = run(adata, **kwargs)
    assert len(calls) == 1
    assert (set(adata.obsm), set(adata.uns)) == slots
    manifest = first.units.query("model == 'tGPT'")["checkpoint_sha256"].iloc[0]
    assert manifest
    again = run(adata, **kwargs)
    assert again.info["n_resumed"] == again.info["n_units"]
    pd.testing.assert_frame_equal(first.table, again.table)


@pytest.mark.filterwarnings("ignore::scdrugmap._errors.ScDrugMapWarning")
def test_lora_runs_per_fold(run, parity):
    adata, options = parity
    result = run(
        adata, models="tGPT", strategy=["frozen", "lora"], embed_options=options, lora_options={"epochs": 1}, n_folds=2,
        head="mlp", head_options={"hidden": (8,)},
    )  # fmt: skip
    assert set(result.table["strategy"]) == {"frozen", "lora", "baseline"}
    assert result.table.query("strategy == 'lora' and metric == 'brier'")["value"].notna().all()
