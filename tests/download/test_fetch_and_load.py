"""Fetch through a mirror, verify, load: the reference checkpoints served under the names of the registry."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import warnings
from pathlib import Path

import pytest

from scdrugmap import download
from scdrugmap._errors import ScDrugMapWarning
from scdrugmap.download import catalog
from scdrugmap.settings import settings

#: Model, its registry entry, and the reference folder.
CASES = [
    ("tGPT", "tgpt-64", "tgpt"),
    ("scBERT", "scbert-panglao", "scbert"),
    ("Geneformer", "geneformer-v1-10m", "geneformer"),
    ("Geneformer", "geneformer-v2-104m", "geneformer/v2"),
    ("CellLM", "celllm", "celllm"),
    ("scFoundation", "scfoundation", "scfoundation"),
    ("scGPT", "scgpt-human", "scgpt"),
    ("CellPLM", "cellplm-20230926", "cellplm"),
    ("UCE", "uce-4-layer", "uce"),
    ("Llama-3-8B", "llama38b", "llama"),
]


def content(folder: Path, name: str) -> bytes:
    """Bytes of a file of the registry, made from the reference folder where that has another form of it."""
    path = folder / name
    if path.is_file():
        return path.read_bytes()
    if name == "genes.txt":
        import anndata as ad

        return "\n".join(ad.read_h5ad(folder / "panglao_10000.h5ad").var_names).encode()
    if name == "gene2vec_19379_512.npy":
        return (folder / "gene2vec_4200_32.npy").read_bytes()
    if name == "protein_embeddings.tar.gz":
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as tar:
            tar.add(folder / "protein_embeddings", "protein_embeddings")
        return out.getvalue()
    from safetensors.torch import load_file, save

    if name == "model.safetensors":
        import torch

        state = torch.load(folder / "pytorch_model.bin", weights_only=True)
        return save({k: v.clone() for k, v in state.items()})
    tensors = load_file(folder / "model.safetensors")
    shards = {k: f"model-0000{i % 4 + 1}-of-00004.safetensors" for i, k in enumerate(sorted(tensors))}
    if name == "model.safetensors.index.json":
        return json.dumps({"metadata": {}, "weight_map": shards}).encode()
    return save({k: tensors[k] for k, shard in shards.items() if shard == name}, metadata={"format": "pt"})


@pytest.fixture
def reference(server, shared, monkeypatch):
    """Serve a reference checkpoint under the names of an entry, with digests to match."""

    def serve(key: str, folder: Path) -> None:
        entry = download.find("checkpoints", key)
        files = []
        for spec in (s for s in entry.files if s.required):
            data = content(folder, spec.name)
            server.files[f"checkpoints/{entry.key}/{spec.name}"] = data
            digest = hashlib.sha256(data).hexdigest()
            files.append(spec.model_copy(update={"size": len(data), "sha256": digest, "md5": None}))
        table = {entry.key: entry.model_copy(update={"files": tuple(files)})}
        monkeypatch.setattr(catalog, "_read", lambda path, kind: table)

    monkeypatch.setattr(settings, "mirror", f"{server.base}/cutonce")  # every file breaks off once and is resumed
    return serve


@pytest.mark.parametrize(("model", "key", "folder"), CASES, ids=[key for _, key, _ in CASES])
def test_fetched_checkpoint_loads(reference, shared, model, key, folder):
    import torch

    from scdrugmap import models

    source = shared / "parity" / folder / "checkpoint"
    reference(key, source)
    fetched = download.fetch("checkpoints", key, accept_licence=True, progress=False)
    assert set(download.verify("checkpoints", key)["state"]) == {"ok"}
    options = {"heads": 4} if model == "UCE" else {}  # the one size that its files do not tell
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScDrugMapWarning)
        ours, theirs = (models.load(model, path, **options).network.state_dict() for path in (fetched, source))
    assert ours.keys() == theirs.keys() and len(ours) > 0
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_every_variant_of_a_model_card_is_in_the_registry():
    from scdrugmap.models.registry import get, keys

    for card in (get(key).card for key in keys()):
        for variant in card.checkpoints:
            assert download.find("checkpoints", variant).model == card.key
        if card.checkpoints:
            assert download.find("checkpoints", card.name).key == card.checkpoints[0]
