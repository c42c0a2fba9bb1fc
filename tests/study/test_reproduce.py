"""The whole study on a mirror of its own: plan, acceptance, run, resumption, what the tables say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import standin
import yaml
from typer.testing import CliRunner

import scdrugmap as sd
from scdrugmap._errors import SpecError, UnknownNameError
from scdrugmap.cli._app import app
from scdrugmap.download import catalog
from scdrugmap.evaluation.grid.store import RunStore

pytestmark = pytest.mark.filterwarnings("ignore::scdrugmap._errors.ScDrugMapWarning")
STUDIES = ["GSE131984_JQ1", "GSE131984_Pac", "GSE140440", "GSE152469", "GSE111014_pre"]


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    generator = standin.served(tmp_path_factory.mktemp("standin"))
    server, registry = next(generator)
    before = catalog.REGISTRY_FOLDER, sd.settings.cache_dir, sd.settings.mirror
    catalog.REGISTRY_FOLDER = registry
    sd.settings.cache_dir, sd.settings.mirror = tmp_path_factory.mktemp("cache"), None
    yield server
    catalog.REGISTRY_FOLDER, sd.settings.cache_dir, sd.settings.mirror = before
    generator.close()


def spec(store: Path, **fields) -> sd.ReproduceSpec:
    given = {
        "studies": STUDIES, "models": ["scgpt"], "figures": ["2", "3"], "strategy": ["frozen"], "by": ["tissue"],
        "presets": ["published", "strict"], "n_folds": 2, "shots": [0, 1], "measure": False, "yes": True, "store": store,
        "baselines": ["all_sensitive", "pca"],
    }  # fmt: skip
    return sd.ReproduceSpec(**given | fields)


def command(*arguments: object):
    return CliRunner().invoke(app, ["reproduce", *map(str, arguments)], env={"COLUMNS": "200"})


def test_the_plan_opens_no_connection_and_writes_nothing(mirror, tmp_path):
    asked = sum(mirror.asked.values())
    flags = ["--studies", "GSE140440,GSE152469", "--studies", "GSE163836", "--models", "scfoundation,tgpt"]
    flags += ["--store", tmp_path / "run", "--no-measure", "--figures", "2,3"]
    out = command(*flags, "--plan", "--json")
    assert out.exit_code == 0, out.output
    plan = json.loads(out.stdout)
    assert [s["name"] for s in plan["studies"]] == ["GSE140440", "GSE152469", "GSE163836"]
    sizes = {k: e.size for kind in catalog.KINDS for k, e in catalog.entries(kind).items()}
    wanted = sum(sizes[k] for k in ("GSE140440", "GSE152469", "GSE163836", "scfoundation", "tgpt-64"))
    assert plan["download_gb"] == pytest.approx(wanted / 1e9) and plan["unknown_sizes"] == 0
    assert list(plan["accept"]) == ["scfoundation"]
    refused = command(*flags)
    assert refused.exit_code == 2 and "scfoundation" in refused.output
    assert sum(mirror.asked.values()) == asked and not (tmp_path / "run").exists()
    with pytest.raises(SpecError, match="yes"):
        sd.reproduce(spec(tmp_path / "run", yes=False))


@pytest.mark.parametrize("flags", [["--studies", "GSE1"], ["--models", "scGTP"], ["--figures", "9"]])
def test_what_is_unknown_is_named(mirror, flags, tmp_path):
    out = command(*flags, "--plan", "--store", tmp_path)
    assert out.exit_code == 2
    with pytest.raises((UnknownNameError, SpecError), match=flags[1]):
        sd.reproduce(sd.ReproduceSpec.build(**{flags[0][2:]: [flags[1]]}, plan=True))


def test_unknown_sizes_are_counted(monkeypatch, tmp_path):
    plan = sd.reproduce(sd.ReproduceSpec(studies=["P12"], models=["tGPT"], figures="2", plan=True, measure=False))
    known = [t["bytes"].notna().sum() for t in (plan.studies, plan.checkpoints)]
    fetched = plan.studies["to_fetch"].sum() + plan.checkpoints["to_fetch"].sum()
    assert plan.n_unknown == fetched - sum(known)


@pytest.fixture(scope="module")
def whole(mirror, tmp_path_factory):
    return sd.reproduce(spec(tmp_path_factory.mktemp("whole") / "run"))


def test_every_number_stands_beside_its_floor_and_the_paper(whole):
    assert whole.missing == {}
    table = pd.read_csv(whole.store / "tables" / "scores.csv")
    assert set(table["preset"]) == {"published", "strict"} and set(table["setting"]) == {"pooled", "cross"}
    reported = table.query("model == 'scGPT' and metric == 'f1'")["published_as_reported_not_reproduced"]
    assert reported.isna().all()  # the paper prints no number for these categories of scGPT
    f1 = table.query("metric == 'f1' and preset == 'published' and setting == 'pooled' and category == 'Cell line'")
    # 24 sensitive controls, counted in two data sets, and as many cells of GSE140440, beside 72 resistant ones.
    assert f1["all_sensitive"].iloc[0] == pytest.approx(2 * 72 / (2 * 72 + 72))
    assert {p.name for p in (whole.store / "figures").iterdir()} == set(whole.figures) and whole.figures


def test_the_planted_leak_shows(whole):
    leak = whole.tables["leak"].query("metric == 'auroc' and model == 'pca'")
    assert len(leak) == 2
    assert leak["random_cells"].mean() > 0.9 and leak["whole_samples"].mean() < leak["random_cells"].mean() - 0.2


def test_run_yaml_runs_again_without_a_request(whole, mirror):
    record = yaml.safe_load((whole.store / "run.yaml").read_text())
    entry = catalog.entries("datasets")["GSE140440"]
    assert record["inputs"]["studies"]["GSE140440"] == entry.files[0].sha256
    assert set(record["inputs"]["checkpoints"]["scGPT"]) == {"args.json", "best_model.pt", "vocab.json"}
    asked = sum(mirror.asked.values())
    again = sd.reproduce(sd.ReproduceSpec.build(whole.store / "run.yaml"))
    assert sum(mirror.asked.values()) == asked and again.missing == {}
    pd.testing.assert_frame_equal(again.tables["scores"], whole.tables["scores"])
    record["inputs"]["studies"]["GSE140440"] = "0" * 64
    (whole.store / "other.yaml").write_text(yaml.safe_dump(record))
    assert "input GSE140440" in sd.reproduce(sd.ReproduceSpec.build(whole.store / "other.yaml")).missing


def test_an_interrupted_run_goes_on_to_the_same_result(whole, mirror, tmp_path, monkeypatch):
    write, left = RunStore.write, [3, 11]

    def stopped(self, outcome):
        write(self, outcome)
        left[0] -= 1
        if left[0] == 0:
            left.pop(0)
            raise KeyboardInterrupt

    monkeypatch.setattr(RunStore, "write", stopped)
    asked = spec(tmp_path / "run")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            sd.reproduce(asked)
    monkeypatch.setattr(RunStore, "write", write)
    result = sd.reproduce(asked)
    for name in ("scores", "leak", "few_shot"):
        pd.testing.assert_frame_equal(result.tables[name], whole.tables[name])


def test_what_fails_is_listed_and_leaves_the_rest(mirror, tmp_path, monkeypatch):
    entry = catalog.entries("datasets")["GSE163836"]
    broken = entry.files[0].model_copy(update={"urls": (f"{mirror.base}/nowhere.csv",)})
    monkeypatch.setitem(catalog._ADDED["datasets"], "GSE163836", entry.model_copy(update={"files": (broken,)}))
    from scdrugmap.download import transfer

    monkeypatch.setattr(transfer, "BACKOFF", (0.0, 0.0))
    asked = spec(
        tmp_path / "run", studies=["GSE163836", "GSE140440", "GSE131984_JQ1"], figures=["2"], setting=["pooled"],
        presets=["strict"], shots=[],
    )  # fmt: skip
    done = sd.reproduce(asked)
    assert list(done.missing) == ["study GSE163836"] and len(done.tables["scores"])
    assert json.loads((tmp_path / "run" / "missing.json").read_text()).keys() == done.missing.keys()


def test_labels_of_ones_own(mirror, tmp_path):
    from scdrugmap.study.cells import _read_labels, _with_labels

    file = tmp_path / "labels.csv"
    file.write_text("dataset,sample,response\nE1,a,sensitive\nE1,b,resistant\n")
    adata = sd.datasets.simulate(n_studies=1, n_cells=30, n_genes=50, rng=0)
    adata.obs["sample"] = np.repeat(["a", "b", "c"], 10)
    table = _read_labels(file)
    found = _with_labels(adata, table[table["dataset"] == "E1"]).obs["response"]
    assert found.iloc[:20].tolist() == ["sensitive"] * 10 + ["resistant"] * 10 and found.iloc[20:].isna().all()


@pytest.mark.parametrize(("low", "packed"), [(0.8, True), (0.6, False), (np.nan, True)])
def test_a_predictor_is_packed_only_above_its_floor(mirror, tmp_path, monkeypatch, low, packed):
    from scdrugmap.study import shelf

    row = {"model": "pca", "value": 0.9, "ci_low": low, "ci_high": low + 0.15, "floor": 2 / 3, "reason": ""}
    monkeypatch.setattr(shelf, "judged", lambda *arguments: pd.DataFrame([row]))
    asked = spec(tmp_path / "run", studies=STUDIES[2:], models=["pca"], figures=["1"], predictors=True)
    table = sd.reproduce(asked).tables["predictors"].set_index("predictor")
    single, several = "taxane-cell-line", "btk-inhibitor-peripheral-blood-mononuclear-cells"
    assert not table.loc[single, "packed"] and "one series" in table.loc[single, "why"]
    folder = tmp_path / "run" / "predictors" / several
    assert table.loc[several, "packed"] == packed == folder.is_dir()
    if packed:
        card = (folder / "README.md").read_text()
        assert "On studies left out" in card and "Not for" in card and "calling every cell sensitive" in card
        assert sd.load_predictor(folder).training["not_for"]
    else:
        assert "does not beat" in table.loc[several, "why"]
