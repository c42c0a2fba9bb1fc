"""Where an embedding or a query comes from, and whether it fits what a predictor was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scdrugmap._errors import InputError, MissingKeyError
from scdrugmap._keys import KEYS
from scdrugmap._logging import warn
from scdrugmap.embedding.source import CountSource
from scdrugmap.genes.identifiers import Genes
from scdrugmap.models.kit.values import whole

#: Share of the training genes below which a query is likely not what the predictor was made for.
LOW_COVERAGE = 0.5
#: Most values of a column that the summary of the training data lists.
LISTED = 50
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
        warn(
            f"the query has {share:.0%} of the {len(known)} genes that the predictor ({what}) was trained on; "
            "absent genes count as not expressed."
        )


def in_words_of(known: Sequence[str], genes: Genes) -> Genes:
    """Return the query's genes with symbols and Ensembl ids that the packaged table adds, where none is known as it is.

    Parameters
    ----------
    known
        Genes that the predictor was trained on.
    genes
        Those of the query.
    """
    from scdrugmap.genes.mapping import resolve_genes
    from scdrugmap.genes.table import read_table
    from scdrugmap.models.kit.expression import identifiers

    if not len(known) or np.isin(identifiers(genes, np.asarray(known)).astype(str), known).any():
        return genes
    found = resolve_genes(genes, read_table())
    return Genes(
        genes.names,
        np.where(genes.symbols == "", found.symbol, genes.symbols),
        np.where(genes.ensembl == "", found.ensembl, genes.ensembl),
    )


def layer_of(adata: Any, asked: str | None, trained: str | None) -> str | None:
    """Return the layer with the query's raw counts: the one asked for, that of the training, or ``X`` if it holds counts.

    Parameters
    ----------
    adata
        The query.
    asked
        ``layer`` of the call.
    trained
        Layer that the predictor was trained on.

    Raises
    ------
    MissingKeyError
        If the query has neither that layer nor counts in ``X``.
    """
    if asked is not None or trained is None or trained in adata.layers:
        return asked or trained
    known = ", ".join(map(repr, adata.layers)) or "none"
    fix = "pass layer=<where its raw counts are>."
    if adata.X is None or not whole(CountSource(adata.X)[slice(0, 2048)].data):
        found = f"{trained!r}, which the predictor was trained on, and no raw counts in X"
        raise MissingKeyError("layer", found, f"one of the layers ({known})", fix)
    warn(f"the query has no layer {trained!r}, which the predictor was trained on: the raw counts in X are used.")
    return None


def compare_columns(trained: Mapping[str, Sequence[str]], obs: Any) -> None:
    """Warn where drug, tissue or cancer type of the query are none that the predictor has seen.

    Parameters
    ----------
    trained
        Values of each column at training, as its summary lists them.
    obs
        ``obs`` of the query.
    """
    said = []
    for column in (KEYS.drug, KEYS.tissue, KEYS.cancer_type):
        seen = trained.get(column, [])
        if column not in obs or not seen or len(seen) >= LISTED:
            continue
        values = obs[column].dropna().astype(str)
        other = values[~values.str.strip().str.lower().isin([str(v).strip().lower() for v in seen])]
        if len(other):
            names = ", ".join(map(repr, other.value_counts().index[:5]))
            known = ", ".join(map(repr, seen[:5])) + " ..." * (len(seen) > 5)
            said.append(f"{len(other)} of {len(obs)} cells are of {column} {names}, not {known}")
    if said:
        warn(f"the predictor was not trained for these cells: {'; '.join(said)}. What it learnt may not hold for them.")


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
        warn(
            f"{part.key} is a baseline that was fitted on the cells of its own object: training and query are on the "
            f"same axes only if both came from one call. sd.tl.train(adata, model={part.origin.get('model')!r}) fits "
            "it on the training cells and applies it to the query."
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
