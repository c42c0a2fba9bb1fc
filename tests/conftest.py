"""Shared fixtures: small simulated data for every room, and the optional reference folder."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

# Tests neither read nor fill the user's cache; subprocesses inherit this.
os.environ["SCDRUGMAP_CACHE_DIR"] = tempfile.mkdtemp(prefix="scdrugmap-tests-")
# Two workers on two cores: more threads would only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Comparisons hold in float32; a processor with bfloat16 of its own would choose that where it serves.
os.environ.setdefault("SCDRUGMAP_PRECISION", "float32")

# pandas 3 decides what pandas 2 lets one try: text columns of their own type, and copies on write.
if os.environ.get("SCDRUGMAP_PANDAS3") == "1" and int(pd.__version__.split(".")[0]) < 3:
    pd.options.future.infer_string = True
    pd.options.mode.copy_on_write = True
    import anndata

    # anndata for pandas 3 writes text columns of that type; for pandas 2 it asks before.
    if hasattr(anndata.settings, "allow_write_nullable_strings"):
        anndata.settings.allow_write_nullable_strings = True

#: Where one of these is not installed, tests that need it are skipped by themselves; the others run.
HEAVY = ("torch", "transformers", "peft", "accelerate", "scvi", "lightning")
ABSENT = [name for name in HEAVY if importlib.util.find_spec(name) is None]


def _lacks(error: BaseException | None) -> str:
    """Name of the absent heavy package behind an error, however deep."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name and error.name.split(".")[0] in ABSENT:
            return error.name
        error = error.__cause__ or error.__context__
    return ""


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: Any) -> Iterator[None]:
    """Skip a file whose import needs an absent package."""
    report = yield
    if report.outcome == "failed" and any(f"No module named '{name}" in str(report.longrepr) for name in ABSENT):
        report.outcome, report.result = "skipped", []
        report.longrepr = (str(collector.path), 0, "Skipped: needs a package that is not installed")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Iterator[None]:
    """Skip a test that came upon an absent package."""
    report = yield
    if report.outcome == "failed" and call.excinfo is not None and (name := _lacks(call.excinfo.value)):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), 0, f"Skipped: needs {name}")
    return report


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
