"""Parts of the server that need neither network nor processes: forms, kinds, the worker's bookkeeping."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra [web] is not installed")

CHECK = {
    "n_cells": 500,
    "n_genes": 2000,
    "facts": {"median_genes_per_cell": 400.0},
    "columns": [{"name": "status", "looks_like": "label"}, {"name": "donor", "looks_like": "sample"}],
    "layers": ["counts"],
}


@pytest.fixture
def server(settings: Any) -> Any:
    from scdrugmap.web.database import migrate
    from scdrugmap.web.state import Server

    settings.data_dir.mkdir(parents=True)
    migrate(settings.database_url)
    return Server(settings)


def test_the_migration_makes_what_the_models_say(server: Any) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from scdrugmap.web.database import Base

    with server.engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    own = [d for d in found if "huey" not in str(d)]
    assert own == []


def test_a_form_follows_from_the_specification() -> None:
    from scdrugmap.spec import BenchmarkSpec
    from scdrugmap.web import forms, kinds

    kind = kinds.find("benchmark")
    made = {f["name"]: f for f in forms.fields(kind, CHECK)}
    assert set(made) <= set(BenchmarkSpec.model_fields)
    assert not {"input", "output", "store", "device", "n_jobs", "embed_options"} & set(made)
    assert made["label_key"]["choices"] == ["status", "donor"] and made["label_key"]["default"] == "status"
    assert made["sample_key"]["default"] == "donor"
    assert made["layer"]["choices"] == ["counts"]
    assert made["n_folds"]["minimum"] == 2 and made["n_folds"]["default"] == 10


def test_what_a_form_proposes_can_be_run() -> None:
    """Next, Next, Run."""
    from scdrugmap.web import forms, kinds

    for kind in kinds.all_kinds().values():
        values = {f["name"]: f["default"] for f in forms.fields(kind, CHECK) if f["default"] is not None}
        kind.options(values)


def test_a_wrong_value_is_told_before_the_line() -> None:
    from scdrugmap.web import kinds
    from scdrugmap.web.problems import Problem

    for kind, options in (
        ("benchmark", {}),
        ("benchmark", {"models": ["pca"], "n_folds": 1}),
        ("benchmark", {"models": ["pca"], "strategy": "prompt"}),
        ("train_predict", {"model": "pca", "seed": -1}),
        ("train_predict", {}),
    ):
        with pytest.raises(Problem) as problem:
            kinds.find(kind).options(options)
        assert problem.value.status == 422


def test_a_job_that_does_not_fit_is_refused(monkeypatch: Any) -> None:
    import psutil

    from scdrugmap.web.estimate import estimate, refuse_if_too_large
    from scdrugmap.web.problems import Problem

    small = estimate(CHECK, {"model": "pca"})
    large = estimate({**CHECK, "n_cells": 500_000}, {"model": "Geneformer"})
    assert large["seconds"] > small["seconds"] and large["memory"] > small["memory"]
    memory = type("Memory", (), {"total": 10**8, "available": 10**8})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    with pytest.raises(Problem, match="memory"):
        refuse_if_too_large(CHECK, {"model": "pca"})


def test_what_a_dead_worker_leaves_is_in_line_again(server: Any) -> None:
    """Of this machine at once, of another one when its lease is over; what lives is left alone."""
    from scdrugmap.web.database import Job, session
    from scdrugmap.web.jobs import new_job
    from scdrugmap.web.worker import LEASE, Worker, is_dead, me

    worker = Worker(server.settings)
    host = me().split("/")[0]
    now = time.time()
    cases = {
        "dead": (f"{host}/999999999/1.00", now, "queued"),
        "mine": (worker.name, now, "running"),
        "far and alive": ("elsewhere/1/1.00", now - LEASE / 2, "running"),
        "far and silent": ("elsewhere/1/1.00", now - 2 * LEASE, "queued"),
    }
    ids = {}
    with session(server.engine) as db:
        for name, (holder, beat, _) in cases.items():
            job = new_job(server, "x", {"kind": "predict", "options": {}}, name)
            job.state, job.worker, job.heartbeat = "running", holder, beat
            db.add(job)
            ids[name] = job.id
    worker.take_back()
    with session(server.engine) as db:
        found = {name: db.get(Job, i).state for name, i in ids.items()}
    assert found == {name: expected for name, (_, _, expected) in cases.items()}
    pending = {t.args[0] for t in server.queues.huey("jobs").pending()}
    assert pending == {ids["dead"], ids["far and silent"]}
    assert is_dead(f"{host}/999999999/1.00") and not is_dead(me())


def test_a_job_outlives_the_expiry_of_its_file(server: Any) -> None:
    from scdrugmap.web import uploads
    from scdrugmap.web.database import Upload, session
    from scdrugmap.web.jobs import new_job
    from scdrugmap.web.keeper import expire
    from scdrugmap.web.problems import Problem

    upload = uploads.create(server, "x", "a.csv", 10, None)
    job = new_job(server, "x", {"kind": "predict", "options": {}, "query": upload.id}, "t")
    with session(server.engine) as db:
        db.get(Upload, upload.id).expires = time.time() - 1
        db.add(job)
    expire(server)
    assert uploads.find(server, upload.id, for_job=True).id == upload.id
    with pytest.raises(Problem):
        uploads.find(server, upload.id)
    with pytest.raises(Problem, match="needs this file"):
        with session(server.engine) as db:
            db.get(Upload, upload.id).expires = time.time() + 60
        uploads.delete(server, upload.id)


@pytest.mark.parametrize("by", ["keeper", "visitor"])
def test_the_link_of_an_expired_job_says_so_and_nothing_else(server: Any, by: str) -> None:
    from scdrugmap.web import jobs
    from scdrugmap.web.database import Job, session
    from scdrugmap.web.keeper import expire
    from scdrugmap.web.problems import Problem

    job = jobs.new_job(
        server, "somebody", {"kind": "predict", "options": {}, "query": "secret"}, "Predict: patient.h5ad"
    )
    job.state, job.expires = "done", time.time() - 1
    with session(server.engine) as db:
        db.add(job)
    place = jobs.folder(server, job.id) / "result" / "files"
    place.mkdir(parents=True)
    (place / "table.csv").write_text("cell,score\n")
    if by == "keeper":
        expire(server)
    found = jobs.find(server, job.id)
    assert not jobs.folder(server, job.id).exists()
    kept = repr({name: getattr(found, name) for name in (c.name for c in Job.__table__.columns)})
    assert found.state == "expired" and not any(word in kept for word in ("patient", "secret", "somebody"))
    said = jobs.describe(server, found)
    assert said["files"] == [] and "Upload the file again" in said["reason"]
    with pytest.raises(Problem) as refused:
        jobs.again(server, "somebody", job.id)
    assert refused.value.status == 410
    with session(server.engine) as db:
        db.get(Job, job.id).expires = time.time() - 1
    expire(server)
    with pytest.raises(Problem) as gone:
        jobs.find(server, job.id)
    assert gone.value.status == 404
    with session(server.engine) as db:
        assert db.get(Job, job.id) is None


def test_an_expiry_that_is_cut_short_is_tried_again(server: Any, monkeypatch: Any) -> None:
    from scdrugmap.web import jobs
    from scdrugmap.web.database import session
    from scdrugmap.web.keeper import expire

    job = jobs.new_job(server, "x", {"kind": "predict", "options": {}}, "t")
    job.state, job.expires = "done", time.time() - 1
    with session(server.engine) as db:
        db.add(job)
    place = jobs.folder(server, job.id) / "result"
    place.mkdir(parents=True)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(jobs.shutil, "rmtree", killed)
        expire(server)
    assert place.exists()
    expire(server)
    assert not place.parent.exists()
    assert jobs.find(server, job.id).state == "expired"


def test_a_card_shows_no_markup_of_strangers() -> None:
    from scdrugmap.web.render import card

    shown = str(card("# <script>x</script>\n\n| a | <img src=x onerror=y> |\n| --- | --- |\n\n*b* `c`\n"))
    assert "<script" not in shown and "<img" not in shown
    assert "<em>b</em>" in shown and "<code>c</code>" in shown


def test_settings_reach_the_other_processes(tmp_path: Path, monkeypatch: Any) -> None:
    from scdrugmap.web import ServerSettings

    given = ServerSettings(data_dir=tmp_path, names=("a.example",), retention_days=0.5, public=True, demos=False)
    for name, value in given.environment().items():
        monkeypatch.setenv(name, value)
    assert ServerSettings() == given


def test_a_tool_of_the_specifications_is_a_job(server: Any, monkeypatch: Any) -> None:
    """``explain`` runs as the command line runs it; what it gives back names no place of the server."""
    import scdrugmap as sd
    from scdrugmap.web import kinds, runner
    from scdrugmap.web.problems import Problem

    if "explain" not in kinds.all_kinds():
        pytest.skip("this version has no interpretation")
    adata = sd.datasets.simulate(n_cells=200, n_genes=120, n_studies=1, rng=4)
    sd.tl.train(adata, model="pca", head="logistic", rng=0).save(server.settings.folder("predictors") / "mine")
    monkeypatch.setattr(runner._Run, "_cells", lambda self, role: adata.copy())
    kind = kinds.find("explain")
    assert kind.needs_predictor
    with pytest.raises(Problem, match="is no option"):
        kind.options({"source": "/etc/passwd"})
    request = {"kind": "explain", "query": "x", "predictor": "mine", "options": kind.options({"seed": 1})}
    monkeypatch.setattr(runner, "report_progress", lambda tell: None)
    state, reason = runner.run_job(server.settings, "j", request, lambda **_: None)
    assert (state, reason) == ("done", None)
    files = server.settings.folder("jobs") / "j" / "result" / "files"
    assert {"attribution.csv", "report.html", "run.yaml"} <= {f.name for f in files.iterdir()}
    for file in files.iterdir():
        assert str(server.settings.data_dir) not in file.read_text(errors="ignore"), file.name


def test_what_is_worth_no_more_than_none_is_left_off_the_shelf(server: Any, caplog: Any) -> None:
    import json
    from dataclasses import replace

    from scdrugmap.web import shelf
    from scdrugmap.web.problems import Problem

    for name, reason in (("good", ""), ("coin", "AUROC 0.50 [0.31, 0.70] on held-out groups is not above 0.5")):
        folder = server.settings.folder("predictors") / name
        folder.mkdir()
        (folder / "predictor.json").write_text(json.dumps({"training": {"worth": {"below_floor": reason}}}))
    assert [p["name"] for p in shelf.predictors(server)] == ["good"]
    assert "coin is not on the shelf: AUROC 0.50" in caplog.text
    with pytest.raises(Problem, match="no such predictor"):
        shelf.check_predictor(server, "coin")
    told = replace(server, settings=server.settings.model_copy(update={"below_floor": True}))
    assert [p["name"] for p in shelf.predictors(told)] == ["coin", "good"]
