"""Fetch, verify, register, remove, against the loopback server."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
import warnings
import zipfile
from pathlib import Path

import pytest

from scdrugmap import download
from scdrugmap._errors import (
    DownloadError,
    InputError,
    IntegrityError,
    LicenceError,
    OfflineError,
    ScDrugMapWarning,
    UnknownNameError,
)
from scdrugmap.download import ledger
from scdrugmap.settings import settings


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def spec(server, how: str = "ok", name: str = "model.bin", **fields) -> dict:
    return {"name": name, "urls": [f"{server.base}/{how}/{name}"], **fields}


def known(server, name: str = "model.bin") -> dict:
    return {"size": len(server.files[name]), "sha256": sha256(server.files[name]), "grade": "A"}


def fetch(key: str = "toy", **options) -> Path:
    return download.fetch("checkpoints", key, progress=False, **options)


def test_verified_file_in_its_folder(server, registry, private_cache):
    registry([spec(server, "redirect", **known(server))])
    folder = fetch()
    assert folder == private_cache / "checkpoints" / "toy"
    assert [p.name for p in folder.iterdir()] == ["model.bin"]
    assert (folder / "model.bin").read_bytes() == server.files["model.bin"]
    assert download.where("checkpoints", "TOY") == folder
    assert download.verify("checkpoints", "toy")["state"].tolist() == ["ok"]
    assert not (private_cache / "checkpoints" / ".staging" / "toy").exists()


def test_second_call_asks_nobody(server, registry):
    registry([spec(server, **known(server))])
    fetch()
    n = len(server.requests)
    fetch()
    assert len(server.requests) == n == 1


def test_addresses_are_tried_in_order(server, registry):
    good = spec(server, **known(server))
    urls = [f"{server.base}/{how}/model.bin" for how in ("404", "403", "login", "wrong", "ok", "redirect")]
    registry([good | {"urls": urls}])
    assert (fetch() / "model.bin").read_bytes() == server.files["model.bin"]
    assert server.paths() == [f"/{how}/model.bin" for how in ("404", "403", "login", "wrong", "ok")]


def test_wrong_digest_leaves_nothing(server, registry, private_cache):
    registry([spec(server, "wrong", **known(server))])
    with pytest.raises(IntegrityError, match=r"(?s)not the one that was registered.*register_local"):
        fetch()
    assert not [p for p in private_cache.rglob("*") if p.is_file() and p.suffix == ".bin"]
    assert download.where("checkpoints", "toy") is None


def test_remedy_is_named_when_nothing_works(server, registry):
    registry([spec(server, "404", **known(server))], manual="ask the authors.")
    with pytest.raises(
        DownloadError, match=r"(?s)HTTP 404.*By hand: ask the authors.*register_local\('checkpoints', 'toy'"
    ):
        fetch()


def test_entry_without_address_says_what_to_do(server, registry):
    registry([{"name": "model.bin"}], manual="open the share in a browser.")
    with pytest.raises(DownloadError, match="open the share in a browser"):
        fetch()


def test_first_download_is_recorded_and_compared_ever_after(server, registry, private_cache, capsys):
    registry([spec(server)])
    fetch()
    record = json.loads((private_cache / "digests.json").read_text())["checkpoints/toy/model.bin"]
    assert record["sha256"] == sha256(server.files["model.bin"])
    assert record["origin"] == "first download"
    download.remove("checkpoints", "toy")
    server.files["model.bin"] = b"another version"
    with pytest.raises(IntegrityError, match="first download"):
        fetch()
    download.remove("checkpoints", "toy", forget=True)
    assert (fetch() / "model.bin").read_bytes() == b"another version"


def test_first_download_is_announced(server, registry, monkeypatch):
    from scdrugmap._logging import get_logger

    said: list[str] = []
    monkeypatch.setattr(get_logger(), "warning", lambda text, *args: said.append(text % args))
    registry([spec(server)])
    fetch()
    assert any("no digest is published" in s and sha256(server.files["model.bin"]) in s for s in said)
    assert said[0] == "toy: licence MIT"


def test_digest_of_the_hub_is_used(server, registry, private_cache):
    registry([spec(server, "hf")])
    fetch()
    assert ledger.read()["checkpoints/toy/model.bin"]["origin"] == "provider"


def test_md5_only(server, registry):
    registry([spec(server, md5=hashlib.md5(server.files["model.bin"]).hexdigest())])
    fetch()
    download.remove("checkpoints", "toy")
    server.files["model.bin"] = b"x" * 100_000
    with pytest.raises(IntegrityError):
        fetch()


def test_altered_file_is_fetched_again(server, registry):
    registry([spec(server, **known(server))])
    path = fetch() / "model.bin"
    path.write_bytes(b"x" * 100_000)
    assert download.verify("checkpoints")["state"].tolist() == ["altered"]
    assert download.where("checkpoints", "toy") is None
    with pytest.warns(ScDrugMapWarning, match="has changed since it was verified"):
        fetch()
    assert path.read_bytes() == server.files["model.bin"]


def test_touched_file_is_not_fetched_again(server, registry):
    registry([spec(server, **known(server))])
    path = fetch() / "model.bin"
    os.utime(path, (1, 1))
    fetch()
    assert len(server.requests) == 1


def test_file_put_into_the_cache_by_hand(server, registry, private_cache):
    registry([spec(server, **known(server))])
    folder = private_cache / "checkpoints" / "toy"
    folder.mkdir(parents=True)
    (folder / "model.bin").write_bytes(server.files["model.bin"])
    assert fetch() == folder
    assert server.requests == []
    (folder / "model.bin").write_bytes(b"nonsense")
    ledger.ledger_path().unlink()
    with pytest.raises(IntegrityError, match="is not the digest"):
        fetch()


def test_licence_has_to_be_accepted_before_the_first_byte(server, registry, monkeypatch):
    registry([spec(server, **known(server))], licence="research only", non_commercial=True)
    with pytest.raises(LicenceError, match="accept_licence=True"):
        fetch()
    assert server.requests == []
    fetch(accept_licence=True)
    download.remove("checkpoints", "toy")
    fetch()  # remembered


def test_licence_accepted_in_the_environment(server, registry, monkeypatch):
    registry([spec(server, **known(server))], gated=True)
    monkeypatch.setenv("SCDRUGMAP_ACCEPT_LICENCE", "other, Toy")
    fetch()


def test_token_goes_to_the_hub_only(server, registry, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    registry([spec(server, "gated", **known(server))], gated=True)
    with pytest.raises(LicenceError, match="HTTP 401"):
        fetch(accept_licence=True)
    assert "authorization" not in server.requests[-1][1]
    monkeypatch.setenv("HF_ENDPOINT", server.base)
    fetch()
    assert server.requests[-1][1]["authorization"] == "Bearer secret"


def test_token_is_not_sent_for_open_files(server, registry, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("HF_ENDPOINT", server.base)
    registry([spec(server, **known(server))])
    fetch()
    assert "authorization" not in server.requests[-1][1]


def test_short_form_of_the_hub(server, registry, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.base)
    server.files["repo/resolve/abc/sub/model.bin"] = server.files["model.bin"]
    registry([{"name": "model.bin", "urls": ["hf:ok/repo@abc/sub/model.bin"], **known(server)}])
    fetch()
    assert server.paths() == ["/ok/repo/resolve/abc/sub/model.bin"]


@pytest.mark.parametrize("how", ["setting", "hub variable"])
def test_offline(server, registry, monkeypatch, how):
    registry([spec(server, **known(server))])
    if how == "setting":
        monkeypatch.setattr(settings, "offline", True)
    else:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OfflineError, match=f"(?s){server.base}.*{known(server)['sha256']}.*put it at"):
        fetch()
    assert server.requests == []


def test_offline_uses_the_cache(server, registry, monkeypatch):
    registry([spec(server, **known(server))])
    folder = fetch()
    monkeypatch.setattr(settings, "offline", True)
    assert fetch() == folder


def test_mirror_is_tried_first_and_not_trusted(server, registry, monkeypatch):
    registry([spec(server, **known(server))])
    monkeypatch.setattr(settings, "mirror", f"{server.base}/wrong")
    server.files["checkpoints/toy/model.bin"] = server.files["model.bin"]
    assert (fetch() / "model.bin").read_bytes() == server.files["model.bin"]
    assert server.paths() == ["/wrong/checkpoints/toy/model.bin", "/ok/model.bin"]


def test_optional_files_on_request(server, registry):
    server.files["extra.bin"] = b"extra"
    registry([spec(server, **known(server)), spec(server, name="extra.bin", required=False)])
    assert not (fetch() / "extra.bin").exists()
    assert (fetch(files="extra.*") / "extra.bin").read_bytes() == b"extra"
    with pytest.raises(UnknownNameError, match=r"extra\.bin"):
        fetch(files="extra.pin")


def test_same_bytes_are_fetched_once(server, registry):
    registry([spec(server, **known(server))])
    registry([spec(server, **known(server))], key="twin")
    fetch()
    folder = fetch("twin")
    assert len(server.requests) == 1
    download.remove("checkpoints", "toy")
    assert (folder / "model.bin").read_bytes() == server.files["model.bin"]


def test_vocabulary_becomes_a_list(server, registry):
    server.files["vocab.json"] = json.dumps({"B": 1, "A": 0, "C": 2, "<pad>": 3}).encode()
    urls = [f"{server.base}/ok/vocab.json"]
    registry([{"name": "genes.txt", "urls": urls, "convert": "vocabulary", "sha256": sha256(b"A\nB\nC")}])
    assert (fetch() / "genes.txt").read_text() == "A\nB\nC"
    download.remove("checkpoints", "toy")
    server.files["vocab.json"] = b'["B", "A", "C"]'
    with pytest.raises(IntegrityError):
        fetch()


def tarball(members: dict[str, bytes], edit=None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        if edit:
            edit(tar)
    return out.getvalue()


def test_archive_leaves_its_members(server, registry):
    server.files["emb.tar.gz"] = tarball({"emb/a.pt": b"a", "emb/b.pt": b"bb"})
    registry([spec(server, name="emb.tar.gz", unpack=".")])
    folder = fetch()
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == ["emb/a.pt", "emb/b.pt"]
    fetch()
    assert len(server.requests) == 1
    (folder / "emb/b.pt").unlink()
    assert download.where("checkpoints", "toy") is None
    fetch()
    assert (folder / "emb/b.pt").read_bytes() == b"bb"


def climb(tar: tarfile.TarFile) -> None:
    info = tarfile.TarInfo("../evil")
    info.size = 4
    tar.addfile(info, io.BytesIO(b"evil"))


def absolute_link(tar: tarfile.TarFile) -> None:
    info = tarfile.TarInfo("link")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    tar.addfile(info)


def device(tar: tarfile.TarFile) -> None:
    info = tarfile.TarInfo("dev")
    info.type = tarfile.CHRTYPE
    tar.addfile(info)


@pytest.mark.parametrize("edit", [climb, absolute_link, device])
def test_unsafe_tar_writes_nothing(server, registry, tmp_path, edit):
    server.files["emb.tar.gz"] = tarball({"a.pt": b"a"}, edit)
    registry([spec(server, name="emb.tar.gz", unpack=".")])
    with pytest.raises(DownloadError, match="nothing was unpacked"):
        fetch()
    assert not list(tmp_path.rglob("evil")) and not list(tmp_path.rglob("a.pt"))


@pytest.mark.parametrize("name", ["../evil", "/evil", "..\\evil", "C:/evil"])
def test_unsafe_zip_writes_nothing(tmp_path, name):
    from scdrugmap.download.archives import unpack

    with zipfile.ZipFile(tmp_path / "x.zip", "w") as bundle:
        bundle.writestr("good", b"1")
        bundle.writestr(name, b"1")
    with pytest.raises(DownloadError, match="unsafe member"):
        unpack(tmp_path / "x.zip", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir()) and not list(tmp_path.rglob("evil"))


def test_inner_links_become_copies(tmp_path):
    from scdrugmap.download.archives import unpack

    def link(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo("b")
        info.type, info.linkname = tarfile.SYMTYPE, "a"
        tar.addfile(info)

    (tmp_path / "x.tar.gz").write_bytes(tarball({"a": b"1"}, link))
    written = unpack(tmp_path / "x.tar.gz", tmp_path / "out")
    assert [p.name for p in written] == ["a", "b"]
    assert not written[1].is_symlink() and written[1].read_bytes() == b"1"


def test_damaged_archive(tmp_path):
    from scdrugmap.download.archives import unpack

    (tmp_path / "x.tar.gz").write_bytes(tarball({"a": os.urandom(5000)})[:3000])
    with pytest.raises((DownloadError, InputError)):
        unpack(tmp_path / "x.tar.gz", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("as_folder", [False, True])
def test_register_local(server, registry, tmp_path, copy, as_folder):
    registry([spec(server, "404", **known(server))])
    own = tmp_path / "mine" / "model.bin"
    own.parent.mkdir()
    own.write_bytes(server.files["model.bin"])
    folder = download.register_local("checkpoints", "toy", own.parent if as_folder else own, copy=copy)
    assert fetch() == folder and server.requests == []
    assert (folder / "model.bin").is_symlink() is not copy
    download.remove("checkpoints", "toy")
    assert own.exists()


def test_register_local_takes_an_unpacked_archive(server, registry, tmp_path):
    registry([spec(server, "404", name="emb.tar.gz", unpack="."), spec(server, "404", **known(server))])
    own = tmp_path / "mine"
    (own / "emb").mkdir(parents=True)
    (own / "emb" / "a.pt").write_bytes(b"a")
    (own / "model.bin").write_bytes(server.files["model.bin"])
    folder = download.register_local("checkpoints", "toy", own)
    assert fetch() == folder and (folder / "emb" / "a.pt").read_bytes() == b"a"
    assert download.verify("checkpoints", "toy")["state"].tolist() == ["ok", "ok"]
    (own / "emb" / "a.pt").write_bytes(b"changed")
    assert download.verify("checkpoints", "toy")["state"].tolist() == ["altered", "ok"]


def test_register_local_checks_the_digest(server, registry, tmp_path):
    registry([spec(server, **known(server))])
    own = tmp_path / "model.bin"
    own.write_bytes(b"something else")
    with pytest.raises(IntegrityError, match="trust=True"):
        download.register_local("checkpoints", "toy", own)
    assert download.where("checkpoints", "toy") is None
    with pytest.warns(ScDrugMapWarning, match="trust=True"):
        download.register_local("checkpoints", "toy", own, trust=True)
    assert download.where("checkpoints", "toy") is not None
    assert "trusted by the user" in ledger.read()["checkpoints/toy/model.bin"]["origin"]


def test_register_local_without_a_matching_name(server, registry, tmp_path):
    registry([spec(server), spec(server, name="b.bin")])
    (tmp_path / "other.bin").write_bytes(b"1")
    with pytest.raises(InputError, match=r"model\.bin, b\.bin"):
        download.register_local("checkpoints", "toy", tmp_path / "other.bin")
    with pytest.raises(InputError, match="existing file"):
        download.register_local("checkpoints", "toy", tmp_path / "absent")


def test_full_disk_is_noticed_before_the_first_request(server, registry, monkeypatch):
    from scdrugmap.download import transfer

    registry([spec(server, **known(server) | {"size": 10**15})])
    with pytest.raises(DownloadError, match="are free"):
        fetch()
    assert server.requests == [] and transfer.DISK_MARGIN > 0


def test_damaged_record_is_named(server, registry, private_cache):
    registry([spec(server)])
    private_cache.mkdir()
    (private_cache / "digests.json").write_text("{")
    with pytest.raises(DownloadError, match=r"digests\.json"):
        fetch()


def test_unknown_names(registry, server):
    registry([spec(server)])
    with pytest.raises(UnknownNameError, match="toy"):
        fetch("tyo")
    with pytest.raises(UnknownNameError, match="checkpoints"):
        download.fetch("weights", "toy")  # type: ignore[arg-type]


SCRIPT = """
    import sys, pathlib
    from scdrugmap.settings import settings
    from scdrugmap.download import catalog, fetch, transfer
    settings.cache_dir = pathlib.Path(sys.argv[1])
    catalog.REGISTRY_FOLDER = pathlib.Path(sys.argv[2])
    fetch("checkpoints", "toy", progress=False)
"""


def launch(private_cache: Path) -> subprocess.Popen:
    from scdrugmap.download import catalog

    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(private_cache), str(catalog.REGISTRY_FOLDER)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_parallel_processes_fetch_once(server, registry, private_cache):
    server.slow = 0.01
    registry([spec(server, **known(server))])
    jobs = [launch(private_cache) for _ in range(3)]
    assert [(j.wait(60), j.stderr.read() if j.returncode else "") for j in jobs] == [(0, "")] * 3
    assert server.sent["model.bin"] == 100_000


def test_killed_process_is_resumed(server, registry, private_cache):
    server.slow = 0.02
    registry([spec(server, **known(server))])
    job = launch(private_cache)
    deadline = time.monotonic() + 60
    while server.sent["model.bin"] < 40_000 and time.monotonic() < deadline:
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.wait()
    job.stderr.close()
    assert download.where("checkpoints", "toy") is None
    server.slow = 0.0
    assert (fetch() / "model.bin").read_bytes() == server.files["model.bin"]
    start = int(server.ranges()[-1].removeprefix("bytes=").rstrip("-"))
    assert start > 0


def test_doi_brings_address_and_digest(server, registry, monkeypatch):
    from pooch import downloaders

    data = server.files["model.bin"]
    checksum = f"md5:{hashlib.md5(data).hexdigest()}"
    reply = {
        "id": 7,
        "files": [{"key": "model.bin", "checksum": checksum, "links": {"self": f"{server.base}/cut/model.bin"}}],
    }
    server.files["records/7"] = json.dumps(reply).encode()
    monkeypatch.setattr(downloaders.ZenodoRepository, "base_api_url", f"{server.base}/ok/records")
    monkeypatch.setattr(
        downloaders, "doi_to_url", lambda doi, **kw: f"https://zenodo.org/records/{doi.rsplit('.', 1)[1]}"
    )
    registry([{"name": "model.bin", "urls": ["doi:10.5281/zenodo.7/model.bin"]}])
    assert (fetch() / "model.bin").read_bytes() == data
    assert ledger.read()["checkpoints/toy/model.bin"]["origin"] == "provider"
    assert server.requests[0][1]["user-agent"].startswith("scdrugmap/")

    download.remove("checkpoints", "toy", forget=True)
    server.files["model.bin"] = b"y" * 100_000
    with pytest.raises(IntegrityError):
        fetch()
    registry([{"name": "model.bin", "urls": ["doi:10.5281/zenodo.7/absent.bin"]}])
    with pytest.raises(DownloadError, match="could not be asked"):
        fetch()


def test_nothing_is_said_twice(server, registry):
    """A clean fetch gives no Python warning."""
    registry([spec(server, **known(server))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fetch()
        fetch()


@pytest.mark.parametrize("how", ["drip", "headers", "silent"])
def test_next_address_after_a_stall(server, registry, monkeypatch, how):
    from scdrugmap.download import transfer

    monkeypatch.setattr(transfer, "CONNECT", 0.2)
    monkeypatch.setattr(settings, "download_window", 0.3)
    urls = [f"{server.base}/{how}/model.bin", f"{server.base}/ok/model.bin"]
    registry([{"name": "model.bin", "urls": urls, **known(server)}])
    assert (fetch() / "model.bin").read_bytes() == server.files["model.bin"]
