"""The full check of an upload: read it, keep a copy of our own, and say what it is fit for."""

from __future__ import annotations

import contextlib
import resource
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scdrugmap._errors import ScDrugMapError
from scdrugmap.web import uploads
from scdrugmap.web.config import MB, ServerSettings
from scdrugmap.web.problems import words_of
from scdrugmap.web.shelf import clean, records
from scdrugmap.web.state import Server

_SECONDS = 900
_VALUES = 12
_HINTS = {
    "label": ("response", "label", "condition", "resist", "sensit", "status"),
    "sample": ("sample", "patient", "donor", "orig.ident", "replicate"),
    "study": ("study", "dataset", "series", "batch"),
}


def check_upload(
    settings: ServerSettings, upload_id: str, looked: dict[str, Any], tell: Callable[..., None]
) -> tuple[str, Any]:
    """Run in a process of its own; return ``("accepted", ...)`` or ``("refused", why)``."""
    import logging

    from scdrugmap.settings import settings as package

    package.offline = True
    server = Server(settings)
    _confine(settings)
    place = uploads.folder(server, upload_id)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cells = _read(place, str(looked["format"]))
            _tidy(cells)
            if cells.n_obs > settings.max_cells:
                return (
                    "refused",
                    f"{cells.n_obs:,} cells are above the limit of {settings.max_cells:,}. Fix: send fewer.",
                )
            stored = "cells.h5mu" if hasattr(cells, "mod") else "cells.h5ad"
            found = describe(cells)
            from scdrugmap.datasets.files import write_cells

            write_cells(cells, place / stored)
    except ScDrugMapError as error:
        return ("refused", words_of(error))
    except MemoryError:
        return ("refused", "reading the file takes more memory than is allowed. Fix: send fewer cells.")
    except Exception as error:  # noqa: BLE001 - whatever a damaged file provokes is a refusal
        logging.getLogger("scdrugmap.web").warning("an upload cannot be read: %s", type(error).__name__)
        return (
            "refused",
            f"the file cannot be read ({type(error).__name__}). Fix: write it again, for example with adata.write_h5ad.",
        )
    return ("accepted", {"stored": stored, "check": found | {"format": looked["format"]}})


def describe(cells: Any) -> dict[str, Any]:
    """What the check finds, in plain types.

    Parameters
    ----------
    cells
        AnnData or MuData.
    """
    import scdrugmap as sd

    mod = "rna"
    if hasattr(cells, "mod") and mod not in cells.mod:
        mod = next(iter(cells.mod))
    report = sd.pp.check(cells, mod=mod).to_dict()
    report["labels"] = report["labels"][:200]
    data = cells.mod[mod] if hasattr(cells, "mod") else cells
    coverage = records(sd.pp.gene_coverage(cells, mod=mod))
    return clean(
        {
            **report,
            "mod": mod if hasattr(cells, "mod") else None,
            "coverage": coverage,
            "columns": [_column(str(c), data.obs[c]) for c in data.obs.columns[:200]],
            "layers": [str(k) for k in data.layers][:50],
            "representations": [str(k) for k in data.obsm][:50],
        }
    )


def _column(name: str, values: Any) -> dict[str, Any]:
    """Name, values and a guess what a column of obs is for."""
    counts = values.astype(str).value_counts()
    few = [str(v)[:80] for v in counts.index[:_VALUES]]
    guess = next((k for k, words in _HINTS.items() if any(w in name.lower() for w in words)), "")
    if guess == "label" and not 2 <= len(counts) <= 20:
        guess = ""
    return {"name": name, "n_values": len(counts), "values": few, "looks_like": guess}


def _read(place: Path, kind: str) -> Any:
    """Read by the format that the first look found, never by the name that was sent."""
    import scdrugmap as sd

    received = place / "received"
    if kind == "h5ad":
        import anndata

        return anndata.read_h5ad(received)
    if kind == "h5mu":
        import mudata

        return mudata.read_h5mu(received)
    if kind == "10x":
        cells = sd.datasets.loaders.read_10x_h5(_named(received, "matrix.h5"))
    elif kind == "mtx":
        cells = sd.datasets.loaders.read_10x_mtx(place / "unpacked")
    else:
        cells = sd.datasets.load(_named(received, "cells.csv.gz" if kind == "text.gz" else "cells.csv"))
    # The readers fill in what a curated study has; of a stranger's file only what it says is kept.
    blank = [c for c in cells.obs if cells.obs[c].isna().all() or (cells.obs[c].astype(str) == "").all()]
    cells.obs = cells.obs.drop(columns=blank)
    return cells


def _named(received: Path, name: str) -> Path:
    """The same bytes under a name of ours whose ending the readers know."""
    path = received.with_name(name)
    if not path.exists():
        path.hardlink_to(received)
    return path


def _tidy(cells: Any) -> None:
    """Names of cells must be unique in the tables that go back."""
    for data in (cells, *getattr(cells, "mod", {}).values()):
        if not data.obs_names.is_unique:
            data.obs_names_make_unique()


def _confine(settings: ServerSettings) -> None:
    """Bound the memory, time and file size of this process from here on."""
    with contextlib.suppress(ValueError, OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        room = pages * resource.getpagesize() + max(8 * 1024 * MB, 8 * settings.max_bytes)
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
        size = max(40 * settings.max_bytes, 512 * MB)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
