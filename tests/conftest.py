"""Shared fixtures: small simulated data for every room, and the optional reference folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
