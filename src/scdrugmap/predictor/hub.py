"""Predictors on the Hugging Face hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from scdrugmap._errors import OfflineError
from scdrugmap.predictor.folder import fill
from scdrugmap.predictor.representation import NetworkRepresentation
from scdrugmap.predictor.storage import dump_head, write_folder


def push(predictor: Any, repo_id: str, *, token: str | None, private: bool, endpoint: str | None) -> str:
    """Upload a predictor; see :meth:`ResponsePredictor.push_to_hub`.

    Parameters
    ----------
    predictor
        A :class:`~scdrugmap.response.ResponsePredictor`.
    repo_id, token, private, endpoint
        Where to, as whom, visible to whom.

    Returns
    -------
    Address of the commit.
    """
    from huggingface_hub import HfApi

    _online(repo_id)
    head_meta, head_arrays = dump_head(predictor.head)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictor"
        representation, kept = predictor.representation, None
        if isinstance(representation, NetworkRepresentation):
            kept = representation.checkpoint
            # a path of this machine means nothing elsewhere, and may say more than its owner wants to
            if kept is not None and Path(kept).exists():
                representation.checkpoint = None
        try:
            write_folder(path, lambda p: fill(predictor, p, head_meta, head_arrays), overwrite=False)
        finally:
            if isinstance(representation, NetworkRepresentation):
                representation.checkpoint = kept
        api = HfApi(endpoint=endpoint, token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo_id, folder_path=str(path), commit_message="Upload predictor")
    return str(getattr(commit, "commit_url", commit))


def pull(repo_id: str, *, revision: str | None, token: str | None, endpoint: str | None) -> Path:
    """Download a predictor; see :meth:`ResponsePredictor.from_hub`.

    Parameters
    ----------
    repo_id, revision, token, endpoint
        What, from where, as whom.

    Returns
    -------
    Folder in the cache.
    """
    from huggingface_hub import snapshot_download

    from scdrugmap.settings import settings

    _online(repo_id)
    cache = settings.cache_dir / "predictors"
    # nothing but the files of a predictor: a repository may hold pickles and scripts beside them
    patterns = ["*.json", "*.safetensors", "README.md"]
    return Path(
        snapshot_download(
            repo_id, revision=revision, token=token, endpoint=endpoint, cache_dir=cache, allow_patterns=patterns
        )
    )


def _online(repo_id: str) -> None:
    from scdrugmap.settings import settings

    if settings.offline:
        raise OfflineError(f"{repo_id} is on a hub and offline mode is on. Fix: scdrugmap.settings.offline = False")
