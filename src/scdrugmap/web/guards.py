"""What stands before every request: host, origin, size, rate; and the headers of every answer."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import time
from collections import OrderedDict

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scdrugmap.web.config import ServerSettings
from scdrugmap.web.problems import Problem

_JSON_BYTES = 1 << 20
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
CSP = (
    "default-src 'self'; script-src 'self'{eval}; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Guard:
    """ASGI middleware that lets through what may come in.

    Parameters
    ----------
    app
        What it guards.
    settings
        What the owner decided.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.app, self.settings = app, settings
        self.rates = Rates()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on with the headers added."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        address = (scope.get("client") or ("", 0))[0]
        scope["owner"] = hashlib.sha256(b"scdrugmap" + address.encode()).hexdigest()[:32]
        scope["limited"] = self.settings.public or not _is_loopback(address)

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {k.lower() for k, _ in message["headers"]}
                more = {**_HEADERS, "Content-Security-Policy": CSP.format(eval="")}
                message["headers"] = [
                    *message["headers"],
                    *((k.encode(), v.encode()) for k, v in more.items() if k.lower().encode() not in given),
                ]
            await send(message)

        try:
            self._check(scope, headers, address)
        except Problem as problem:
            await _answer(dressed, problem)
            return
        await self.app(scope, receive, dressed)

    def _check(self, scope: Scope, headers: dict[str, str], address: str) -> None:
        host = headers.get("host", "")
        if not self.is_ours(host):
            raise Problem(400, "host", "This server is not reached under that name.", "Use its own address.")
        method, path = scope["method"], scope["path"]
        changes = method not in ("GET", "HEAD", "OPTIONS")
        if changes:
            origin = headers.get("origin")
            foreign = origin is not None and origin.split("://")[-1].lower() != host.lower()
            if foreign or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                raise Problem(403, "origin", "Another page asked for this.", "Use this server's own pages.")
            length = headers.get("content-length", "0")
            if method != "PATCH" and "transfer-encoding" in headers:
                raise Problem(411, "length", "The request does not say its length.", "Send a Content-Length.")
            if method != "PATCH" and (not length.isdigit() or int(length) > _JSON_BYTES):
                raise Problem(413, "too_large", "The request is too large.", "Send files by PATCH, piece by piece.")
        if scope["limited"] and path != "/healthz":
            starts = method == "POST" and path.rstrip("/") in ("/api/v1/uploads", "/api/v1/jobs")
            wait = self.rates.wait(address, self.settings.requests_per_minute)
            if starts:
                wait = wait or self.rates.wait(f"{address} starts", self.settings.starts_per_minute)
            if wait:
                raise Problem(429, "too_many", "Too many requests.", f"Wait {wait} seconds.", Retry_After=str(wait))
        keys = self.settings.api_keys
        if keys and changes and path.startswith("/api/"):
            given = headers.get("authorization", "").removeprefix("Bearer ") or headers.get("x-api-key", "")
            if not any(hmac.compare_digest(given.encode(), k.encode()) for k in keys):
                raise Problem(401, "key", "This server needs a key.", "Send it as Authorization: Bearer KEY.")

    def is_ours(self, host: str) -> bool:
        """Whether a Host header names this server; any other name would let a strange page read it."""
        name = host.lower().rsplit("]", 1)[0].lstrip("[") if host.startswith("[") else host.lower().split(":")[0]
        bound = self.settings.host.lower()
        known = {bound, *_LOOPBACK, *(n.lower() for n in self.settings.names)}
        if name in known:
            return True
        if bound in ("0.0.0.0", "::"):  # noqa: S104 - the owner bound every address; a number cannot be rebound
            try:
                ipaddress.ip_address(name)
            except ValueError:
                return False
            return True
        return False


class Rates:
    """Requests of every address within the last minute, by a bucket that refills."""

    def __init__(self) -> None:
        self.buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, who: str, per_minute: int) -> int:
        """Seconds to wait; 0 lets the request through and counts it."""
        now = time.monotonic()
        left, last = self.buckets.pop(who, (float(per_minute), now))
        left = min(float(per_minute), left + (now - last) * per_minute / 60)
        allowed = left >= 1
        self.buckets[who] = (left - 1 if allowed else left, now)
        while len(self.buckets) > 10_000:
            self.buckets.popitem(last=False)
        return 0 if allowed else max(1, int((1 - left) * 60 / per_minute) + 1)


async def _answer(send: Send, problem: Problem) -> None:
    body = json.dumps(problem.body()).encode()
    headers: list[tuple[bytes, bytes]] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *((k.lower().encode(), v.encode()) for k, v in problem.headers.items()),
    ]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _is_loopback(address: str) -> bool:
    if address in ("", "testclient"):
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
