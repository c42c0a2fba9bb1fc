"""Start the first look and read its answer."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scdrugmap.web.config import MB, ServerSettings

_LOOK = Path(__file__).with_name("look.py")
#: Counts of single cells compress ten to fifty times.
_EXPANSION = 40


@dataclass(frozen=True)
class Verdict:
    """What the first look says about a file."""

    ok: bool
    message: str = ""
    fix: str = ""
    format: str = ""
    cells: int | None = None
    genes: int | None = None


def first_look(path: Path, unpacked: Path, settings: ServerSettings, *, seconds: float = 60) -> Verdict:
    """Look at a file in a process of its own, whose memory, time, file size and network are limited.

    Parameters
    ----------
    path
        The file as it was received.
    unpacked
        Empty folder for the parts of an archive.
    settings
        The limits.
    seconds
        Longest time.
    """
    limits = {
        "cells": settings.max_cells,
        "expanded": max(int(settings.max_bytes * _EXPANSION), 512 * MB),
        "memory": 4096 * MB,
        "seconds": int(seconds),
    }
    command = [sys.executable, "-E", "-P", "-B", str(_LOOK), str(path), str(unpacked), json.dumps(limits)]
    environment = {"HDF5_PLUGIN_PATH": "/nonexistent", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and script; the file is an argument, never a shell word
            command, capture_output=True, timeout=seconds, env=environment, check=False, cwd=unpacked
        )
        answer: dict[str, Any] = json.loads(done.stdout.decode() or "{}")
    except (subprocess.TimeoutExpired, ValueError):
        answer = {}
    if not answer:
        return Verdict(False, "the file makes its reader fail", "write it again, for example with adata.write_h5ad.")
    known = {k: v for k, v in answer.items() if k in Verdict.__dataclass_fields__}
    return Verdict(**known)
