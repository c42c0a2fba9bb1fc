"""Time and memory of a job before it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psutil

from scdrugmap.web.problems import Problem

#: Cells per second of a baseline, measured on two cores; a network embeds about this many parameters x cells a second.
_BASELINE_RATE = 2000.0
_NETWORK_RATE = 4e9
_START = 8.0


def estimate(found: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds and bytes that a job will about take.

    Parameters
    ----------
    found
        What the check of the upload says.
    options
        Options of the job.
    """
    import scdrugmap as sd

    n_cells, n_genes = int(found.get("n_cells", 0)), int(found.get("n_genes", 0))
    names = options.get("models") or [options.get("model") or "pca"]
    seconds, weights = _START, 0.0
    for name in names:
        try:
            size = sd.models.info(name).n_parameters or 0
        except sd_errors():
            size = 0
        rate = min(_BASELINE_RATE, _NETWORK_RATE / size) if size else _BASELINE_RATE
        folds = int(options.get("n_folds", 10)) if options.get("models") and not size else 1
        seconds += folds * n_cells / rate
        weights = max(weights, 4.0 * size)
    # Counts as float32 with indices, twice while they are normalised, and a dense part of 2,000 genes.
    stored = float(found.get("facts", {}).get("median_genes_per_cell", n_genes / 10)) * n_cells
    memory = 600e6 + 2 * 12 * stored + 3 * 4 * n_cells * min(n_genes, 2000) + weights
    return {"seconds": round(seconds), "memory": round(memory), "available": psutil.virtual_memory().available}


def refuse_if_too_large(found: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Refuse what this machine cannot do, before it waits in line."""
    about = estimate(found, options)
    if about["memory"] > psutil.virtual_memory().total * 0.9:
        raise Problem(
            422, "memory", f"The job takes about {about['memory'] / 1e9:.1f} GB of memory; this machine has "
            f"{psutil.virtual_memory().total / 1e9:.1f} GB.", "Send fewer cells or choose a smaller model.",
        )  # fmt: skip


def sd_errors() -> type[Exception]:
    """The library's errors."""
    from scdrugmap._errors import ScDrugMapError

    return ScDrugMapError
