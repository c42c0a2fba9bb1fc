from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scdrugmap as sd
from scdrugmap._errors import InputTypeError, OfflineError
from scdrugmap.response import ResponsePredictor


class Hub(BaseHTTPRequestHandler):
    """As much of a model hub as an upload and a download need."""

    files: dict[str, bytes] = {}  # noqa: RUF012
    log: list[str] = []  # noqa: RUF012
    commit = "c" * 40

    def log_message(self, *args):
        pass

    def _reply(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.log.append(f"POST {self.path} {self.headers.get('Authorization', '')}")
        if self.path == "/api/repos/create":
            self._reply({"url": f"http://{self.headers['Host']}/lab/predictor", "name": "lab/predictor"})
        elif "/preupload/" in self.path:
            names = [f["path"] for f in json.loads(body)["files"]]
            kinds = [{"path": n, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for n in names]
            self._reply({"files": kinds})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                part = json.loads(line)
                if part["key"] == "file":
                    self.files[part["value"]["path"]] = base64.b64decode(part["value"]["content"])
            self._reply(
                {
                    "commitUrl": f"http://{self.headers['Host']}/lab/predictor/commit/{self.commit}",
                    "commitOid": self.commit,
                }
            )
        else:
            self._reply({"warnings": [], "errors": []})

    def do_GET(self):
        self.log.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0]
        if "/resolve/" in path:
            name = path.split("/resolve/")[1].split("/", 1)[1]
            content = self.files[name]
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self._reply(content, ETag=etag, X_Repo_Commit=self.commit)
        elif "/tree/" in path:
            self._reply([{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in self.files.items()])
        else:
            siblings = [{"rfilename": n} for n in [*self.files, "evil.pkl"]]
            self._reply({"id": "lab/predictor", "sha": self.commit, "siblings": siblings, "private": True, "tags": []})

    do_HEAD = do_GET


@pytest.fixture
def hub():
    Hub.files, Hub.log = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def cells() -> ad.AnnData:
    rng = np.random.default_rng(0)
    sensitive = np.arange(60) % 2 == 1
    X = rng.poisson(np.where(sensitive, 4.0, 1.0)[:, None], size=(60, 12)).astype(np.float32)
    obs = pd.DataFrame({"response": np.where(sensitive, "sensitive", "resistant")}, index=[f"c{i}" for i in range(60)])
    return ad.AnnData(sparse.csr_matrix(X), obs=obs, var=pd.DataFrame(index=[f"GENE{i}" for i in range(12)]))


def test_up_and_down_again(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(sd.settings, "cache_dir", tmp_path)
    predictor = sd.tl.train(cells(), "pca", head="logistic", rng=0)
    address = predictor.push_to_hub("lab/predictor", token="hf_secret", endpoint=hub)
    assert address.endswith(Hub.commit)
    assert {"predictor.json", "head.safetensors", "model.safetensors", "README.md"} <= set(Hub.files)
    assert any("hf_secret" in line for line in Hub.log)
    assert not any(b"hf_secret" in content for content in Hub.files.values())
    again = ResponsePredictor.from_hub("lab/predictor", endpoint=hub)
    pd.testing.assert_frame_equal(predictor.predict(cells()), again.predict(cells()), check_exact=True)
    assert not any("evil.pkl" in line for line in Hub.log)


def test_paths_of_this_machine_do_not_travel(hub, tmp_path):
    predictor = sd.tl.train(cells(), "pca", head="logistic", rng=0)
    from scdrugmap.predictor.representation import NetworkRepresentation

    predictor.representation = NetworkRepresentation(
        "scGPT", checkpoint=str(tmp_path), digests={"w": "1"}, options={}, recipe=None, layer=None, context=None
    )
    predictor.push_to_hub("lab/predictor", token="t", endpoint=hub)
    assert str(tmp_path).encode() not in b"".join(Hub.files.values())
    assert predictor.representation.checkpoint == str(tmp_path)


def test_nothing_is_sent_offline_or_with_a_head_that_cannot_travel(hub, monkeypatch):
    from sklearn.naive_bayes import GaussianNB

    predictor = sd.tl.train(cells(), "pca", head=GaussianNB(), rng=0)
    with pytest.raises(InputTypeError, match="pickle"):
        predictor.push_to_hub("lab/predictor", token="t", endpoint=hub)
    monkeypatch.setattr(sd.settings, "offline", True)
    with pytest.raises(OfflineError, match="offline"):
        predictor.push_to_hub("lab/predictor", token="t", endpoint=hub)
    with pytest.raises(OfflineError, match="offline"):
        ResponsePredictor.from_hub("lab/predictor", endpoint=hub)
    assert not Hub.log
