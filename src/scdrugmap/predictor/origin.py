"""Where an embedding or a query comes from, and whether it fits what a predictor was trained on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scdrugmap._errors import InputError, MissingKeyError, ScDrugMapWarning
from scdrugmap._keys import KEYS

#: Share of the training genes below which a query is likely not what the predictor was made for.
LOW_COVERAGE = 0.5
#: What the record of a baseline says that was fitted on the object that holds it.
HERE = "all cells of this object"
_NOT_OPTIONS = ("context", "groups", "layer", "checkpoint")


@dataclass(frozen=True)
class Part:
    """One ``obsm`` entry: its modality (``None`` for the main one), key, width and where it came from."""

    mod: str | None
    key: str
    dim: int = 0
    origin: dict[str, Any] = field(default_factory=dict)


def check_coverage(known: Sequence[str], found: Any, what: str) -> None:
    """Refuse a query that has none of the training genes, and warn when it lacks many.

    Parameters
    ----------
    known
        Genes that the predictor was trained on; nothing is checked where there are none.
    found
        Genes of the query, as the model writes them.
    what
        Name of the representation for the message.

    Raises
    ------
    InputError
        If no training gene is there.
    """
    if not len(known):
        return
    share = len(set(known) & {str(g) for g in found}) / len(known)
    if share == 0:
        raise InputError(
            "adata.var",
            f"none of the {len(known)} genes that the predictor ({what}) was trained on",
            f"genes like {', '.join(known[:3])}",
            "call sd.pp.harmonize_genes(adata), or check species and identifiers.",
        )
    if share < LOW_COVERAGE:
        warnings.warn(
            f"the query has {share:.0%} of the {len(known)} genes that the predictor ({what}) was trained on; "
            "absent genes count as not expressed.",
            ScDrugMapWarning,
            stacklevel=4,
        )


def read_obsm(adata: Any, key: str) -> np.ndarray:
    """Return an entry of ``obsm`` as dense float32."""
    if key not in adata.obsm:
        known = ", ".join(map(repr, adata.obsm)) or "none"
        raise MissingKeyError("use_rep", repr(key), f"a key of obsm ({known})", "call sd.tl.embed first.")
    values = adata.obsm[key]
    values = values.to_numpy() if hasattr(values, "to_numpy") else values
    values = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
    if values.ndim != 2 or values.dtype.kind not in "fiub":
        raise InputError(f"adata.obsm[{key!r}]", f"shape {values.shape}, {values.dtype}", "numbers", "embed again.")
    return np.array(values, dtype=np.float32)


def origin_of(adata: Any, key: str) -> dict[str, Any]:
    """Return where an embedding came from, as far as its record says."""
    record = adata.uns.get(key.removeprefix("X_"))
    if not isinstance(record, Mapping) or KEYS.provenance not in record:
        return {}
    origin, params = record[KEYS.provenance], record.get("params", {})
    out = {name: _plain(origin[name]) for name in ("model", "checkpoint_sha256", "options", "recipe") if name in origin}
    if "fitted_on" in origin:
        out["fitted_on"] = str(origin["fitted_on"])
        given = dict(params) | dict(origin.get("options", {}))
        out["options"] = {k: _plain(v) for k, v in given.items() if k not in _NOT_OPTIONS}
    return out


def same_origin(part: Part, found: dict[str, Any], own: bool) -> None:
    """Refuse an embedding of another model, checkpoint or option; without a record there is nothing to compare."""
    if not part.origin or not found:
        return
    for name in ("model", "checkpoint_sha256", "options", "recipe"):
        if comparable(part.origin.get(name)) != comparable(found.get(name)):
            raise InputError(
                f"adata.obsm[{part.key!r}]",
                f"an embedding with {name} {found.get(name)}",
                f"{name} {part.origin.get(name)}, as in training",
                f"embed the query with {part.origin.get('model', 'the model of the training data')}.",
            )
    if HERE in (part.origin.get("fitted_on"), found.get("fitted_on")) and not own:
        warnings.warn(
            f"{part.key} is a baseline that was fitted on the cells of its own object: training and query are on the "
            f"same axes only if both came from one call. sd.tl.train(adata, model={part.origin.get('model')!r}) fits "
            "it on the training cells and applies it to the query.",
            ScDrugMapWarning,
            stacklevel=5,
        )


def _plain(value: Any) -> Any:
    """Turn what an h5ad file returns into what JSON holds."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    return value.tolist() if isinstance(value, np.ndarray) else value


def comparable(value: Any) -> Any:
    """A form in which values compare equal before and after a file: ``None`` and empty are one."""
    if isinstance(value, Mapping):
        return {str(k): comparable(v) for k, v in sorted(value.items())}
    value = _plain(value)
    if value is None or value == {}:
        return ""
    return str(tuple(value)) if isinstance(value, list) else str(value)
