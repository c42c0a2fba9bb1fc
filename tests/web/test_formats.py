"""Every format that the first page names is taken, and read as what it is."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra [web] is not installed")

N = 24


@pytest.fixture(scope="module")
def cells() -> Any:
    import scdrugmap as sd

    return sd.datasets.simulate(n_cells=N, n_genes=40, n_studies=1, rng=2)


def triplet(cells: Any) -> dict[str, bytes]:
    from scipy.io import mmwrite

    out = io.BytesIO()
    mmwrite(out, cells.X.T.astype(int))
    return {
        "matrix.mtx": out.getvalue(),
        "barcodes.tsv": "".join(f"{n}\n" for n in cells.obs_names).encode(),
        "features.tsv": "".join(
            f"{e}\t{s}\tGene Expression\n" for e, s in zip(cells.var["ensembl_id"], cells.var_names, strict=True)
        ).encode(),
    }


def h5ad(cells: Any, path: Path) -> None:
    cells.write_h5ad(path)


def h5mu(cells: Any, path: Path) -> None:
    import mudata

    mudata.MuData({"rna": cells.copy()}).write_h5mu(path)


def tenx(cells: Any, path: Path) -> None:
    import h5py

    by_gene = cells.X.T.tocsc()
    with h5py.File(path, "w") as f:
        m = f.create_group("matrix")
        m["data"], m["indices"], m["indptr"] = by_gene.data.astype("i4"), by_gene.indices, by_gene.indptr
        m["shape"] = np.array(by_gene.shape)
        m["barcodes"] = np.array(cells.obs_names, "S")
        m["features/id"] = np.array(cells.var["ensembl_id"], "S")
        m["features/name"] = np.array(cells.var_names, "S")
        m["features/feature_type"] = np.array(["Gene Expression"] * cells.n_vars, "S")


def packed_zip(cells: Any, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as z:
        for name, content in triplet(cells).items():
            z.writestr(f"filtered/{name}", content)


def packed_tar(cells: Any, path: Path) -> None:
    with tarfile.open(path, "w:gz") as t:
        for name, content in triplet(cells).items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            t.addfile(info, io.BytesIO(content))


def published(cells: Any, path: Path) -> None:
    frame = cells.to_df().astype(int)
    frame.insert(0, "Condition", cells.obs["response"].astype(str))
    frame.to_csv(path, sep="\t", index_label="barcode")


def plain(cells: Any, path: Path) -> None:
    cells.to_df().astype(int).to_csv(path, index_label="cell")


@pytest.mark.parametrize("write", [h5ad, h5mu, tenx, packed_zip, packed_tar, published, plain])
def test_a_format_is_taken(write: Callable[[Any, Path], None], cells: Any, settings: Any, monkeypatch: Any) -> None:
    from scdrugmap.datasets.files import read_cells
    from scdrugmap.web import checking, uploads
    from scdrugmap.web.database import migrate
    from scdrugmap.web.state import Server

    # The limits of the process would stay with the test run.
    monkeypatch.setattr(checking, "_confine", lambda _: None)
    settings.data_dir.mkdir(parents=True)
    migrate(settings.database_url)
    server = Server(settings)
    path = settings.data_dir / "made"
    write(cells, path)
    upload = uploads.create(server, "x", "whatever", path.stat().st_size, None)
    path.replace(uploads.part(server, upload.id))
    uploads.received(server, upload.id, upload.size)
    uploads.finish(server, upload.id)
    assert uploads.look(server, upload.id), uploads.find(server, upload.id).reason
    looked = uploads.find(server, upload.id).check
    state, value = checking.check_upload(settings, upload.id, looked, lambda **_: None)
    assert state == "accepted", value
    assert value["check"]["n_cells"] == N and value["check"]["facts"]["raw_counts"]
    assert ("response" in {c["name"] for c in value["check"]["columns"]}) == (write in (h5ad, h5mu, published))
    uploads.accept(server, upload.id, **value)
    ours = read_cells(uploads.cells_file(server, uploads.find(server, upload.id)))
    data = ours.mod["rna"] if hasattr(ours, "mod") else ours
    assert data.X.sum() == cells.X.sum()
    assert not uploads.part(server, upload.id).exists()
