"""An OpenAI-compatible endpoint on loopback that answers by the genes it is told, and misbehaves where it is asked to."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

KEY = "sk-test-4f9a8b7c6d5e"
MARKER = "ABCB1"


class Endpoint:
    """``script`` is called with the request and its number; it returns text, a dict of fields, or (status, headers, body)."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.script: Callable[[dict[str, Any], int], Any] = lambda request, number: truthful(request)
        self.fingerprint: Callable[[int], str] = lambda number: "fp_1"
        self._lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with endpoint._lock:
                    number = len(endpoint.requests)
                    endpoint.requests.append(request)
                    endpoint.times.append(time.monotonic())
                    endpoint.headers.append({k.lower(): v for k, v in self.headers.items()})
                    endpoint.paths.append(self.path)
                answer = endpoint.script(request, number)
                status, headers, body = 200, {}, answer
                if isinstance(answer, tuple):
                    status, headers, body = answer
                elif not isinstance(answer, bytes):
                    body = completion(request, answer, endpoint.fingerprint(number))
                raw = body if isinstance(body, bytes) else json.dumps(body).encode()
                try:
                    self.send_response(status)
                    for name, value in {"Content-Type": "application/json", **headers}.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(raw)))
                    self.end_headers()
                    self.wfile.write(raw)
                except OSError:
                    pass  # the client gave up waiting

            def log_message(self, *args: Any) -> None:
                del args

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def cells_of(request: dict[str, Any]) -> list[str]:
    """The lines of the cells that are asked about."""
    return re.findall(r"^- cell \d+.*$", request["messages"][-1]["content"], re.M)


def truth(request: dict[str, Any]) -> list[int]:
    return [int(MARKER not in line) for line in cells_of(request)]


def as_json(labels: list[int]) -> str:
    return json.dumps({"answers": [{"cell": i, "label": label} for i, label in enumerate(labels, 1)]})


def truthful(request: dict[str, Any]) -> str:
    return as_json(truth(request))


def with_logprobs(text: str, p: float = 0.9) -> dict[str, Any]:
    """An answer whose labels have probability ``p``; every character is a token."""

    def entry(character: str) -> dict[str, Any]:
        other = {"0": "1", "1": "0"}.get(character)
        top = [{"token": character, "logprob": float(np.log(p)), "bytes": None}]
        if other:
            top.append({"token": other, "logprob": float(np.log(1 - p)), "bytes": None})
        return {"token": character, "logprob": float(np.log(p)), "bytes": None, "top_logprobs": top}

    return {"content": text, "logprobs": {"content": [entry(c) for c in text], "refusal": None}}


def completion(request: dict[str, Any], answer: Any, fingerprint: str) -> dict[str, Any]:
    fields = answer if isinstance(answer, dict) else {"content": answer}
    message = {"role": "assistant", "content": fields.get("content"), "refusal": fields.get("refusal")}
    choice = {"index": 0, "message": message, "finish_reason": fields.get("finish_reason", "stop")}
    choice["logprobs"] = fields.get("logprobs")
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": request["model"] + "-served",
        "system_fingerprint": fingerprint,
        "choices": [choice],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }
