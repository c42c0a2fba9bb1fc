"""A web server on loopback that misbehaves on request, and a registry that points at it."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files``; the first part of a path names the misbehaviour: ``/cut/model.bin``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.etags: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.sent: Counter[str] = Counter()
        self.base = f"http://127.0.0.1:{self.server_address[1]}"
        self.slow = 0.0

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed on purpose leave no trace in the output."""

    def paths(self) -> list[str]:
        return [p for p, _ in self.requests]

    def ranges(self) -> list[str | None]:
        return [h.get("range") for _, h in self.requests]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((path, {k.lower(): v for k, v in self.headers.items()}))
        self.server.counts[path] += 1
        self.nth = self.server.counts[path]
        _, how, name = path.split("/", 2)
        self.key = name
        getattr(self, f"how_{how}", self.how_ok)(name, self.server.files.get(name))

    def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        basic = {"Content-Length": str(len(body)), "Content-Type": "application/octet-stream"}
        for k, v in (basic | {k.replace("_", "-"): v for k, v in headers.items()}).items():
            if v:
                self.send_header(k, v)
        self.end_headers()
        step = 4096 if self.server.slow else max(len(body), 1)
        for i in range(0, len(body), step):
            self.wfile.write(body[i : i + step])
            self.server.sent[self.key] += len(body[i : i + step])
            time.sleep(self.server.slow)

    def how_ok(self, name: str, body: bytes | None, stop: int | None = None, validator: str | None = None) -> None:
        if body is None:
            return self.answer(404)
        etag = f'"{self.server.etags.get(name, sha256(body)[:8])}"' if validator is None else validator
        wanted = self.headers.get("Range")
        if wanted and self.headers.get("If-Range", etag) == etag:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            if start >= len(body):
                return self.answer(416, Content_Range=f"bytes */{len(body)}")
            rest = body[start:]
            self.answer(
                206,
                rest[:stop],
                ETag=etag,
                Content_Length=str(len(rest)),
                Content_Range=f"bytes {start}-{len(body) - 1}/{len(body)}",
            )
        else:
            self.answer(200, body[:stop], ETag=etag, Content_Length=str(len(body)))
        if stop is not None:
            self.close_connection = True

    def how_redirect(self, name: str, body: bytes | None) -> None:
        self.answer(302, Location=f"/ok/{name}")

    def how_cut(self, name: str, body: bytes) -> None:
        """Breaks off after 20,000 bytes, every time, but resumes."""
        self.how_ok(name, body, stop=20_000)

    def how_cutonce(self, name: str, body: bytes) -> None:
        self.how_ok(name, body, stop=20_000 if self.nth == 1 else None)

    def how_cutnorange(self, name: str, body: bytes) -> None:
        """Breaks off once and does not know ranges."""
        half = self.nth == 1
        self.answer(200, body[:20_000] if half else body, ETag='"x"', Content_Length=str(len(body)))
        self.close_connection = half

    def how_nolabel(self, name: str, body: bytes) -> None:
        """Breaks off once and sends no validator, so that nothing may be spliced."""
        self.how_ok(name, body, stop=20_000 if self.nth == 1 else None, validator="")

    def how_wrongstart(self, name: str, body: bytes) -> None:
        if self.nth == 1:
            return self.how_ok(name, body, stop=20_000)
        if self.headers.get("Range"):
            return self.answer(206, body[5:], ETag='"x"', Content_Range=f"bytes 5-{len(body) - 1}/{len(body)}")
        self.how_ok(name, body)

    def how_toolong(self, name: str, body: bytes) -> None:
        """Announces more bytes than it has, for ever."""
        self.answer(200, body, ETag='"x"', Content_Length=str(len(body) + 1000))
        self.close_connection = True

    def how_tooshort(self, name: str, body: bytes) -> None:
        """Announces fewer bytes than the file has."""
        self.answer(200, body[:-1000], ETag='"x"')

    def how_chunked(self, name: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for i in range(0, len(body), 10_000):
            piece = body[i : i + 10_000]
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def how_gzipped(self, name: str, body: bytes) -> None:
        self.answer(200, gzip.compress(body), Content_Encoding="gzip", ETag='"x"')

    def how_drip(self, name: str, body: bytes) -> None:
        """Sends a byte now and then, for ever."""
        self.answer(200, b"", ETag='"x"', Content_Length=str(len(body)))
        for i in range(100):
            self.wfile.write(body[i : i + 1])
            time.sleep(0.05)

    def how_dripgzipped(self, name: str, body: bytes) -> None:
        self.answer(200, b"", Content_Encoding="gzip", Content_Length="")
        for i in range(100):
            self.wfile.write(gzip.compress(body)[i : i + 1])
            time.sleep(0.05)

    def how_headers(self, name: str, body: bytes) -> None:
        """Headers that do not end, each in time."""
        self.send_response(200)
        self.flush_headers()
        for i in range(90):
            self.wfile.write(f"X-{i}: more\r\n".encode())
            time.sleep(0.05)

    def how_silent(self, name: str, body: bytes) -> None:
        time.sleep(5)

    def how_hush(self, name: str, body: bytes) -> None:
        """Begins well and falls silent."""
        self.answer(200, body[:20_000], ETag='"x"', Content_Length=str(len(body)))
        time.sleep(5)

    def how_wrong(self, name: str, body: bytes) -> None:
        self.answer(200, bytes(reversed(body)))

    def how_login(self, name: str, body: bytes) -> None:
        self.answer(200, b"<!DOCTYPE html><html><title>Sign in</title></html>", Content_Type="text/html; charset=utf-8")

    def how_disguised(self, name: str, body: bytes) -> None:
        self.answer(200, b"\n <HTML><title>Sign in</title></HTML>")

    def how_message(self, name: str, body: bytes) -> None:
        self.answer(200, b'{"error": "no such file"}', Content_Type="application/json")

    def how_empty202(self, name: str, body: bytes) -> None:
        self.answer(202, b"", **{"x-amzn-waf-action": "challenge"})

    def how_busy(self, name: str, body: bytes) -> None:
        if self.nth <= 2:
            return self.answer(429, b"", Retry_After="7")
        self.how_ok(name, body)

    def how_banned(self, name: str, body: bytes) -> None:
        self.answer(429, b"", Retry_After="86400")

    def how_flaky(self, name: str, body: bytes) -> None:
        if self.nth <= 2:
            return self.answer(500 if self.nth == 1 else 503)
        self.how_ok(name, body)

    def how_reset(self, name: str, body: bytes) -> None:
        if self.nth == 1:
            self.close_connection = True
            self.connection.close()
            return
        self.how_ok(name, body)

    def how_gated(self, name: str, body: bytes) -> None:
        if self.headers.get("Authorization") != "Bearer secret":
            return self.answer(401)
        self.how_ok(name, body)

    def how_hf(self, name: str, body: bytes) -> None:
        """A hub that redirects large files and names their digest beside the redirect."""
        self.answer(302, Location=f"/ok/{name}", X_Linked_ETag=f'"{sha256(body)}"')


for code in (403, 404, 500):
    setattr(Handler, f"how_{code}", lambda self, name, body, code=code: self.answer(code))


@pytest.fixture
def server() -> Iterator[Server]:
    instance = Server()
    instance.files["model.bin"] = np.random.default_rng(0).bytes(100_000)
    thread = threading.Thread(target=instance.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield instance
    instance.shutdown()
    instance.server_close()


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, no waiting, no token or licence from outside."""
    from scdrugmap.download import transfer
    from scdrugmap.settings import settings

    monkeypatch.setattr(settings, "cache_dir", tmp_path / "cache")
    monkeypatch.setattr(settings, "offline", False)
    monkeypatch.setattr(settings, "mirror", None)
    monkeypatch.setattr(transfer, "BACKOFF", (0.0, 0.0))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "SCDRUGMAP_ACCEPT_LICENCE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Write a registry of one entry ``toy``: ``registry(files=[...], licence=...)``."""
    import yaml

    from scdrugmap.download import catalog

    folder = tmp_path / "registry"
    folder.mkdir()
    monkeypatch.setattr(catalog, "REGISTRY_FOLDER", folder)

    def write(files: list[dict], key: str = "toy", **fields: object) -> None:
        path = folder / "checkpoints.yaml"
        known = yaml.safe_load(path.read_text()) if path.exists() else {}
        known[key] = {"title": "Toy", "licence": "MIT", "source": "https://example.org/toy", **fields, "files": files}
        path.write_text(yaml.safe_dump(known))
        (folder / "datasets.yaml").write_text("{}")
        catalog._read.cache_clear()

    yield write
    catalog._read.cache_clear()
