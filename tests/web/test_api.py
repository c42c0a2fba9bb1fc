"""Routes, states, errors and limits, word for word."""

from __future__ import annotations

import hashlib
import re
import time
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra [web] is not installed")

from web_tools import URL, send, until


def test_health(http: Any) -> None:
    answer = http.get("/healthz")
    assert answer.status_code == 200 and answer.json()["status"] == "ok"


def test_upload_in_pieces(http: Any) -> None:
    content = bytes(range(256)) * 10
    made = http.post("/api/v1/uploads", json={"filename": "../../etc/passwd", "size": len(content)})
    assert made.status_code == 201
    first = made.json()
    assert first["offset"] == 0 and first["state"] == "receiving"
    assert "/" not in first["filename"]
    assert re.fullmatch(r"[A-Za-z0-9_-]{22,}", first["id"])
    place = f"/api/v1/uploads/{first['id']}"
    octets = {"Content-Type": "application/octet-stream"}
    assert http.patch(place, content=content[:1000], headers={**octets, "Upload-Offset": "0"}).json()["offset"] == 1000
    wrong = http.patch(place, content=content[900:], headers={**octets, "Upload-Offset": "900"})
    assert wrong.status_code == 409 and wrong.headers["Upload-Offset"] == "1000" and wrong.json()["offset"] == 1000
    assert http.post(f"{place}/complete").status_code == 409
    assert http.get(place).json()["offset"] == 1000
    too_long = http.patch(place, content=content, headers={**octets, "Upload-Offset": "1000"})
    assert too_long.status_code == 413
    assert http.patch(place, content=content[1000:], headers={**octets, "Upload-Offset": "1000"}).status_code == 200


def test_a_deleted_upload_leaves_no_byte(http: Any, settings: Any) -> None:
    made = http.post("/api/v1/uploads", json={"filename": "a.csv", "size": 10}).json()["id"]
    http.patch(f"/api/v1/uploads/{made}", content=b"12345", headers={"Upload-Offset": "0"})
    assert (settings.data_dir / "uploads" / made).is_dir()
    assert http.delete(f"/api/v1/uploads/{made}").status_code == 204
    assert not (settings.data_dir / "uploads" / made).exists()
    assert http.get(f"/api/v1/uploads/{made}").status_code == 404


def test_a_wrong_digest_is_refused(http: Any) -> None:
    upload = send(http, b"cell,A\nx,1\n", "a.csv", sha256=hashlib.sha256(b"other").hexdigest())
    state = until(lambda: http.get(f"/api/v1/uploads/{upload}").json(), lambda s: s["state"] != "checking", 10)
    assert state["state"] == "refused" and "SHA-256" in state["reason"]


def test_every_unknown_id_gives_the_same_answer(http: Any, settings: Any) -> None:
    from scdrugmap.web.database import Upload, session
    from scdrugmap.web.state import Server

    made = http.post("/api/v1/uploads", json={"filename": "a.csv", "size": 10}).json()["id"]
    server = Server(settings)
    with session(server.engine) as db:
        db.get(Upload, made).expires = time.time() - 1
    ids = [made, "A" * 32, "x", "..%2f..%2fetc", "%00"]
    answers = {
        (a.status_code, a.text)
        for i in ids for kind in ("uploads", "jobs") for a in [http.get(f"/api/v1/{kind}/{i}")]
    }  # fmt: skip
    assert len(answers) == 1
    status, text = answers.pop()
    assert status == 404 and '"fix"' in text
    for tail in ("/files/predictions.csv", "/events", "/map", "/genes/TP53"):
        assert http.get(f"/api/v1/jobs/{'A' * 32}{tail}").text == text
    assert http.post(f"/api/v1/jobs/{'A' * 32}/cancel").text == text
    assert http.delete(f"/api/v1/jobs/{'A' * 32}").text == text


@pytest.mark.parametrize("path", ["/api/v1/uploads", "/api/v1/jobs"])
def test_there_is_no_listing(http: Any, path: str) -> None:
    assert http.get(path).status_code in (404, 405)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "169.254.1.1", ""])
def test_a_foreign_host_is_turned_away(http: Any, host: str) -> None:
    answer = http.get("/", headers={"Host": host})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "host"


def test_a_bound_host_with_any_port_is_served(http: Any) -> None:
    for host in ("127.0.0.1:9", "localhost", "[::1]:8000"):
        assert http.get("/healthz", headers={"Host": host}).status_code == 200


def test_another_page_cannot_change_anything(http: Any) -> None:
    body = {"filename": "a.csv", "size": 10}
    assert http.post("/api/v1/uploads", json=body, headers={"Origin": "http://evil.example"}).status_code == 403
    assert http.post("/api/v1/uploads", json=body, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert http.post("/api/v1/uploads", json=body, headers={"Origin": URL}).status_code == 201


def test_headers_of_every_answer(http: Any) -> None:
    for path in ("/", "/browse", "/api/v1/docs", "/api/v1/limits", "/nothing", "/static/app.js"):
        headers = http.get(path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy and "unsafe" not in policy.split("style-src")[0]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "set-cookie" not in headers


def test_no_page_has_an_inline_script_or_loads_from_elsewhere(http: Any) -> None:
    for path in ("/", "/browse", "/api/v1/docs", "/privacy"):
        page = http.get(path).text
        assert not re.search(r"<script(?![^>]*\bsrc=)", page)
        assert not re.search(r"\bon\w+=", re.sub(r">[^<]*<", "><", page))
        for tag in re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"([^\"]+)\"", page):
            assert tag.startswith("/"), tag
            assert http.get(tag).status_code == 200, tag


def test_the_first_page_says_what_it_takes(http: Any, settings: Any) -> None:
    page = http.get("/").text
    assert "64 MB" in page and "200,000 cells" in page and "7 days" in page


def test_too_large_is_said_before_anything_is_sent(http: Any) -> None:
    answer = http.post("/api/v1/uploads", json={"filename": "a.h5ad", "size": 65 * 2**20})
    assert answer.status_code == 413
    error = answer.json()["error"]
    assert "65.0 MB" in error["message"] and error["fix"]


def test_errors_have_one_form(http: Any) -> None:
    for answer in (
        http.post("/api/v1/uploads", json={"filename": "a"}),
        http.post("/api/v1/jobs", json={"kind": "nonsense"}),
        http.post("/api/v1/jobs", json={"kind": "predict"}),
        http.post("/api/v1/jobs", content=b"{", headers={"Content-Type": "application/json"}),
        http.get("/api/v1/nothing"),
        http.put("/api/v1/uploads"),
    ):
        assert 400 <= answer.status_code < 500
        error = answer.json()["error"]
        assert set(error) == {"code", "message", "fix"} and error["message"]
        assert "Traceback" not in answer.text and "/src/" not in answer.text


@pytest.mark.parametrize(
    "options",
    [{"checkpoint": "/etc/passwd"}, {"device": "cuda"}, {"store": "elsewhere"}, {"output": "x"}, {"nonsense": 1}],
)
def test_a_visitor_names_no_place_of_the_server(http: Any, options: dict[str, Any]) -> None:
    from scdrugmap.web.kinds import find
    from scdrugmap.web.problems import Problem

    for kind in ("predict", "train_predict", "benchmark"):
        with pytest.raises(Problem, match="is no option"):
            find(kind).options(options)
        with pytest.raises(Problem, match="is no option"):
            find(kind).options({"options": options})


def test_openapi_declares_the_chunk(http: Any) -> None:
    api = http.get("/api/v1/openapi.json").json()
    patch = api["paths"]["/api/v1/uploads/{upload_id}"]["patch"]
    assert list(patch["requestBody"]["content"]) == ["application/octet-stream"]
    assert any(p["in"] == "header" and p["name"].lower() == "upload-offset" for p in patch["parameters"])


def test_addresses_are_limited_but_not_loopback(settings: Any) -> None:
    from fastapi.testclient import TestClient

    from scdrugmap.web import create_app

    free = settings.model_copy(update={"starts_per_minute": 3})
    body = {"filename": "a.csv", "size": 10}
    with TestClient(create_app(free), base_url=URL, client=("127.0.0.1", 1)) as http:
        assert {http.post("/api/v1/uploads", json=body).status_code for _ in range(8)} == {201}
    public = free.model_copy(update={"public": True})
    with TestClient(create_app(public), base_url=URL, client=("127.0.0.1", 1)) as http:
        answers = [http.post("/api/v1/uploads", json=body) for _ in range(5)]
    assert [a.status_code for a in answers] == [201, 201, 201, 429, 429]
    assert int(answers[-1].headers["Retry-After"]) > 0


def test_a_key_is_asked_for_where_the_owner_sets_one(settings: Any) -> None:
    from fastapi.testclient import TestClient

    from scdrugmap.web import create_app

    body = {"filename": "a.csv", "size": 10}
    with TestClient(create_app(settings.model_copy(update={"api_keys": ("sesame",)})), base_url=URL) as http:
        assert http.post("/api/v1/uploads", json=body).status_code == 401
        assert http.post("/api/v1/uploads", json=body, headers={"Authorization": "Bearer sesame"}).status_code == 201
        assert http.get("/").status_code == 200


def test_an_address_has_a_share_of_the_disk(settings: Any) -> None:
    from fastapi.testclient import TestClient

    from scdrugmap.web import create_app

    body = {"filename": "a.csv", "size": 60 * 2**20}
    with TestClient(create_app(settings.model_copy(update={"public": True})), base_url=URL) as http:
        states = [http.post("/api/v1/uploads", json=body).status_code for _ in range(6)]
    assert states[:4] == [201] * 4 and states[4:] == [429] * 2


def test_expired_things_are_gone_from_the_disk(http: Any, settings: Any) -> None:
    from scdrugmap.web.database import Upload, session
    from scdrugmap.web.keeper import expire
    from scdrugmap.web.state import Server

    server = Server(settings)
    keep, lose = (http.post("/api/v1/uploads", json={"filename": "a.csv", "size": 10}).json()["id"] for _ in "ab")
    with session(server.engine) as db:
        db.get(Upload, lose).expires = time.time() - 1
    expire(server)
    left = {p.name for p in (settings.data_dir / "uploads").iterdir()}
    assert left == {keep}


def test_the_database_away_is_said_and_nothing_is_lost(http: Any, settings: Any, monkeypatch: Any) -> None:
    from sqlalchemy.exc import OperationalError

    from scdrugmap.web import uploads

    upload = http.post("/api/v1/uploads", json={"filename": "a.csv", "size": 10}).json()["id"]

    def away(*_: Any) -> None:
        raise OperationalError("SELECT secret", {}, Exception("/var/lib/x"))

    with monkeypatch.context() as patch:
        patch.setattr(uploads, "find", away)
        answer = http.get(f"/api/v1/uploads/{upload}")
        assert answer.status_code == 503 and "secret" not in answer.text and "/var" not in answer.text
    assert http.get(f"/api/v1/uploads/{upload}").json()["state"] == "receiving"


def test_a_full_disk_is_said(http: Any, monkeypatch: Any) -> None:
    import errno

    from scdrugmap.web import uploads

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/x")

    monkeypatch.setattr(uploads, "create", full)
    answer = http.post("/api/v1/uploads", json={"filename": "a.csv", "size": 10})
    assert answer.status_code == 507 and "/data" not in answer.text


def test_paths_never_leave() -> None:
    from scdrugmap.web.problems import without_paths

    text = "input: found /srv/data/uploads/x/cells.h5ad; see C:\\Users\\me\\f.txt or https://example.org/a/b."
    clean = without_paths(text)
    assert "/srv" not in clean and "Users" not in clean and "cells.h5ad" in clean
    assert "https://example.org/a/b" in clean


def test_spreadsheets_compute_nothing(tmp_path: Any) -> None:
    import pandas as pd

    from scdrugmap.web.results import guarded_csv

    frame = pd.DataFrame(
        {"=x": ["=1+1", "+1", "-1", "@a", "ok", None], "n": [-1.5, 2, -3, 4, 5, 0.1]}, index=list("abcdef")
    )
    guarded_csv(frame, tmp_path / "t.csv", index_label="cell")
    back = pd.read_csv(tmp_path / "t.csv")
    assert back["'=x"].tolist()[:5] == ["'=1+1", "'+1", "'-1", "'@a", "ok"]
    assert back["n"].tolist() == frame["n"].tolist()
