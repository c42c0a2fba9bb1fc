"""Shared fixtures: small simulated data for every room, and the optional reference folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

# Tests neither read nor fill the user's cache; subprocesses inherit this.
os.environ["SCDRUGMAP_CACHE_DIR"] = tempfile.mkdtemp(prefix="scdrugmap-tests-")
# Two workers on two cores: more threads would only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


def shared_folder() -> Path | None:
    folder = Path(os.environ.get("SCDRUGMAP_SHARED", ROOT.parent / "shared"))
    return folder if (folder / "parity").is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the parity checkpoints and the real studies."""
    folder = shared_folder()
    if folder is None:
        pytest.skip("the reference folder is absent; point SCDRUGMAP_SHARED at it to run this test")
    return folder
