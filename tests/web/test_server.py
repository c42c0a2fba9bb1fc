"""The whole server with all its processes: upload, ask, compare with the library; death, stop and start."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("fastapi", reason="the extra [web] is not installed")

from web_tools import Running, until

OPTIONS = {"model": "pca", "head": "logistic", "groups": "sample", "seed": 3}


@pytest.fixture(scope="module")
def client(running: Any) -> Any:
    from scdrugmap.web import Client

    return Client(running.url)


@pytest.fixture(scope="module")
def expected(studies: Any) -> pd.DataFrame:
    """The library's own answer."""
    import scdrugmap as sd

    reference, query = studies[0].copy(), studies[1].copy()
    predictor = sd.tl.train(reference, model="pca", head="logistic", groups="sample", rng=3)
    sd.tl.predict_response(query, predictor, rng=3)
    return query.obs


@pytest.fixture(scope="module")
def sent(client: Any, studies: Any) -> tuple[str, str]:
    """Ids of the reference and the query on the server."""
    return client.upload(studies[0])["id"], client.upload(studies[1], chunk=100_000)["id"]


@pytest.fixture(scope="module")
def job(client: Any, sent: Any) -> str:
    made = client.submit("train_predict", reference=sent[0], query=sent[1], options=OPTIONS)
    client.wait(made, timeout=240)
    return str(made)


def test_the_check_says_what_is_in_the_file(client: Any, sent: Any) -> None:
    found = client._ask("GET", f"uploads/{sent[0]}")["check"]
    assert found["n_genes"] == 300 and found["ok"] and found["facts"]["species"] == "human"
    guesses = {c["name"]: c["looks_like"] for c in found["columns"]}
    assert guesses["response"] == "label" and guesses["sample"] == "sample" and guesses["study"] == "study"
    assert {row["model"] for row in found["coverage"]} >= {"scGPT", "Geneformer"}


def test_the_table_equals_the_library(client: Any, job: str, expected: pd.DataFrame) -> None:
    table = client.table(job)
    assert table.index[0].startswith("'=cmd")
    assert table.index[1:].tolist() == expected.index[1:].tolist()
    np.testing.assert_allclose(table["response_score"], expected["response_score"], rtol=0, atol=1e-6)
    assert table["response_pred"].tolist() == expected["response_pred"].astype(str).tolist()


def test_the_cells_come_back_untouched(client: Any, job: str, studies: Any, tmp_path: Path) -> None:
    import anndata

    path = tmp_path / "cells.h5ad"
    path.write_bytes(client.file(job, "cells.h5ad"))
    back = anndata.read_h5ad(path)
    assert back.obs_names.tolist() == studies[1].obs_names.tolist()
    assert back.obs["note"].tolist() == studies[1].obs["note"].tolist()
    assert (back.X != studies[1].X).nnz == 0


def test_every_file_can_be_taken(client: Any, job: str) -> None:
    files = {f["name"]: f["url"] for f in client.status(job)["files"]}
    assert set(files) >= {
        "predictions.csv", "cells.h5ad", "report.html", "run.yaml", "train.yaml", "predictor.zip", "map.svg", "map.pdf",
        "samples.csv", "clusters.csv",
    }  # fmt: skip
    for name, url in files.items():
        answer = client.http.get(client.url + url)
        assert answer.status_code == 200 and answer.content, name
    assert b"<script" not in client.file(job, "report.html")
    assert b'id="verdict"' in client.file(job, "report.html") and b"Worth on unseen groups" in client.file(
        job, "report.html"
    )


def test_the_same_on_the_command_line(client: Any, job: str, studies: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """The run specifications that are given back give the same predictions, bit for bit."""
    from scdrugmap.cli._runs import run
    from scdrugmap.spec import PredictSpec, TrainSpec

    monkeypatch.chdir(tmp_path)
    for name in ("train.yaml", "run.yaml"):
        Path(name).write_bytes(client.file(job, name))
    studies[0].write_h5ad("reference.h5ad")
    studies[1].write_h5ad("cells.h5ad")
    run(TrainSpec.build(Path("train.yaml")))
    run(PredictSpec.build(Path("run.yaml")))
    ours = pd.read_csv("predictions.csv", index_col=0, dtype=str)
    theirs = pd.read_csv(io.BytesIO(client.file(job, "predictions.csv")), index_col=0, dtype=str)
    assert ours["response_score"].tolist() == theirs["response_score"].tolist()


def test_slices(client: Any, job: str, expected: pd.DataFrame, studies: Any) -> None:
    import pyarrow as pa

    base = f"{client.url}/api/v1/jobs/{job}"
    about = client.http.get(f"{base}/map").json()
    n = about["n_cells"]
    places = np.frombuffer(client.http.get(f"{base}/layouts/0").content, "<f4")
    assert places.shape == (2 * n,) and np.isfinite(places).all()
    fields = {f["name"]: f for f in about["fields"]}
    pred = fields["response_pred"]
    codes = np.frombuffer(client.http.get(f"{base}/fields/{pred['id']}").content, "<u2")
    assert [pred["categories"][c] for c in codes] == expected["response_pred"].astype(str).tolist()
    symbol = str(studies[1].var_names[7])
    values = np.frombuffer(client.http.get(f"{base}/genes/{symbol}").content, "<f4")
    counts = studies[1].X.toarray()
    np.testing.assert_allclose(values, np.log1p(counts[:, 7] / counts.sum(1) * 1e4), rtol=1e-5)
    page = client.http.get(f"{base}/cells", params={"start": 5, "stop": 8}).json()
    assert page["n_cells"] == n and len(page["rows"]) == 3
    assert page["rows"][0]["cell"] == expected.index[5]
    arrow = client.http.get(f"{base}/cells", params={"format": "arrow"}).content
    table = pa.ipc.open_stream(arrow).read_all()
    assert table["cell"].to_pylist() == expected.index.tolist()
    part = client.http.get(f"{base}/fields/{pred['id']}", headers={"Range": "bytes=0-3"})
    assert part.status_code == 206 and len(part.content) == 4


def test_pages_escape_what_strangers_wrote(client: Any, job: str, sent: Any) -> None:
    for path in (f"/jobs/{job}", f"/uploads/{sent[1]}", f"/uploads/{sent[1]}/ask/train_predict"):
        page = client.http.get(client.url + path).text
        assert "<script>document" not in page, path
    assert "&lt;script&gt;document" in client.http.get(f"{client.url}/uploads/{sent[1]}").text


def test_a_failure_says_why_and_what_to_do(client: Any, sent: Any, running: Any) -> None:
    """The library's own text; no path, no traceback."""
    import scdrugmap as sd

    job = client.submit("train_predict", reference=sent[1], query=sent[0], options=OPTIONS)
    state = until(lambda: client.status(job), lambda s: s["state"] not in ("queued", "running"), 60)
    assert state["state"] == "failed" and "Fix:" in state["reason"]
    assert str(running.folder) not in state["reason"] and "Traceback" not in state["reason"]
    with pytest.raises(sd._errors.InputError) as error:
        sd.tl.train(sd.datasets.simulate(n_cells=50, n_genes=50, rng=0), model="pca", label_key="nothing")
    assert state["reason"].split(":")[0] == str(error.value).split(":")[0]


def test_events_end_with_the_job(client: Any, job: str) -> None:
    with client.http.get(f"{client.url}/api/v1/jobs/{job}/events", stream=True, timeout=10) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line.startswith(b"data:")]
    assert json.loads(lines[-1][5:])["state"] == "done"


def test_cancel_and_delete(client: Any, sent: Any, running: Any) -> None:
    slow = client.submit("benchmark", query=sent[0], options={"models": ["pca", "hvg", "scvi"], "n_folds": 5})
    waiting = client.submit("benchmark", query=sent[0], options={"models": ["pca"]})
    until(lambda: client.status(slow), lambda s: s["state"] == "running", 60)
    assert client.status(waiting)["position"] == 1
    client.cancel(waiting)
    assert client.status(waiting)["state"] == "cancelled"
    client.cancel(slow)
    until(lambda: client.status(slow), lambda s: s["state"] == "cancelled", 15)
    client.delete(slow)
    assert client.http.get(f"{client.url}/api/v1/jobs/{slow}").status_code == 404
    assert not (running.folder / "jobs" / slow).exists()


def test_death_of_the_worker_changes_no_result(client: Any, sent: Any, running: Any, expected: pd.DataFrame) -> None:
    job = client.submit("train_predict", reference=sent[0], query=sent[1], options=OPTIONS)
    until(lambda: client.status(job), lambda s: s["state"] == "running" and s["percent"] > 2, 60)
    for number in running.children().values():
        os.kill(number, signal.SIGKILL)
    time.sleep(1)

    def ask() -> Any:
        try:
            return client.status(job)
        except OSError:
            return {"state": "away"}

    state = until(ask, lambda s: s["state"] in ("done", "failed"), 200)
    assert state["state"] == "done", state
    np.testing.assert_allclose(client.table(job)["response_score"], expected["response_score"], rtol=0, atol=1e-6)


def test_stop_and_start_lose_nothing(tmp_path: Path, studies: Any, expected: pd.DataFrame) -> None:
    from scdrugmap.web import Client

    server = Running(tmp_path / "d", "--no-demos", "--retention-days", "0.01")
    client = Client(server.url)
    reference, query = (client.upload(a)["id"] for a in studies)
    job = client.submit("train_predict", reference=reference, query=query, options=OPTIONS)
    until(lambda: client.status(job), lambda s: s["state"] == "running", 60)
    assert server.stop() < 10
    assert server.process.returncode == 0
    server.start()
    client.url = server.url
    state = until(lambda: client.status(job), lambda s: s["state"] in ("done", "failed"), 200)
    assert state["state"] == "done"
    np.testing.assert_allclose(client.table(job)["response_score"], expected["response_score"], rtol=0, atol=1e-6)
    assert server.stop(signal.SIGTERM) < 10
