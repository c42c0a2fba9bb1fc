"""The whole study on a mirror of its own: plan, acceptance, run, resumption, what the tables say."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import standin
import yaml
from typer.testing import CliRunner

import scdrugmap as sd
from scdrugmap._errors import InputError, SpecError, UnknownNameError
from scdrugmap.cli._app import app
from scdrugmap.download import catalog
from scdrugmap.evaluation.grid.store import RunStore
from scdrugmap.study.missing import Missing

pytestmark = pytest.mark.filterwarnings("ignore::scdrugmap._errors.ScDrugMapWarning")
STUDIES = ["GSE131984_JQ1", "GSE131984_Pac", "GSE140440", "GSE152469", "GSE111014_pre"]


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    generator = standin.served(tmp_path_factory.mktemp("standin"))
    server, registry = next(generator)
    server.labels = registry.parent / "labels.csv"
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


def everything(store: Path, mirror) -> sd.ReproduceSpec:
    return spec(store, studies=[*STUDIES, *standin.EXTERNAL], labels=mirror.labels, figures=["2", "3", "6"])


def test_hours_come_from_what_was_measured(mirror, monkeypatch):
    expressed = []

    def profile(cells, name, **options):
        assert cells.n_vars > 1000  # simulated from what the package knows without a download
        expressed.append(cells.X.nnz / cells.n_obs)
        if name == "UCE":
            raise MemoryError
        found = {"cells_per_second": 2.0, "training_cells_per_second": 0.5, "n_parameters": 1e8, "device": "cpu"}
        return pd.DataFrame([found])

    monkeypatch.setattr(sd.tl, "profile", profile)
    plan = sd.reproduce(
        sd.ReproduceSpec(studies=["GSE140440"], models=["scGPT", "UCE"], figures=["2"], by=["tissue"], plan=True)
    )
    cells = int(plan.studies["n_cells"].sum())
    hours = plan.hours.set_index(["model", "step"])["hours"]
    assert hours["scGPT", "embed every cell once"] == pytest.approx(cells / 2 / 3600)
    # Ten folds as published, one division as the code does, ten folds of whole samples; three epochs and a prediction.
    assert hours["scGPT", "fine-tune in every fold"] == pytest.approx(cells * 21 * (3 / 0.5 + 1 / 2) / 3600)
    work = {
        name: card.n_parameters * (card.max_length or expressed[0])
        for name, card in ((name, sd.models.info(name)) for name in ("scGPT", "UCE"))
    }
    assert hours["UCE", "embed every cell once"] == pytest.approx(cells / 2 * work["UCE"] / work["scGPT"] / 3600)
    assert "for want of an error" not in str(plan) and "by parameters and tokens from 1 that were" in str(plan)


@pytest.fixture(scope="module")
def whole(mirror, tmp_path_factory):
    return sd.reproduce(everything(tmp_path_factory.mktemp("whole") / "run", mirror))


def test_every_number_stands_beside_its_floor_and_the_paper(whole):
    assert whole.missing == {}
    table = pd.read_csv(whole.store / "tables" / "scores.csv")
    assert set(table["preset"]) == {"published", "strict"} and set(table["setting"]) == {"pooled", "cross"}
    reported = table.query("model == 'scGPT' and metric == 'f1' and collection == 'primary'")[
        "published_as_reported_not_reproduced"
    ]
    assert reported.isna().all()  # the paper prints no number for these categories of scGPT
    f1 = table.query("metric == 'f1' and preset == 'published' and setting == 'pooled' and category == 'Cell line'")
    # 24 sensitive controls, counted in two data sets, and as many cells of GSE140440, beside 72 resistant ones.
    assert f1["all_sensitive"].iloc[0] == pytest.approx(2 * 72 / (2 * 72 + 72))
    assert {p.name for p in (whole.store / "figures").iterdir()} == set(whole.figures) and whole.figures


def test_the_planted_leak_shows(whole):
    leak = whole.tables["leak"].query("metric == 'auroc' and collection == 'primary'").set_index("model")
    for model, low in (("pca", 0.9), ("scGPT", 0.7)):  # scGPT under the published head in both columns
        mine = leak.loc[[model]]
        assert len(mine) == 2
        assert mine["random_cells"].mean() > low
        assert mine["whole_samples"].mean() < mine["random_cells"].mean() - 0.2


def test_figure_6_shows_the_archive_with_the_labels_that_were_given(whole):
    figure = whole.tables["figure6"].query("metric == 'f1' and preset == 'strict' and model == 'pca'")
    assert figure["category"].tolist() == ["Tumor tissue"]
    assert figure["all_sensitive"].iloc[0] == pytest.approx(2 / 3)  # as many cells of either label
    assert figure["value"].iloc[0] > 0.75  # what was planted there is strong, and samples hide little
    assert any(name.startswith("figure6-") and name.endswith("-auroc.png") for name in whole.figures)


def test_reported_numbers_stand_in_a_table_of_their_own(whole):
    table, facts = whole.tables["published"], sd.datasets.published_scores()
    assert len(table) == (facts["figure"] != "7").sum()
    row = table.query("collection == 'external' and category == 'Tumor tissue' and model == 'scGPT'").iloc[0]
    ours = whole.tables["scores"].query(
        "collection == 'external' and model == 'scGPT' and metric == 'f1' and head == 'published'"
    )
    assert row["published_as_reported_not_reproduced"] == 0.942
    for preset in ("published", "strict"):
        assert row[preset] == ours.loc[ours["preset"] == preset, "value"].iloc[0]


def test_counts_and_embeddings_stay_on_the_disk(whole, mirror):
    from scdrugmap.study.chosen import choose
    from scdrugmap.study.joined import join

    asked = everything(whole.store, mirror)
    files = {key: whole.store / "studies" / f"{key}.h5ad" for key in STUDIES}
    cells = join(asked, choose(asked), files, "primary")
    assert cells.isbacked and isinstance(cells.obsm["X_scgpt"], np.memmap)
    known = ad.concat([ad.read_h5ad(f) for f in files.values()], join="inner")
    assert cells.obs_names.tolist() == known.obs_names.tolist()
    np.testing.assert_array_equal(cells[:, known.var_names].to_memory().X.toarray(), known.X.toarray())
    # With another set of studies there is another file, and where a model has no embedding there is none.
    (whole.store / "embeddings" / STUDIES[0] / "scgpt.npy").rename(whole.store / "kept.npy")
    try:
        fewer = join(asked, choose(asked), dict(list(files.items())[:2]), "primary")
    finally:
        (whole.store / "kept.npy").rename(whole.store / "embeddings" / STUDIES[0] / "scgpt.npy")
    assert fewer.n_obs == 96 and len(list((whole.store / "joined" / "primary").glob("*.h5ad"))) == 1
    assert np.isnan(fewer.obsm["X_scgpt"][:48]).all() and np.isfinite(fewer.obsm["X_scgpt"][48:]).all()


def test_the_store_of_a_reproduction_can_be_merged(whole, tmp_path):
    from scdrugmap.evaluation.result.merge import merge_results

    joined = merge_results([whole.store, whole.store / "grid" / "primary-strict-pooled-frozen"], tmp_path / "c")
    n_units = sum(len(sd.load_result(p).units) for p in (whole.store / "grid").iterdir())
    assert len(joined.units) == n_units


def test_data_sets_without_labels_are_named_and_not_fetched(mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(sd.settings, "cache_dir", tmp_path / "cache")
    asked = sum(n for path, n in mirror.asked.items() if "GSE223779" in path)
    done = sd.reproduce(spec(tmp_path / "run", studies=["GSE140440", *standin.EXTERNAL], models=["pca"], figures=["6"]))
    assert sum(n for path, n in mirror.asked.items() if "GSE223779" in path) == asked
    assert done.plan.unlabelled == list(standin.EXTERNAL) and "--labels" in str(done.plan)
    assert "figure 6" in done.missing and any(standin.EXTERNAL[0] in name for name in done.missing)


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
    asked = everything(tmp_path / "run", mirror)
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


def test_prompts_stop_at_the_budget_and_are_named(mirror, tmp_path, monkeypatch):
    from prompting_endpoint import KEY, Endpoint

    endpoint = Endpoint()
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    given = {
        "studies": ["GSE140440", "GSE152469"], "models": ["gpt-4o-mini"], "figures": ["5"], "strategy": ["prompt"],
        "setting": ["pooled"], "presets": ["strict"], "prompt_shots": [0], "prompt_options": {"template": "default"},
        "prices": [1e3, 1e3],
    }  # fmt: skip
    try:
        bounded = sd.reproduce(spec(tmp_path / "run", **given, budget=1e-6))
        n_bounded = len(endpoint.requests)
        free = sd.reproduce(spec(tmp_path / "run", **given))
        n_free = len(endpoint.requests)
        again = sd.reproduce(spec(tmp_path / "run", **given, budget=1e-6))
    finally:
        endpoint.close()
    named = [name for name, why in bounded.missing.items() if "budget" in why and "--prompt-cells" in why]
    assert len(named) == 2 and n_bounded == 0
    assert free.missing == {} and n_free > 0 and "figure5a.png" in free.figures
    assert again.missing == {} and len(endpoint.requests) == n_free  # what was answered costs nothing


def test_labels_of_ones_own(mirror, tmp_path):
    from scdrugmap.study.labels import read_labels, with_labels

    file = tmp_path / "labels.csv"
    file.write_text("dataset,sample,response\nE1,a,sensitive\nE1,b,resistant\n")
    adata = sd.datasets.simulate(n_studies=1, n_cells=30, n_genes=50, rng=0)
    adata.obs["sample"] = np.repeat(["a", "b", "c"], 10)
    table = read_labels(file)
    found = with_labels(adata, table[table["dataset"] == "E1"]).obs["response"]
    file.write_text("dataset,sample,response\nE1,z,sensitive\n")
    with pytest.raises(InputError, match="where the study has a, b, c"):
        with_labels(adata, read_labels(file))
    assert found.iloc[:20].tolist() == ["sensitive"] * 10 + ["resistant"] * 10 and found.iloc[20:].isna().all()


NAME = "btk-inhibitor-peripheral-blood-mononuclear-cells"


@pytest.fixture
def shelf_of(whole, mirror, tmp_path, monkeypatch):
    """Pack the predictors of two studies, as if they had been judged in a certain way."""
    from scdrugmap.study import shelf
    from scdrugmap.study.chosen import choose
    from scdrugmap.study.joined import join

    def pack(low: float, missing: Missing, **fields) -> pd.DataFrame:
        row = {"model": "pca", "value": 0.9, "ci_low": low, "ci_high": low + 0.15, "floor": 2 / 3, "reason": ""}
        monkeypatch.setattr(shelf, "judged", lambda *arguments: pd.DataFrame([row]))
        asked = spec(tmp_path / "run", studies=STUDIES[2:], models=["pca"], figures=["1"], predictors=True, **fields)
        files = {key: whole.store / "studies" / f"{key}.h5ad" for key in STUDIES[2:]}
        cells = join(asked, choose(asked), files, "primary")
        return shelf.pack(asked, choose(asked), cells, {}, missing).set_index("predictor")

    return pack


@pytest.mark.parametrize(("low", "packed"), [(0.8, True), (0.6, False), (np.nan, False)])
def test_a_predictor_is_packed_only_above_its_floor(shelf_of, tmp_path, low, packed):
    missing = Missing()
    table = shelf_of(low, missing)
    single = "taxane-cell-line"
    assert missing.reasons == {}
    assert not table.loc[single, "packed"] and "one series" in table.loc[single, "why"]
    folder = tmp_path / "run" / "predictors" / NAME
    assert table.loc[NAME, "packed"] == packed == folder.is_dir()
    if packed:
        card = (folder / "README.md").read_text()
        assert "On studies left out" in card and "Not for" in card and "calling every cell sensitive" in card
        assert sd.load_predictor(folder).training["not_for"]
    else:
        assert ("no interval" if np.isnan(low) else "does not beat") in table.loc[NAME, "why"]


def test_a_predictor_is_pushed_once_and_a_hub_that_refuses_is_named(shelf_of, monkeypatch):
    from scdrugmap.predictor.predictor import ResponsePredictor

    def refused(self, repo):
        raise InputError("predictor", "no better than none", "one that is", "train on more samples.")

    missing = Missing()
    monkeypatch.setattr(ResponsePredictor, "push_to_hub", lambda self, repo: f"commit of {repo}")
    for _ in range(2):  # the second time it is there
        assert shelf_of(0.8, missing, push_to="lab").loc[NAME, "hub"] == f"commit of lab/{NAME}"
        monkeypatch.setattr(ResponsePredictor, "push_to_hub", refused)
    assert missing.reasons == {}
    assert shelf_of(0.8, missing, push_to="other").loc[NAME, "packed"]
    assert list(missing.reasons) == [f"push of predictor {NAME}"]

    def unreachable(self, repo):
        raise OSError("Name or service not known")

    monkeypatch.setattr(ResponsePredictor, "push_to_hub", unreachable)
    shelf_of(0.8, missing, push_to="other")
    assert (
        "other/" in missing.reasons[f"push of predictor {NAME}"]
        and "token" in missing.reasons[f"push of predictor {NAME}"]
    )
