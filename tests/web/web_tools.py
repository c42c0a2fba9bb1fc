"""What the tests of the server share."""

from __future__ import annotations

import time
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
