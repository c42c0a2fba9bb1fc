"""What the tests of the server share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

URL = "http://127.0.0.1"


def send(http: Any, content: bytes, name: str = "cells.h5ad", **more: Any) -> str:
    """Upload at once and complete; return the id."""
    made = http.post("/api/v1/uploads", json={"filename": name, "size": len(content), **more})
    assert made.status_code == 201, made.text
    upload = made.json()["id"]
    place = f"/api/v1/uploads/{upload}"
    headers = {"Upload-Offset": "0", "Content-Type": "application/octet-stream"}
    assert http.patch(place, content=content, headers=headers).json()["offset"] == len(content)
    assert http.post(f"{place}/complete").status_code == 200
    return str(upload)


def until(ask: Any, ready: Any, seconds: float = 60) -> Any:
    """Ask until the answer will do."""
    end = time.monotonic() + seconds
    while True:
        answer = ask()
        if ready(answer):
            return answer
        assert time.monotonic() < end, f"still {answer}"
        time.sleep(0.1)


class Running:
    """``scdrugmap serve`` with all its processes."""

    def __init__(self, folder: Path, *more: str, **environment: str) -> None:
        self.folder, self.more, self.environment = folder, more, environment
        self.start()

    def start(self) -> None:
        command = [
            sys.executable, "-c", "from scdrugmap.cli import main; main()", "serve", "--port", "0",
            "--data-dir", str(self.folder), "--max-upload", "64", *self.more,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, **self.environment}
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "serves at" in line, line
        self.url = line.split()[-1].rstrip("/")

    def children(self) -> dict[str, int]:
        """Process numbers by role."""
        import psutil

        found = psutil.Process(self.process.pid).children()
        roles = {p.pid: p.cmdline() for p in found}
        return {r: pid for r in ("web", "worker") for pid, line in roles.items() if r in line}

    def stop(self, number: int = signal.SIGINT) -> float:
        """Stop; return how long it took."""
        start = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(20)
        return time.monotonic() - start
