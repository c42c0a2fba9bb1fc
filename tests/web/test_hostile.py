"""A corpus of hostile files, made here: each is refused with a reason, soon, and the server stays up."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra [web] is not installed")

from web_tools import send, until

CORPUS: dict[str, tuple[str, Callable[[Path], Any]]] = {}
TRIPLET = {
    "matrix.mtx": b"%%MatrixMarket matrix coordinate integer general\n3 2 2\n1 1 5\n2 2 1\n",
    "barcodes.tsv": b"AAA\nBBB\n",
    "features.tsv": b"ENSG1\tTP53\tGene Expression\nENSG2\tEGFR\tGene Expression\nENSG3\tACTB\tGene Expression\n",
}


def hostile(name: str) -> Callable[[Callable[[Path], Any]], Callable[[Path], Any]]:
    def keep(make: Callable[[Path], Any]) -> Callable[[Path], Any]:
        CORPUS[make.__name__] = (name, make)
        return make

    return keep


def good(path: Path, n_cells: int = 4, n_genes: int = 3) -> None:
    """A small valid h5ad, by hand."""
    with h5py.File(path, "w") as f:
        f.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        f.create_dataset("X", data=np.ones((n_cells, n_genes), np.float32))
        f["X"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        for name, n in (("obs", n_cells), ("var", n_genes)):
            table = f.create_group(name)
            table.attrs.update(
                {
                    "_index": "_index",
                    "column-order": np.array([], "S1"),
                    "encoding-type": "dataframe",
                    "encoding-version": "0.2.0",
                }
            )
            table.create_dataset("_index", data=np.array([f"{name}{i}" for i in range(n)], dtype=object),
                                 dtype=h5py.string_dtype())  # fmt: skip


@hostile("cells.h5ad")
def external_link(path: Path) -> str:
    good(path)
    with h5py.File(path, "a") as f:
        f["obs/leak"] = h5py.ExternalLink("/etc/passwd", "/")
    return "external link"


@hostile("cells.h5ad")
def soft_link(path: Path) -> str:
    good(path)
    with h5py.File(path, "a") as f:
        f["obs/loop"] = h5py.SoftLink("/obs")
    return "soft link"


@hostile("cells.h5ad")
def hard_link_loop(path: Path) -> str:
    good(path)
    with h5py.File(path, "a") as f:
        f["obs/loop"] = f["obs"]
    return "hard link"


@hostile("cells.h5ad")
def external_storage(path: Path) -> str:
    good(path)
    with h5py.File(path, "a") as f:
        f.create_dataset("uns/secret", shape=(100,), dtype="u1", external=[("/etc/passwd", 0, 100)])
    return "external storage"


@hostile("cells.h5ad")
def virtual_dataset(path: Path) -> str:
    good(path)
    layout = h5py.VirtualLayout((100,), "u1")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (100,))
    with h5py.File(path, "a") as f:
        f.create_virtual_dataset("virtual", layout)
    return "virtual data set"


@hostile("cells.h5ad")
def object_reference(path: Path) -> str:
    good(path)
    with h5py.File(path, "a") as f:
        f.create_dataset("r", data=np.array([f["obs"].ref], dtype=h5py.ref_dtype), dtype=h5py.ref_dtype)
    return "object references"


@hostile("cells.h5ad")
def object_reference_in_an_attribute(path: Path) -> str:
    good(path)
    with h5py.File(path, "a") as f:
        f["obs"].attrs["r"] = f["var"].ref
    return "object references"


@hostile("cells.h5ad")
def unknown_filter(path: Path) -> str:
    good(path)
    with h5py.File(path, "a") as f:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((10,))
        plist.set_filter(32004, h5py.h5z.FLAG_OPTIONAL, ())
        h5py.h5d.create(f.id, b"z", h5py.h5t.NATIVE_INT32, h5py.h5s.create_simple((100,)), plist)
    return "filter 32004"


@hostile("cells.h5ad")
def shape_bomb(path: Path) -> str:
    good(path)
    with h5py.File(path, "a") as f:
        f.create_dataset("big", shape=(1 << 22, 1 << 16), dtype="f4", chunks=(1024, 1024))
    return "bomb"


@hostile("cells.h5ad")
def decompression_bomb(path: Path) -> str:
    good(path)
    with h5py.File(path, "a") as f:
        f.create_dataset("big", data=np.zeros(80 << 20, np.uint8), chunks=(8 << 20,), compression="gzip")
    return "bomb"


@hostile("cells.h5ad")
def deep_groups(path: Path) -> str:
    good(path)
    with h5py.File(path, "a") as f:
        f.create_group("/".join(["g"] * 100))
    return "nested"


@hostile("cells.h5ad")
def indices_outside(path: Path) -> str:
    good(path)
    with h5py.File(path, "a") as f:
        del f["X"]
        x = f.create_group("X")
        x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": np.array([4, 3])})
        x["data"], x["indices"] = np.ones(4, "f4"), np.array([0, 1, 2, 10**8], "i4")
        x["indptr"] = np.arange(5)
    return "indices"


@hostile("cells.h5ad")
def other_shape(path: Path) -> str:
    good(path)
    with h5py.File(path, "a") as f:
        del f["X"]
        f["X"] = np.ones((9, 9), "f4")
    return "shape"


@hostile("cells.h5ad")
def too_many_cells(path: Path) -> str:
    good(path, n_cells=3000)
    return "above the limit"


@hostile("cells.h5ad")
def truncated(path: Path) -> str:
    good(path)
    path.write_bytes(path.read_bytes()[:2000])
    return "damaged"


@hostile("cells.h5ad")
def only_a_signature(path: Path) -> str:
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\xff" * 5000)
    return "damaged"


@hostile("cells.h5")
def no_matrix(path: Path) -> str:
    with h5py.File(path, "w") as f:
        f["x"] = 1
    return "neither"


class Evil:
    def __reduce__(self) -> Any:
        return eval, ("open('/nonexistent/owned', 'w')",)


@hostile("model.pkl")
def a_pickle(path: Path) -> str:
    path.write_bytes(pickle.dumps(Evil()))
    return "run code"


@hostile("cells.h5ad")
def a_pickle_under_another_name(path: Path) -> str:
    path.write_bytes(gzip.compress(pickle.dumps(Evil())))
    return "run code"


@hostile("array.npy")
def a_numpy_pickle(path: Path) -> str:
    out = io.BytesIO()
    np.save(out, np.array([Evil()], dtype=object), allow_pickle=True)
    path.write_bytes(out.getvalue())
    return "run code"


@hostile("model.pt")
def a_pytorch_file(path: Path) -> str:
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("archive/data.pkl", pickle.dumps(Evil()))
    return "run code"


def zipped(path: Path, members: dict[str, bytes], **options: Any) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, content in members.items():
            z.writestr(name, content)


@hostile("cells.zip")
def zip_traversal(path: Path) -> str:
    zipped(path, {**TRIPLET, "../../matrix.mtx": b"x"})
    return "leaves its folder"


@hostile("cells.zip")
def zip_absolute(path: Path) -> str:
    zipped(path, {"/etc/matrix.mtx": b"x"})
    return "leaves its folder"


@hostile("cells.zip")
def zip_link(path: Path) -> str:
    with zipfile.ZipFile(path, "w") as z:
        link = zipfile.ZipInfo("matrix.mtx")
        link.external_attr = (0o120777) << 16
        z.writestr(link, "/etc/passwd")
    return "link"


@hostile("cells.zip")
def zip_bomb(path: Path) -> str:
    zipped(path, {**TRIPLET, "matrix.mtx": b"%%MatrixMarket matrix coordinate\n" + b"0" * (48 << 20)})
    return "bomb"


@hostile("cells.zip")
def zip_of_a_gzip_bomb(path: Path) -> str:
    zipped(
        path,
        {"matrix.mtx.gz": gzip.compress(b"0" * (48 << 20), 9), **{k: v for k, v in TRIPLET.items() if "mtx" not in k}},
    )
    return "bomb"


@hostile("cells.zip")
def zip_of_many(path: Path) -> str:
    zipped(path, {f"d{i}/readme.txt": b"" for i in range(2000)})
    return "more than"


@hostile("cells.zip")
def mtx_shape_bomb(path: Path) -> str:
    zipped(
        path,
        {
            **TRIPLET,
            "matrix.mtx": b"%%MatrixMarket matrix coordinate integer general\n1000000000 1000000000 1\n1 1 1\n",
        },
    )
    return "above the limit"


@hostile("cells.tar")
def tar_traversal(path: Path) -> str:
    tarred(path, "w", {"../matrix.mtx": b"x"})
    return "leaves its folder"


@hostile("cells.tar.gz")
def tar_link(path: Path) -> str:
    with tarfile.open(path, "w:gz") as t:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo("matrix.mtx")
            link.type, link.linkname = kind, "/etc/passwd"
            t.addfile(link)
    return "link"


@hostile("cells.tar")
def tar_device(path: Path) -> str:
    with tarfile.open(path, "w") as t:
        device = tarfile.TarInfo("matrix.mtx")
        device.type, device.devmajor, device.devminor = tarfile.CHRTYPE, 1, 5
        t.addfile(device)
    return "device"


@hostile("cells.csv.gz")
def text_bomb(path: Path) -> str:
    path.write_bytes(gzip.compress(b"a,b\n" + b"1,1\n" * (12 << 20), 9))
    return "bomb"


@hostile("cells.csv")
def binary_text(path: Path) -> str:
    path.write_bytes(b"cell,TP53\n\x00\x01\x02,1\n")
    return "neither"


@hostile("cells.csv")
def prose(path: Path) -> str:
    path.write_text("hello\n")
    return "no counts"


def tarred(path: Path, mode: str, members: dict[str, bytes]) -> None:
    with tarfile.open(path, mode) as t:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            t.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("case", CORPUS)
def test_each_hostile_file_is_refused(case: str, tmp_path: Path, settings: Any) -> None:
    from scdrugmap.web.sandbox.call import first_look

    path, unpacked = tmp_path / "received", tmp_path / "unpacked"
    unpacked.mkdir()
    expected = CORPUS[case][1](path)
    verdict = first_look(path, unpacked, settings.model_copy(update={"max_cells": 2000}))
    assert not verdict.ok
    assert expected in verdict.message, verdict
    assert verdict.fix
    assert str(tmp_path) not in verdict.message + verdict.fix
    assert not Path("/nonexistent/owned").exists()


def test_the_walk_takes_what_is_sound(tmp_path: Path, settings: Any) -> None:
    from scdrugmap.web.sandbox.call import first_look

    def look(path: Path) -> Any:
        unpacked = tmp_path / f"of-{path.name}"
        unpacked.mkdir()
        return first_look(path, unpacked, settings)

    h5ad = tmp_path / "a"
    good(h5ad)
    verdict = look(h5ad)
    assert verdict.ok and (verdict.format, verdict.cells, verdict.genes) == ("h5ad", 4, 3)
    packed, tar, text = tmp_path / "b", tmp_path / "c", tmp_path / "d"
    zipped(packed, {f"sample/{k}": v for k, v in TRIPLET.items()})
    tarred(tar, "w:gz", {"matrix.mtx.gz": gzip.compress(TRIPLET["matrix.mtx"]), "barcodes.tsv": TRIPLET["barcodes.tsv"],
                         "genes.tsv": TRIPLET["features.tsv"]})  # fmt: skip
    text.write_text("barcode\tCondition\tTP53\nAAA\tsensitive\t3\n")
    assert [look(p).format for p in (packed, tar, text)] == ["mtx", "mtx", "text"]


def test_a_refusal_is_soon_and_the_server_stays_up(http: Any, tmp_path: Path, settings: Any) -> None:
    slowest = 0.0
    for case in ("external_link", "a_pickle", "zip_traversal", "decompression_bomb"):
        name, make = CORPUS[case]
        path = tmp_path / case
        make(path)
        upload = send(http, path.read_bytes(), name)
        start = time.monotonic()
        state = until(lambda u=upload: http.get(f"/api/v1/uploads/{u}").json(), lambda s: s["state"] != "checking", 20)
        slowest = max(slowest, time.monotonic() - start)
        assert state["state"] == "refused" and "Fix:" in state["reason"]
        assert not (settings.data_dir / "uploads" / upload).exists()
    assert http.get("/healthz").status_code == 200
    print(f"slowest refusal: {slowest:.2f} s")


def test_the_sandbox_holds(tmp_path: Path) -> None:
    """Memory, file size and network are really taken away."""
    import json
    import subprocess
    import sys

    from scdrugmap.web.sandbox import call

    look = Path(call.__file__).with_name("look.py")
    script = (
        f"import sys; sys.path.insert(0, {str(look.parent)!r}); import look\n"
        "look.confine({'memory': 1 << 30, 'seconds': 5, 'expanded': 1 << 20})\n"
        "import json, socket\nout = {}\n"
        "try: bytearray(2 << 30)\nexcept MemoryError: out['memory'] = True\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"try: open({str(tmp_path / 'big')!r}, 'wb').write(b'0' * (2 << 20)); out['size'] = False\n"
        "except OSError: out['size'] = True\n"
        "out['interfaces'] = [n for _, n in socket.if_nameindex() if n != 'lo']\n"
        "print(json.dumps(out))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["memory"]
    assert (tmp_path / "big").stat().st_size <= 1 << 20
    assert found["interfaces"] == [] or found["interfaces"] == ["eth0"]
