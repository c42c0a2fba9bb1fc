"""Every entry of both registries: complete facts, and a round trip of its file layout through a mirror."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from pathlib import Path

import pytest

from scdrugmap import download
from scdrugmap.download import catalog, ledger
from scdrugmap.settings import settings

EVERY = [(kind, key) for kind in download.KINDS for key in download.entries(kind)]


@pytest.mark.parametrize("kind", download.KINDS)
def test_facts_are_complete(kind):
    for entry in download.entries(kind).values():
        assert entry.title and entry.licence and entry.source.startswith("https://"), entry.key
        assert entry.citation, entry.key
        for spec in entry.files:
            assert spec.urls or entry.manual or not spec.required, (entry.key, spec.name)
            assert spec.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", spec.sha256), (entry.key, spec.name)
            assert spec.md5 is None or re.fullmatch(r"[0-9a-f]{32}", spec.md5), (entry.key, spec.name)
            assert spec.grade == "NV" or spec.digest, (entry.key, spec.name)
            assert spec.grade != "NV" or not spec.digest, (entry.key, spec.name)
            for url in spec.urls:
                assert catalog.expand(url).startswith(("https://", "doi:10.")), url


def test_branches_instead_of_commits_are_few_and_told():
    """A file at a branch may change: it needs a digest or the entry says that the first download is recorded."""
    for entry in download.entries("checkpoints").values():
        for spec in entry.files:
            for url in spec.urls:
                match = re.match(r"hf:[^@]+@([^/]+)/", url)
                if match and not re.fullmatch(r"[0-9a-f]{40}", match[1]):
                    assert spec.digest or spec.grade == "NV"


def test_keys_and_aliases_are_unique():
    for kind in download.KINDS:
        names = [catalog.normalise(n) for e in download.entries(kind).values() for n in (e.key, *e.aliases)]
        assert len(names) == len(set(names))


def test_all_ten_models_have_a_default():
    keys = (
        "tGPT",
        "scBERT",
        "Geneformer",
        "CellLM",
        "scFoundation",
        "scGPT",
        "CellPLM",
        "UCE",
        "Llama-3-8B",
        "GPT-4o-mini",
    )
    assert [download.find("checkpoints", k).model for k in keys] == [catalog.normalise(k) for k in keys]


def test_terms_that_need_acceptance():
    table = download.listing("checkpoints")
    assert table.index[table["gated"]].tolist() == ["llama38b"]
    assert table.index[table["non_commercial"]].tolist() == ["scfoundation"]


def test_names_may_not_leave_the_folder():
    for name in ("../x", "/x", "a/../../x", "a\\..\\x"):
        with pytest.raises(ValueError, match="leaves the folder"):
            download.FileSpec(name=name)


def test_listing_of_files_has_full_addresses():
    files = download.listing("checkpoints", files=True)
    row = files[(files["key"] == "scgpt-human") & (files["file"] == "best_model.pt")].iloc[0]
    assert row["url"].startswith("https://huggingface.co/wanglab/scGPT-human/resolve/a24c2377")
    assert row["size"] == 205_385_258


def test_entry_reads_as_a_page():
    page = str(download.info("checkpoints", "scfoundation"))
    assert "non-commercial use only" in page and "1,432,587,886 bytes" in page and "SharePoint" in page


def archive() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        info = tarfile.TarInfo("protein_embeddings/Homo_sapiens.GRCh38.gene_symbol_to_embedding_ESM2.pt")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"ESM"))
    return out.getvalue()


@pytest.fixture
def fake_content(server, monkeypatch):
    """Serve small files in place of the real ones: every name stays, every digest becomes that of the small file."""
    real = catalog._read

    def read(path: Path, kind: str) -> dict[str, download.Entry]:
        table = {}
        for key, entry in real(path, kind).items():
            files = []
            for spec in entry.files:
                data = archive() if spec.unpack else f"{kind}/{key}/{spec.name}".encode()
                server.files[f"{kind}/{key}/{spec.name}"] = data
                digest = {"sha256": hashlib.sha256(data).hexdigest(), "md5": hashlib.md5(data).hexdigest()}
                known = {k: v for k, v in digest.items() if getattr(spec, k)} | (
                    {"size": len(data)} if spec.size else {}
                )
                files.append(spec.model_copy(update=known))
            table[key] = entry.model_copy(update={"files": tuple(files)})
        return table

    monkeypatch.setattr(catalog, "_read", read)
    monkeypatch.setattr(settings, "mirror", f"{server.base}/ok")
    return server


def test_round_trip_of_every_layout(fake_content):
    for kind, key in EVERY:
        entry = download.find(kind, key)
        folder = download.fetch(kind, key, accept_licence=True, progress=False)
        assert folder == ledger.folder_of(entry)
        for spec in (s for s in entry.files if s.required and not s.unpack):
            assert (folder / spec.name).read_bytes() == f"{kind}/{key}/{spec.name}".encode()
        if entry.files:
            assert download.where(kind, key) == folder
            assert set(download.verify(kind, key).query("state == 'ok'")["file"]) >= {
                s.name for s in entry.files if s.required
            }
        assert download.remove(kind, key) > 0 or not entry.files
        assert not folder.exists()
    assert {p.split("/")[1] for p in fake_content.paths()} == {"ok"}


PARITY = {
    "tgpt": "tgpt", "scbert": "scbert", "celllm": "celllm", "scfoundation": "scfoundation", "scgpt": "scgpt",
    "cellplm": "cellplm", "uce": "uce", "geneformer": "geneformer", "geneformer/v2": "geneformer-v2",
}  # fmt: skip


def test_layout_is_that_of_the_official_checkpoints(shared):
    """Every file of the reference checkpoints, apart from made-up companions, is known to the registry."""
    invented = {"gene2vec_4200_32.npy", "new_species_protein_embeddings.csv"}
    for folder, key in PARITY.items():
        names = {p.name for p in (shared / "parity" / folder / "checkpoint").iterdir()} - invented
        known = {s.name for s in download.find("checkpoints", key).files}
        known |= {n.removesuffix(".tar.gz") for n in known}
        assert names <= known, (folder, names - known)
