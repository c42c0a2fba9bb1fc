"""The command line as a user sees it."""

from __future__ import annotations

import subprocess
import sys

import anndata as ad
import pandas as pd
import pytest
import yaml

import scdrugmap as sd


def run(*arguments: str, cwd=None) -> subprocess.CompletedProcess:
    code = "from scdrugmap.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, cwd=cwd)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    adata = sd.datasets.simulate(n_studies=2, n_cells=400, n_genes=300, rng=0)
    adata[adata.obs["study"] == "study1"].copy().write_h5ad(folder / "reference.h5ad")
    adata[adata.obs["study"] == "study2"].copy().write_h5ad(folder / "query.h5ad")
    adata.write_h5ad(folder / "all.h5ad")
    return folder


def test_help_lists_the_commands():
    out = run("--help")
    assert out.returncode == 0
    for command in ("demo", "check", "embed", "train", "predict", "benchmark", "models", "datasets", "report"):
        assert command in out.stdout


def test_help_does_not_import_torch():
    code = "import sys; sys.argv = ['scdrugmap', '--help']\nfrom scdrugmap.cli import main\ntry: main()\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip().endswith("False")


def test_check(files):
    out = run("check", files / "all.h5ad")
    assert out.returncode == 0, out.stderr
    assert "counts" in out.stdout


def test_embed_train_predict(files, tmp_path):
    out = run("embed", files / "all.h5ad", "--model", "pca", "--set", "n_components=7", "-o", tmp_path / "e.h5ad")
    assert out.returncode == 0, out.stderr
    embedded = ad.read_h5ad(tmp_path / "e.h5ad")
    assert embedded.obsm["X_pca"].shape == (embedded.n_obs, 7)
    assert yaml.safe_load(embedded.uns["scdrugmap_run"])["model"] == ["pca"]

    out = run("train", files / "reference.h5ad", "--model", "pca", "--groups", "sample", "-o", tmp_path / "p")
    assert out.returncode == 0, out.stderr
    for name in ("a.h5ad", "a.csv", "a.parquet"):
        out = run("predict", files / "query.h5ad", "--predictor", tmp_path / "p", "-o", tmp_path / name)
        assert out.returncode == 0, out.stderr
    predicted = ad.read_h5ad(tmp_path / "a.h5ad").obs
    table, parquet = pd.read_csv(tmp_path / "a.csv", index_col=0), pd.read_parquet(tmp_path / "a.parquet")
    assert (table["response_pred"].to_numpy() == predicted["response_pred"].astype(str).to_numpy()).all()
    assert (parquet["response_score"].to_numpy() == predicted["response_score"].to_numpy()).all()


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
    assert out.returncode == 0, out.stderr
    for name in ("result/result.json", "results.csv", "report.html", "run.yaml"):
        assert (tmp_path / "results" / name).stat().st_size > 0
    echoed = yaml.safe_load((tmp_path / "results" / "run.yaml").read_text())
    assert {k: echoed[k] for k in spec} == spec
    again = run("report", tmp_path / "results", "-o", tmp_path / "again.html")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again.html").stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["embed", "absent.h5ad", "--model", "pca", "-o", "x.h5ad"], ["absent.h5ad", "existing"]),
        (["embed", "all.h5ad", "--model", "scgtp", "-o", "x.h5ad"], ["scgtp", "scGPT"]),
        (["embed", "all.h5ad", "--model", "pca", "-o", "x.txt"], ["x.txt", ".h5ad"]),
        (["embed", "all.h5ad", "--model", "pca", "-o", "/proc/nowhere/x.h5ad"], ["/proc/nowhere", "written"]),
        (["embed", "all.h5ad", "--model", "scGPT", "--checkpoint", "nowhere", "-o", "x.h5ad"], ["nowhere", "layout"]),
        (["embed", "all.h5ad", "-o", "x.h5ad"], ["model"]),
        (["embed", "text.h5ad", "--model", "pca", "-o", "x.h5ad"], ["text.h5ad", "readable"]),
        (["train", "all.h5ad", "--model", "pca", "--label-key", "answer", "-o", "p"], ["answer", "obs"]),
        (["predict", "all.h5ad", "--predictor", "nowhere", "-o", "x.csv"], ["nowhere", "predictor"]),
        (["benchmark", "all.h5ad", "--model", "pca", "--setting", "sideways", "-o", "r"], ["sideways", "pooled"]),
        (["benchmark", "broken.yaml"], ["broken.yaml", "YAML"]),
        (["models", "info", "genefromer"], ["genefromer", "Geneformer"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_mistakes_end_with_one_sentence(files, arguments, words):
    (files / "text.h5ad").write_text("not hdf5")
    (files / "broken.yaml").write_text("a: [1,")
    out = run(*arguments, cwd=files)
    assert out.returncode == 2, out.stdout + out.stderr
    assert "Traceback" not in out.stderr
    for word in words:
        assert word in out.stderr, out.stderr
