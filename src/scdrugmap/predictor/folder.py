"""What lies in the folder of a predictor: written from its parts, and read back into them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scdrugmap import __version__
from scdrugmap._errors import InputError
from scdrugmap._keys import CLASSES
from scdrugmap.heads.adapt import Adaptation
from scdrugmap.predictor.representation import (
    FittedRepresentation,
    NetworkRepresentation,
    ObsmRepresentation,
    Representation,
)
from scdrugmap.predictor.storage import load_head, read_arrays, write_arrays
from scdrugmap.trust.calibration import Calibrator
from scdrugmap.trust.conformal import ConformalSets
from scdrugmap.trust.domain import OutOfDomain
from scdrugmap.trust.samples import SampleErrors
from scdrugmap.trust.shift import ShiftReference

_EXTRAS: Mapping[str, Any] = {
    "calibration": Calibrator, "conformal": ConformalSets, "ood": OutOfDomain, "errors": SampleErrors,
    "shift": ShiftReference,
}  # fmt: skip


def fill(predictor: Any, folder: Path, head_meta: dict[str, Any], head_arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Write the files of the predictor and return its manifest."""
    representation = predictor.representation
    meta: dict[str, Any] = {"kind": representation.kind, **representation.meta()}
    genes = list(getattr(representation, "genes", []))
    if isinstance(representation, NetworkRepresentation) and representation.adapted:
        from scdrugmap.lora.adapters import save_adapter

        save_adapter(representation.load(), folder)
    write_arrays(folder / "head.safetensors", head_arrays)
    model_texts = write_arrays(folder / "model.safetensors", representation.arrays())
    extras: dict[str, np.ndarray] = {}
    for name in _EXTRAS:
        part = getattr(predictor, name)
        if part is not None:
            extras |= {f"{name}.{k}": v for k, v in part.state().items()}
    if predictor.adaptation is not None:
        extras |= {f"adaptation.{k}": v for k, v in predictor.adaptation.arrays.items()}
    write_arrays(folder / "extras.safetensors", extras)
    (folder / "README.md").write_text(predictor.card, encoding="utf-8")
    return {
        "scdrugmap": __version__,
        "labels": {str(i): name for i, name in enumerate(CLASSES)},
        "threshold": predictor.threshold,
        "head": head_meta,
        "representation": meta,
        "calibration": predictor.calibration and {"method": predictor.calibration.method},
        "conformal": predictor.conformal
        and {
            "categories": predictor.conformal.categories,
            "coverage": predictor.conformal.coverage,
            "by": predictor.conformal_by,
        },
        "ood": predictor.ood and {"threshold": predictor.ood.threshold, "n_neighbors": predictor.ood.n_neighbors},
        "errors": predictor.errors and {},
        "shift": predictor.shift and predictor.shift.meta(),
        "adaptation": predictor.adaptation
        and {"kind": predictor.adaptation.kind, "studies": list(predictor.adaptation.studies)},
        "training": predictor.training,
        "genes": genes,
        "model_texts": model_texts,
    }


def read_parts(folder: Path, manifest: Mapping[str, Any], checkpoint: str | Path | None, model: Any) -> dict[str, Any]:
    """Read everything that a predictor is made of, by the names of its fields."""
    extras = read_arrays(folder / "extras.safetensors")
    parts: dict[str, Any] = {}
    for name, kind in _EXTRAS.items():
        meta = manifest.get(name)  # an earlier version knew the first three
        arrays = {k.removeprefix(f"{name}."): v for k, v in extras.items() if k.startswith(f"{name}.")}
        if meta is not None:
            parts[name] = kind.from_state(meta["method"] if name == "calibration" else meta, arrays)
    about = manifest.get("adaptation")
    if about is not None:
        arrays = {k.removeprefix("adaptation."): v for k, v in extras.items() if k.startswith("adaptation.")}
        parts["adaptation"] = Adaptation(about["kind"], arrays, tuple(about["studies"]))
    return parts | {
        "head": load_head(manifest["head"], read_arrays(folder / "head.safetensors")),
        "representation": _load_representation(folder, manifest, checkpoint, model),
        "conformal_by": (manifest["conformal"] or {}).get("by"),
        "training": manifest["training"],
        "threshold": float(manifest["threshold"]),
    }


def _load_representation(
    folder: Path, manifest: Mapping[str, Any], checkpoint: str | Path | None, model: Any
) -> Representation:
    """Rebuild what the head looks at."""
    meta = dict(manifest["representation"])
    kind = meta.pop("kind")
    if kind == "network":
        network = NetworkRepresentation.from_meta(meta, manifest["genes"])
        if checkpoint is not None:
            network.checkpoint = str(checkpoint)
        if model is not None:
            network.model = network.verified(model)
        elif checkpoint is not None or network.adapted:
            network.load()
        if network.adapted:
            from scdrugmap.lora.adapters import load_adapter

            load_adapter(network.load(), folder)
        return network
    if checkpoint is not None or model is not None:
        raise InputError("checkpoint", str(checkpoint), f"None: this predictor uses {kind}", "leave it out.")
    if kind == "fitted":
        arrays = read_arrays(folder / "model.safetensors", manifest["model_texts"])
        return FittedRepresentation.from_meta(meta, arrays)
    return ObsmRepresentation.from_meta(meta)
