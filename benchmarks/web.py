"""Load on ``scdrugmap serve``: users who browse, upload and look at results while a job runs.

Run ``python benchmarks/web.py --users 50 --seconds 60``; it starts a server of its own, and prints one JSON object: errors,
median and 95th percentile of every kind of request, memory of the web process before and after, and with ``--cells``
the first paint of a large result in a real browser, with the renderer's name.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests

MB = 1 << 20


class Load:
    """What the users measure."""

    def __init__(self, url: str, demo: str, upload: bytes) -> None:
        self.url, self.demo, self.upload = url, demo, upload
        self.times: dict[str, list[float]] = defaultdict(list)
        self.errors: list[str] = []
        self.lock = threading.Lock()

    def ask(
        self, http: requests.Session, kind: str, method: str, path: str, **options: Any
    ) -> requests.Response | None:
        start = time.perf_counter()
        try:
            answer = http.request(method, self.url + path, timeout=60, **options)
            took = time.perf_counter() - start
            with self.lock:
                self.times[kind].append(took)
                if answer.status_code >= 400:
                    self.errors.append(f"{kind} {answer.status_code}")
            return answer
        except requests.RequestException as error:
            with self.lock:
                self.errors.append(f"{kind} {type(error).__name__}")
            return None

    def user(self, number: int, end: float) -> None:
        """Browse, look, sometimes upload; think in between."""
        chance, http = random.Random(number), requests.Session()
        while time.monotonic() < end:
            what = chance.random()
            if what < 0.5:
                self.ask(http, "page", "GET", chance.choice(["/", "/browse", "/privacy", f"/jobs/{self.demo}"]))
            elif what < 0.9:
                tail = chance.choice(["/map", "/layouts/0", "/fields/0", "/cells?start=0&stop=25", "/summary"])
                self.ask(http, "slice", "GET", f"/api/v1/jobs/{self.demo}{tail}")
            else:
                self.send(http)
            time.sleep(chance.uniform(0.5, 2.0))

    def send(self, http: requests.Session) -> None:
        made = self.ask(
            http, "announce", "POST", "/api/v1/uploads", json={"filename": "x.csv", "size": len(self.upload)}
        )
        if made is None or made.status_code != 201:
            return
        place = f"/api/v1/uploads/{made.json()['id']}"
        for start in range(0, len(self.upload), 4 * MB):
            headers = {"Upload-Offset": str(start), "Content-Type": "application/octet-stream"}
            self.ask(http, "chunk", "PATCH", place, data=self.upload[start : start + 4 * MB], headers=headers)
        self.ask(http, "delete", "DELETE", place)


def start(folder: Path, *more: str) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-c", "from scdrugmap.cli import main; main()", "serve", "--port", "0",
               "--data-dir", str(folder), *more]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().split()[-1].rstrip("/")


def wait_for(url: str, job: str, states: tuple[str, ...], seconds: float = 900) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        state = requests.get(f"{url}/api/v1/jobs/{job}", timeout=30).json()["state"]
        if state in states:
            return str(state)
        time.sleep(0.5)
    raise TimeoutError(job)


def web_memory(process: subprocess.Popen[str]) -> float:
    child = next(p for p in psutil.Process(process.pid).children() if "web" in p.cmdline())
    return child.memory_info().rss / MB


def large_result(folder: Path, n_cells: int) -> str:
    """Put a finished result of many cells on the shelf of a stopped server."""
    from scdrugmap.web.config import ServerSettings
    from scdrugmap.web.database import Job, migrate, session
    from scdrugmap.web.jobs import folder as folder_of
    from scdrugmap.web.jobs import new_job
    from scdrugmap.web.state import Server

    settings = ServerSettings(data_dir=folder)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    migrate(settings.database_url)
    server = Server(settings)
    job: Job = new_job(server, "benchmark", {"kind": "predict", "options": {}}, f"{n_cells:,} cells")
    job.state, job.stage = "done", "done"
    with session(server.engine) as db:
        db.add(job)
    slices = folder_of(server, job.id) / "result" / "slices"
    slices.mkdir(parents=True)
    (slices.parent / "files").mkdir()
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(12, 2)) * 8
    kind = rng.integers(12, size=n_cells)
    (centre[kind] + rng.normal(size=(n_cells, 2))).astype("<f4").tofile(slices / "layout-0.bin")
    (kind % 2).astype("<u2").tofile(slices / "field-0.bin")
    import pandas as pd
    from pyarrow import feather

    feather.write_feather(pd.DataFrame({"cell": np.arange(n_cells).astype(str)}), str(slices / "cells.arrow"),
                          compression="uncompressed", chunksize=10_000)  # fmt: skip
    fields = [{"id": 0, "name": "response_pred", "group": "prediction", "kind": "category",
               "categories": ["resistant", "sensitive"]}]  # fmt: skip
    about = {"n_cells": n_cells, "layouts": [{"name": "umap", "title": "UMAP"}], "fields": fields, "n_genes": 0}
    (slices / "map.json").write_text(json.dumps(about))
    summary = {"kind": "prediction", "n_cells": n_cells, "key": "response", "notes": [], "record": {}, "n_missing": 0,
               "fraction_resistant": 0.5, "fraction_ood": None, "calibrated": False, "sample_key": None,
               "commands": [], "samples": [], "clusters": [], "labels": None, "card": ""}  # fmt: skip
    (slices.parent / "summary.json").write_text(json.dumps(summary))
    return str(job.id)


def first_paint(url: str, job: str) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=program, args=["--no-sandbox", "--enable-unsafe-swiftshader"])
        page = browser.new_page()
        page.set_default_timeout(180_000)
        page.goto(f"{url}/jobs/{job}")
        page.wait_for_function("document.getElementById('map').dataset.painted")
        seconds = float(page.evaluate("document.getElementById('map').dataset.painted")) / 1000
        renderer = page.evaluate(
            "(() => { const g = document.createElement('canvas').getContext('webgl');"
            " const e = g.getExtension('WEBGL_debug_renderer_info'); return g.getParameter(e.UNMASKED_RENDERER_WEBGL); })()"
        )
        browser.close()
    return {"seconds": round(seconds, 2), "renderer": renderer}


def faults(folder: Path, kills: int) -> dict[str, Any]:
    """Kill worker and web process at random moments; every job must end, and in the same table."""
    import scdrugmap as sd
    from scdrugmap.web.client import Client

    port = 18_000 + os.getpid() % 1000
    process, url = start(folder, "--no-demos", "--port", str(port))
    client = Client(url)
    adata = sd.datasets.simulate(n_cells=400, n_genes=300, n_studies=2, rng=5)
    upload = client.upload(adata)["id"]
    request = {
        "query": upload,
        "reference": upload,
        "options": {"model": "pca", "head": "logistic", "groups": "sample"},
    }
    jobs = [client.submit("train_predict", **request) for _ in range(4)]
    chance, killed = random.Random(0), []
    for _ in range(kills):
        time.sleep(chance.uniform(1, 8))
        children = {("web" if "web" in p.cmdline() else "worker"): p for p in psutil.Process(process.pid).children()}
        role = chance.choice(sorted(children))
        children[role].send_signal(signal.SIGKILL)
        killed.append(role)
    states, tables = [], []
    for job in jobs:
        end = time.monotonic() + 900
        state = "?"
        while time.monotonic() < end and state not in ("done", "failed"):
            with contextlib.suppress(OSError, ValueError):
                state = client.status(job)["state"]
            time.sleep(0.5)
        states.append(state)
        tables.append(client.file(job, "predictions.csv") if state == "done" else b"")
    process.send_signal(signal.SIGINT)
    process.wait(20)
    return {"killed": killed, "states": states, "tables_equal": len(set(tables)) == 1 and bool(tables[0])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--upload-mb", type=float, default=20)
    parser.add_argument("--cells", type=int, nargs="*", default=[])
    parser.add_argument("--kills", type=int, default=0)
    options = parser.parse_args()
    out: dict[str, Any] = {"cores": psutil.cpu_count(), "load_before": [round(x, 2) for x in psutil.getloadavg()]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        large = {n: large_result(folder / "server", n) for n in options.cells}
        process, url = start(folder / "server", *([] if options.seconds else ["--no-demos"]))
        page = requests.get(url, timeout=30).text
        demos = [part.split('"')[0] for part in page.split('href="/jobs/')[1:]]
        if demos:
            wait_for(url, demos[0], ("done",))
        for n, job in large.items():
            out[f"first paint of {n:,} cells"] = first_paint(url, job)
        if options.seconds:
            load = Load(url, demos[0], os.urandom(int(options.upload_mb * MB)))
            out["job runs meanwhile"] = requests.get(f"{url}/api/v1/jobs/{demos[1]}", timeout=30).json()["state"]
            out["web MB before"] = round(web_memory(process))
            end = time.monotonic() + options.seconds
            users = [threading.Thread(target=load.user, args=(i, end)) for i in range(options.users)]
            for u in users:
                u.start()
            for u in users:
                u.join()
            out["web MB after"] = round(web_memory(process))
            out["errors"] = len(load.errors)
            out["first errors"] = load.errors[:5]
            for kind, times in sorted(load.times.items()):
                out[kind] = {
                    "n": len(times),
                    **{f"p{q} ms": round(1000 * float(np.percentile(times, q))) for q in (50, 95)},
                }
        process.send_signal(signal.SIGINT)
        begin = time.monotonic()
        process.wait(20)
        out["seconds to stop"] = round(time.monotonic() - begin, 1)
        if options.kills:
            out["faults"] = faults(folder / "faults", options.kills)
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
