"""The command line as a user sees it."""

from __future__ import annotations

import json
import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

import scdrugmap as sd
from scdrugmap.cli._app import app


def run(*arguments, ask: str | None = None):
    return CliRunner().invoke(app, [str(a) for a in arguments], input=ask, env={"COLUMNS": "200", "TERM": "dumb"})


def process(code: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    adata = sd.datasets.simulate(n_studies=2, n_cells=400, n_genes=300, rng=0)
    adata[adata.obs["study"] == "study1"].copy().write_h5ad(folder / "reference.h5ad")
    adata[adata.obs["study"] == "study2"].copy().write_h5ad(folder / "query.h5ad")
    adata.obsm["X_mine"] = np.random.default_rng(0).normal(size=(adata.n_obs, 3)).astype(np.float32)
    adata.write_h5ad(folder / "all.h5ad")
    (folder / "text.h5ad").write_text("not hdf5")
    (folder / "broken.yaml").write_text("a: [1,")
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(sd.settings, "cache_dir", tmp_path / "cache")
    return tmp_path / "cache"


def test_a_process_ends_with_one_sentence_and_a_code(files):
    code = "from scdrugmap.cli import main; main()"
    out = process(code, "embed", str(files / "absent.h5ad"), "--model", "pca", "-o", "x.h5ad")
    assert out.returncode == 3
    assert out.stderr.startswith("scdrugmap: input") and "Traceback" not in out.stderr


def test_help_does_not_import_torch():
    code = "import sys; sys.argv = ['scdrugmap', '--help']\nfrom scdrugmap.cli import main\ntry: main()\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    out = process(code)
    assert "benchmark" in out.stdout
    assert out.stdout.strip().endswith("False")


COMMANDS = ["demo", "check", "embed", "train", "predict", "benchmark", "report", "recommend", "reproduce", "bench"]
GROUPS = {
    "models": ["list", "info", "fetch", "where", "verify", "register", "rm"],
    "datasets": ["list", "info", "fetch", "where", "verify", "rm"],
    "cache": ["list", "size", "clear"],
    "results": ["merge", "export"],
}


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_explains_itself(flag):
    out = run(flag)
    assert out.exit_code == 0
    for name in [*COMMANDS, *GROUPS]:
        assert name in out.stdout
    for command in [[c] for c in COMMANDS] + [[g, c] for g, commands in GROUPS.items() for c in ["", *commands]]:
        out = run(*filter(None, command), flag)
        assert out.exit_code == 0, (command, out.output)
        assert "Usage" in out.stdout


def test_check(files, tmp_path):
    out = run("check", files / "all.h5ad")
    assert out.exit_code == 0, out.stderr
    assert "counts" in out.stdout
    adata = ad.read_h5ad(files / "all.h5ad")
    adata.X = adata.X * 0.5
    adata.write_h5ad(tmp_path / "half.h5ad")
    assert run("check", tmp_path / "half.h5ad").exit_code == 3


def test_embed_train_predict(files, tmp_path):
    out = run("embed", files / "all.h5ad", "--model", "pca", "--set", "n_components=7", "-o", tmp_path / "e.h5ad")
    assert out.exit_code == 0, out.stderr
    embedded = ad.read_h5ad(tmp_path / "e.h5ad")
    assert embedded.obsm["X_scdrugmap_pca"].shape == (embedded.n_obs, 7)
    assert yaml.safe_load(embedded.uns["scdrugmap_run"])["model"] == ["pca"]

    out = run(
        "train", files / "reference.h5ad", "-m", "pca", "--groups", "sample", "--ood", "--head", "logistic",
        "-o", tmp_path / "p",
    )  # fmt: skip
    assert out.exit_code == 0, out.stderr
    assert run("train", files / "reference.h5ad", "-m", "pca", "-o", tmp_path / "p").exit_code == 2
    for name in ("a.h5ad", "a.csv", "a.parquet"):
        out = run(
            "predict", files / "query.h5ad", "-p", tmp_path / "p", "--sample-key", "sample", "--abstain", "0.6",
            "--json", "-o", tmp_path / name,
        )  # fmt: skip
        assert out.exit_code == 0, out.stderr
        said = json.loads(out.stdout)
        assert said["output"] == str(tmp_path / name) and sum(said["calls"].values()) == said["cells"]
    predicted = ad.read_h5ad(tmp_path / "a.h5ad")
    table, parquet = pd.read_csv(tmp_path / "a.csv", index_col=0), pd.read_parquet(tmp_path / "a.parquet")
    assert (parquet["response_score"].to_numpy() == predicted.obs["response_score"].to_numpy()).all()
    assert {"response_pred", "response_score", "response_ood"} <= set(table)
    sure = np.maximum(table["response_score"], 1 - table["response_score"]) >= 0.6
    assert (table["response_pred"].notna() == sure).all() and not sure.all()
    calls = pd.read_csv(tmp_path / "a.samples.csv", index_col=0)
    assert set(calls.index) == set(predicted.obs["sample"])


def test_predict_from_a_reference(files, tmp_path):
    out = run(
        "predict", files / "query.h5ad", "--model", "pca", "--reference", files / "reference.h5ad",
        "--set", "head=logistic", "-o", tmp_path / "a.csv",
    )  # fmt: skip
    assert out.exit_code == 0, out.stderr
    known, query = ad.read_h5ad(files / "reference.h5ad"), ad.read_h5ad(files / "query.h5ad")
    sd.tl.predict_response(query, model="pca", reference=known, head="logistic", rng=0)
    scores = pd.read_csv(tmp_path / "a.csv", index_col=0)["response_score"]
    np.testing.assert_allclose(scores, query.obs["response_score"], atol=1e-6)


def test_benchmark_from_yaml_and_report(files, tmp_path):
    spec = {
        "input": str(files / "all.h5ad"),
        "output": str(tmp_path / "results"),
        "models": ["pca"],
        "setting": "cross",
        "head": "logistic",
        "options": {"baselines": ["majority"]},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(spec))
    out = run("benchmark", tmp_path / "run.yaml")
    assert out.exit_code == 0, out.stderr
    for name in ("result/result.json", "results.csv", "report.html", "run.yaml"):
        assert (tmp_path / "results" / name).stat().st_size > 0
    echoed = yaml.safe_load((tmp_path / "results" / "run.yaml").read_text())
    spec |= spec.pop("options")
    assert {k: echoed[k] for k in spec} == spec
    again = run("report", tmp_path / "results", "-o", tmp_path / "again.html")
    assert again.exit_code == 0, again.stderr
    assert (tmp_path / "again.html").stat().st_size > 0


def test_what_ran_is_what_the_record_says(files, tmp_path):
    """A preset changes what was left out, not what was given."""
    out = run(
        "benchmark", files / "all.h5ad", "-m", "X_mine", "--preset", "published", "--head", "logistic", "--n-folds", 3,
        "--baseline", "majority", "--json", "-o", tmp_path / "r",
    )  # fmt: skip
    assert out.exit_code == 0, out.stderr
    rows = json.loads(out.stdout)
    assert {r["head"] for r in rows if r["model"] == "X_mine"} == {"logistic"}
    record = yaml.safe_load((tmp_path / "r" / "run.yaml").read_text())
    assert (record["head"], record["preset"], record["n_folds"]) == ("logistic", "published", 3)
    assert (record["split"], record["duplicates"]) == ("cell", "ignore")
    assert "store" in record


def test_the_device_of_one_run_is_not_that_of_the_next(files, tmp_path, monkeypatch):
    monkeypatch.setattr(sd.settings, "device", "auto")
    out = run(
        "benchmark", files / "all.h5ad", "-m", "X_mine", "--head", "logistic", "--n-folds", 2, "--device", "cpu",
        "--baseline", "majority", "-o", tmp_path / "r",
    )  # fmt: skip
    assert out.exit_code == 0, out.stderr
    assert sd.settings.device == "auto"


def test_a_benchmark_that_leaves_a_category_out_is_partly_done(files, tmp_path):
    adata = ad.read_h5ad(files / "all.h5ad")
    adata.obs["half"] = np.where(adata.obs["study"] == "study1", "a", "b")
    adata.obs.loc[adata.obs["half"] == "a", "response"] = "resistant"
    adata.write_h5ad(tmp_path / "one.h5ad")
    out = run(
        "benchmark", tmp_path / "one.h5ad", "-m", "X_mine", "--head", "logistic", "--by", "half", "--n-folds", 2,
        "--baseline", "majority", "-o", tmp_path / "r",
    )  # fmt: skip
    assert out.exit_code == 4, out.output
    assert "not evaluated: a" in out.stderr
    assert (tmp_path / "r" / "report.html").exists()


def test_a_model_that_fails_is_named_with_its_reason(files, tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("the head broke")

    monkeypatch.setattr("scdrugmap.evaluation.grid.work.fit_predict", fails)
    out = run(
        "benchmark", files / "all.h5ad", "-m", "X_mine", "--head", "logistic", "--n-folds", 2, "--split", "cell",
        "--baseline", "majority", "--n-jobs", 1, "-o", tmp_path / "r",
    )  # fmt: skip
    assert out.exit_code == 4, out.output
    assert "X_mine: failed: RuntimeError: the head broke" in out.stderr
    assert "(random): cells of one sample on both sides" in " ".join(out.stdout.split())


@pytest.mark.parametrize(
    ("code", "arguments", "words"),
    [
        (3, ["embed", "absent.h5ad", "--model", "pca", "-o", "x.h5ad"], ["absent.h5ad", "existing"]),
        (2, ["embed", "all.h5ad", "--model", "scgtp", "-o", "x.h5ad"], ["scgtp", "scGPT"]),
        (2, ["embed", "all.h5ad", "--model", "pca", "-o", "x.txt"], ["x.txt", ".h5ad"]),
        (2, ["embed", "all.h5ad", "--model", "pca", "-o", "/proc/nowhere/x.h5ad"], ["/proc/nowhere", "written"]),
        (3, ["embed", "all.h5ad", "--model", "scGPT", "--checkpoint", "nowhere", "-o", "x.h5ad"], ["nowhere"]),
        (2, ["embed", "all.h5ad", "-o", "x.h5ad"], ["model"]),
        (2, ["embed", "all.h5ad", "--model", "pca"], ["output"]),
        (3, ["embed", "text.h5ad", "--model", "pca", "-o", "x.h5ad"], ["text.h5ad", "readable"]),
        (2, ["embed", "all.h5ad", "--model", "pca", "--no-such-flag", "-o", "x.h5ad"], ["--no-such-flag"]),
        (3, ["train", "all.h5ad", "--model", "pca", "--label-key", "answer", "-o", "p"], ["answer", "obs"]),
        (2, ["train", "all.h5ad", "-o", "p"], ["model", "use_rep"]),
        (2, ["predict", "all.h5ad", "--predictor", "nowhere", "-o", "x.csv"], ["nowhere", "predictor"]),
        (2, ["benchmark", "all.h5ad", "--model", "pca", "--setting", "sideways", "-o", "r"], ["sideways", "pooled"]),
        (2, ["benchmark", "broken.yaml"], ["broken.yaml", "YAML"]),
        (2, ["models", "info", "genefromer"], ["genefromer", "Geneformer"]),
        (2, ["cache", "clear", "--kind", "weights", "--yes"], ["weights", "models rm"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_mistakes_end_with_one_sentence(files, monkeypatch, code, arguments, words):
    monkeypatch.chdir(files)
    out = run(*arguments)
    assert out.exit_code == code, out.output
    assert "Traceback" not in out.stderr
    for word in words:
        assert word in out.stderr, out.stderr


def test_tables_are_printed_for_programs_too():
    models = json.loads(run("models", "list", "--json").stdout)
    assert {m["name"] for m in models} == set(sd.models.list().reset_index()["name"])
    assert any(m["dim"] is None for m in models)
    assert len(json.loads(run("datasets", "list", "--json").stdout)) == len(sd.datasets.catalogue())


def fetched(tmp_path) -> tuple[str, list]:
    """Register files under the names of a checkpoint; return its key and the files of the cache."""
    from scdrugmap import download

    entry = next(e for e in download.entries("checkpoints").values() if len([f for f in e.files if f.required]) > 1)
    given = tmp_path / "given"
    for file in entry.files:
        (given / file.name).parent.mkdir(parents=True, exist_ok=True)
        (given / file.name).write_text(f"content of {file.name}")
    folder = download.register_local("checkpoints", entry.key, given, copy=True, trust=True)
    return entry.key, [folder / f.name for f in entry.files if f.required]


def test_verify_tells_what_it_found(tmp_path, cache):
    out = run("models", "verify")
    assert out.exit_code == 3 and "nothing is there" in out.stderr
    assert run("models", "verify", "scGPT").exit_code == 3
    assert run("datasets", "verify", "GSE140440").exit_code == 3
    key, kept = fetched(tmp_path)
    out = run("models", "verify", key)
    assert (out.exit_code, "files verified" in out.stdout) == (0, True), out.output
    kept[0].write_text("something else")
    out = run("models", "verify", key, "--json")
    assert out.exit_code == 4
    assert "1 altered" in out.stderr
    states = {r["file"]: r["state"] for r in json.loads(out.stdout)}
    assert states[kept[0].name] == "altered" and states[kept[1].name] == "ok"
    kept[0].unlink()
    out = run("models", "verify", key)
    assert out.exit_code == 4 and "1 absent" in out.stderr


def test_the_cache_is_listed_measured_and_cleared(cache):
    from scdrugmap.embedding import cache as embeddings
    from scdrugmap.prompting.cache import ResponseCache

    embeddings.save(cache / "embeddings", "ab" * 32, np.zeros((50, 4), np.float32), model="scGPT")
    ResponseCache(cache / "prompting").put("cd" * 32, {"text": "1"})
    rows = json.loads(run("cache", "list", "--json").stdout)
    assert [(r["key"], r["model"], r["cells"]) for r in rows] == [("ab" * 32, "scGPT", 50)]
    assert "scGPT" in run("cache", "list").stdout
    sizes = json.loads(run("cache", "size", "--json").stdout)
    assert sizes["embeddings"] > 800 and sizes["prompting"] > 0 and sizes["checkpoints"] == 0
    assert sizes["limit"] == sd.settings.embedding_cache_size
    assert "prompting" in run("cache", "size").stdout
    assert run("cache", "clear", ask="n\n").exit_code == 1
    assert run("cache", "clear", "--older-than", 1, "--yes").exit_code == 0
    assert embeddings.size() > 0
    assert run("cache", "clear", ask="y\n").exit_code == 0
    assert embeddings.size() == 0 and list((cache / "prompting").rglob("*.json"))
    assert run("cache", "clear", "--kind", "prompting", "--yes").exit_code == 0
    assert not list((cache / "prompting").rglob("*.json"))
