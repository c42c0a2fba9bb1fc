"""The transfer against a server that redirects, resumes, breaks off, lies, refuses and sends pages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scdrugmap._errors import DownloadError, IntegrityError, LicenceError
from scdrugmap.download import transfer as module
from scdrugmap.download.transfer import PATIENCE, Transfer


def get(server, how: str, tmp_path: Path, **options) -> bytes:
    return Transfer(tmp_path / "x.part", progress=False, **options).fetch(f"{server.base}/{how}/model.bin").read_bytes()


@pytest.mark.parametrize(
    "how",
    [
        "ok", "redirect", "cut", "cutonce", "cutnorange", "nolabel", "wrongstart", "chunked", "gzipped", "flaky",
        "reset", "hf",
    ],
)  # fmt: skip
def test_arrives_whole(server, tmp_path, how):
    assert get(server, how, tmp_path, size=100_000) == server.files["model.bin"]


def test_introduces_itself_and_asks_for_plain_bytes(server, tmp_path):
    get(server, "ok", tmp_path)
    headers = server.requests[0][1]
    assert headers["user-agent"].startswith("scdrugmap/") and "http" in headers["user-agent"]
    assert headers["accept-encoding"] == "identity"


def test_resumes_where_it_broke_off(server, tmp_path):
    get(server, "cut", tmp_path)
    assert server.ranges() == [None, "bytes=20000-", "bytes=40000-", "bytes=60000-", "bytes=80000-"]
    assert server.sent["model.bin"] == 100_000
    assert all(h.get("if-range") for _, h in server.requests[1:])


def test_without_validator_nothing_is_spliced(server, tmp_path):
    get(server, "nolabel", tmp_path)
    assert server.ranges() == [None, None]


def test_changed_file_is_fetched_afresh(server, tmp_path):
    part = tmp_path / "x.part"
    part.write_bytes(b"old" * 1000)
    url = f"{server.base}/ok/model.bin"
    Path(f"{part}.json").write_text(json.dumps({"url": url, "validator": '"older"', "total": 100_000}))
    assert get(server, "ok", tmp_path) == server.files["model.bin"]
    assert server.ranges() == ["bytes=3000-"] and server.sent["model.bin"] == 100_000


def test_leftover_of_another_address_is_dropped(server, tmp_path):
    (tmp_path / "x.part").write_bytes(b"?" * 10)
    (tmp_path / "x.part.json").write_text('{"url": "http://elsewhere/", "validator": "\\"a\\""}')
    assert get(server, "ok", tmp_path) == server.files["model.bin"]
    assert server.ranges() == [None]


def test_complete_part_is_recognised(server, tmp_path):
    get(server, "ok", tmp_path)
    assert get(server, "ok", tmp_path, size=100_000) == server.files["model.bin"]
    assert server.sent["model.bin"] == 100_000


def test_part_that_is_longer_than_the_file_is_dropped(server, tmp_path):
    get(server, "ok", tmp_path)
    with (tmp_path / "x.part").open("ab") as out:
        out.write(b"tail")
    assert get(server, "ok", tmp_path) == server.files["model.bin"]


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ("403", LicenceError, "register_local"),
        ("gated", LicenceError, "HF_TOKEN"),
        ("404", DownloadError, "HTTP 404"),
        ("500", DownloadError, "gave up after"),
        ("login", DownloadError, "web page"),
        ("disguised", DownloadError, "web page"),
        ("message", DownloadError, "JSON"),
        ("empty202", DownloadError, "HTTP 202"),
        ("toolong", DownloadError, "gave up after"),
        ("banned", DownloadError, "86400 seconds"),
    ],
)
def test_refusals_are_named(server, tmp_path, how, error, text):
    with pytest.raises(error, match=text):
        get(server, how, tmp_path)


def test_patience_is_bounded(server, tmp_path):
    with pytest.raises(DownloadError):
        get(server, "500", tmp_path)
    assert len(server.requests) == PATIENCE


def test_missing_file_is_asked_for_once(server, tmp_path):
    with pytest.raises(DownloadError):
        get(server, "404", tmp_path)
    assert len(server.requests) == 1


@pytest.mark.parametrize("how", ["tooshort", "toolong"])
def test_announced_length_is_compared_before_a_byte_is_kept(server, tmp_path, how):
    with pytest.raises(IntegrityError, match="the registry says 100,000"):
        get(server, how, tmp_path, size=100_000)
    assert not (tmp_path / "x.part").exists()


def test_length_is_compared_where_none_was_announced(server, tmp_path):
    with pytest.raises(IntegrityError, match="100,000 bytes came"):
        get(server, "chunked", tmp_path, size=99_999)
    assert not (tmp_path / "x.part").exists()


def test_waits_as_long_as_it_is_told(server, tmp_path):
    waits: list[float] = []
    assert get(server, "busy", tmp_path, sleep=waits.append) == server.files["model.bin"]
    assert waits == [7.0, 7.0]


def test_full_disk_is_noticed_before_the_first_byte(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("U", (), {"free": 1000})())
    with pytest.raises(DownloadError, match="SCDRUGMAP_CACHE_DIR"):
        get(server, "ok", tmp_path)
    assert not (tmp_path / "x.part").exists()


def test_unreachable_server(tmp_path):
    with pytest.raises(DownloadError, match="ConnectionError"):
        Transfer(tmp_path / "x.part", progress=False).fetch("http://127.0.0.1:9/model.bin")


def test_progress_object_counts_every_byte(server, tmp_path):
    class Bar:
        total, n, closed = None, 0, False

        def update(self, n):
            self.n += n

        def reset(self):
            self.n = 0

        def close(self):
            self.closed = True

    bar = Bar()
    Transfer(tmp_path / "x.part", progress=bar).fetch(f"{server.base}/cut/model.bin")
    assert (bar.total, bar.n) == (100_000, 100_000)


def test_is_a_downloader_for_pooch(server, tmp_path):
    import pooch

    path = pooch.retrieve(
        f"{server.base}/cutonce/model.bin",
        None,
        "m.bin",
        tmp_path,
        downloader=Transfer(tmp_path / "m.part", progress=False),
    )
    assert Path(path).read_bytes() == server.files["model.bin"]
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["m.bin"]


@pytest.fixture
def impatient(monkeypatch):
    """Limits of a fraction of a second, so that a server that hangs is given up at once."""
    from scdrugmap.settings import settings

    monkeypatch.setattr(module, "CONNECT", 0.2)
    monkeypatch.setattr(settings, "download_rate", 1000)
    monkeypatch.setattr(settings, "download_window", 0.3)


@pytest.mark.parametrize("how", ["drip", "dripgzipped", "headers", "silent", "hush"])
def test_stalled_server_is_given_up(server, tmp_path, impatient, how):
    with pytest.raises(DownloadError, match="silent or too slow"):
        get(server, how, tmp_path)
    assert len(server.requests) == 1


def test_bytes_of_a_stalled_server_are_kept(server, tmp_path, impatient):
    with pytest.raises(DownloadError, match="20,000 bytes that arrived are kept"):
        get(server, "hush", tmp_path)
    assert (tmp_path / "x.part").read_bytes() == server.files["model.bin"][:20_000]


def test_stall_after_good_progress_is_tried_again(server, tmp_path, impatient, monkeypatch):
    monkeypatch.setattr(module, "WORTHWHILE", 10_000)
    with pytest.raises(DownloadError, match="silent or too slow"):
        get(server, "hush", tmp_path)
    assert server.ranges() == [None, "bytes=20000-"]


def test_steady_slow_transfer_is_left_alone(server, tmp_path, impatient):
    server.slow = 0.02  # 25 pieces of 4096 bytes: longer than the window, faster than the limit
    assert get(server, "ok", tmp_path) == server.files["model.bin"]
