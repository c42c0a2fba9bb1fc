"""What Python can do, the command line can: harmonise, join studies, few-shot, chat models, moved checkpoints."""

from __future__ import annotations

import inspect
import shutil
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from typer.testing import CliRunner

import scdrugmap as sd
from scdrugmap.cli._app import EXAMPLES, app
from scdrugmap.spec import PREPARE, ConcatSpec, HarmonizeSpec, extra_of

sys.path.insert(0, str(Path(__file__).parent / "prompting"))
from prompting_endpoint import KEY, Endpoint, truthful, with_logprobs


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200", "TERM": "dumb"})


@pytest.fixture
def cells(tmp_path, monkeypatch) -> ad.AnnData:
    monkeypatch.chdir(tmp_path)
    adata = sd.datasets.simulate(n_studies=2, n_cells=160, n_genes=60, rng=0)
    one, other = (adata[adata.obs["study"] == s].copy() for s in ("study1", "study2"))
    one.write_h5ad("first.h5ad")
    other.write_h5ad("second.h5ad")
    return adata


def fields(spec):
    return {n for f, about in spec.model_fields.items() for n in extra_of(about).get("argument", [f])}


def test_every_argument_of_the_tools_is_a_field():
    for function in (sd.pp.harmonize_genes, sd.pp.harmonize_response):
        assert set(inspect.signature(function).parameters) - {"adata", "copy"} <= fields(HarmonizeSpec)
    assert set(inspect.signature(sd.pp.concat_studies).parameters) - {"chunk_size"} <= fields(ConcatSpec)


@pytest.mark.parametrize("name", PREPARE)
def test_examples_name_the_command(name):
    assert EXAMPLES[name].startswith(f"scdrugmap {name} ")
    assert run(name, "-h").exit_code == 0


def test_harmonize(cells):
    adata = ad.read_h5ad("first.h5ad")
    adata.obs["arm"] = np.where(adata.obs["response"] == "resistant", "non-responder (1)", "PS")
    adata.obs.loc[adata.obs_names[0], "arm"] = "lost"
    adata.write_h5ad("raw.h5ad")
    out = run("harmonize", "raw.h5ad", "--column", "arm", "-o", "done.h5ad")
    assert out.exit_code == 3 and "lost" in out.output and not Path("done.h5ad").exists()
    maps = ["--map", "non-responder (1)=resistant", "--map", "PS=sensitive", "--map", "lost="]
    out = run("harmonize", "raw.h5ad", "--column", "arm", *maps, "--key-added", "label", "-o", "done.h5ad")
    assert out.exit_code == 0, out.output
    done = ad.read_h5ad("done.h5ad")
    assert (done.obs["label"].astype(str)[1:] == adata.obs["response"].astype(str)[1:]).all()
    assert done.obs["label"].isna().tolist()[0]
    assert "scdrugmap_genes" in done.uns and "gene_symbol" in done.var
    (Path("run.yaml")).write_text(done.uns["scdrugmap_run"])
    assert run("harmonize", "--spec", "run.yaml", "-o", "again.h5ad").exit_code == 0


def test_concat(cells):
    out = run("concat", "A=first.h5ad", "second.h5ad", "-o", "both.h5ad")
    assert out.exit_code == 0, out.output
    both = ad.read_h5ad("both.h5ad")
    assert both.obs["study"].unique().tolist() == ["A", "second"] and both.n_obs == cells.n_obs
    assert run("concat", "first.h5ad", "first.h5ad", "-o", "x.h5ad").exit_code == 2
    assert run("concat", "first.h5ad", "-o", "x.h5ad").exit_code == 2
    assert run("concat", "first.h5ad", "gone.h5ad", "-o", "x.h5ad").exit_code == 3
    assert run("concat", "first.h5ad", "second.h5ad", "-o", "first.h5ad").exit_code == 2
    assert not Path("x.h5ad").exists()


def test_few_shot(cells):
    out = run(
        "predict", "second.h5ad", "--reference", "first.h5ad", "--model", "pca", "--n-shots", 3, "--shot-unit", "cell",
        "--set", "head=logistic", "--set", "n_components=3", "-o", "calls.h5ad",
    )  # fmt: skip
    assert out.exit_code == 0, out.output
    calls = ad.read_h5ad("calls.h5ad")
    assert len(calls.uns["response"]["shots"]) == 6 and calls.obs["response_score"].notna().all()


def test_chat_model(cells, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = Endpoint()
    server.script = lambda request, number: with_logprobs(truthful(request), 0.75)
    try:
        out = run(
            "predict", "second.h5ad", "--model", "gpt-4o-mini", "--reference", "first.h5ad", "--n-shots", 1,
            "--set", f"base_url={server.url}", "--set", f"cache={tmp_path / 'cache'}",
            "-o", "asked.csv",
        )  # fmt: skip
    finally:
        server.close()
    assert out.exit_code == 0, out.output
    assert "response_status" in Path("asked.csv").read_text()


def test_moved_checkpoint(cells, tmp_path, monkeypatch):
    from scdrugmap import _anndata
    from scdrugmap.models.tgpt import TGPT

    made = []

    def from_checkpoint(cls, path, **options):
        assert Path(path).is_dir()
        model = TGPT.random(_anndata.gene_ids(cells), **options)
        model.digests = {"weights": "1"}
        made.append(str(path))
        return model

    monkeypatch.setattr(TGPT, "from_checkpoint", classmethod(from_checkpoint))
    monkeypatch.setattr(sd.settings, "embedding_cache", False)
    Path("here").mkdir()
    reference = ad.read_h5ad("first.h5ad")
    sd.tl.train(reference, "tgpt", checkpoint="here", head="logistic", rng=0).save("predictor")
    shutil.move("here", "there")
    out = run("predict", "second.h5ad", "-p", "predictor", "-o", "out.csv")
    assert out.exit_code == 3 and "--checkpoint" in out.output and "load_predictor" in out.output
    out = run("predict", "second.h5ad", "-p", "predictor", "--checkpoint", "there", "-o", "out.csv")
    assert out.exit_code == 0, out.output
    assert made[-1].endswith("there") and Path("out.csv").is_file()
