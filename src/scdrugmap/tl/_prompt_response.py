"""``sd.tl.predict_response(..., strategy="prompt")``: a chat model's answers into ``obs``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scdrugmap import __version__, _anndata
from scdrugmap._errors import InputError, InputTypeError, MissingKeyError, UnknownNameError
from scdrugmap._keys import CLASS_COLOURS, CLASSES, KEYS

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

#: Columns that are told where they are there.
CONTEXT = (KEYS.drug, KEYS.tissue, KEYS.cancer_type)


def prompt_response(
    adata: AnnData | MuData,
    *,
    model: Any = None,
    reference: AnnData | MuData | None = None,
    key_added: str = "response",
    n_shots: int = 0,
    label_key: str = "response",
    layer: str | None = None,
    rng: int | np.random.Generator | None = None,
    mod: str = "rna",
    copy: bool = False,
    progress: bool | None = None,
    context: Sequence[str] | None = None,
    source_key: str | None = None,
    shots: Literal["random", "nearest"] = "random",
    shots_rep: str | None = None,
    **options: Any,
) -> AnnData | MuData | None:
    """Ask a chat model for the response of every cell.

    Parameters
    ----------
    adata
        The cells, with counts.
    model
        Name of the model as the endpoint knows it; ``None`` is GPT-4o-mini.
    reference
        Labelled cells to take examples from; used with ``n_shots`` only.
    key_added
        First part of the names that are written.
    n_shots
        Examples per class in each prompt.
    label_key
        Column of ``reference.obs`` with the labels. It is never told for the cells in question.
    layer
        Layer of the counts; by default ``X``.
    rng
        Seed of the shuffling and of random examples; ``sd.settings.seed`` if ``None``.
    mod
        Modality of a MuData.
    copy
        Return a modified copy.
    progress
        Show a progress bar.
    context
        Columns of ``obs`` that are told with each cell; by default drug, tissue and cancer type where present, and
        none for the published template.
    source_key
        Column of ``obs`` with the data source; accessions in it are hidden unless ``show_accession=True``.
    shots, shots_rep
        Examples at ``"random"``, or the ``"nearest"`` in this embedding (``obsm`` key of both objects).
    **options
        Further arguments of :func:`scdrugmap.prompting.predict`: ``template``, ``base_url``, ``cells_per_prompt``,
        ``prices``, ``max_cost``, ``confirm``, ``concurrency`` ...

    Returns
    -------
    ``None``, or the copy. Writes:

    ``obs["<key>_pred"]``
        Categorical with the categories ``resistant`` and ``sensitive``; missing for a cell without an answer.
    ``obs["<key>_score"]``
        P(sensitive) from log-probabilities, float32; NaN where the endpoint gives none.
    ``obs["<key>_status"]``
        ``answered``, or why there is no answer.
    ``uns["<key>"]``
        ``params``, ``provenance`` (models and fingerprints that answered, counts, tokens, cost) and ``shots`` (names
        of the reference cells that served as examples).

    Raises
    ------
    InputError
        For arguments that cannot be used. Nothing is written then.
    EndpointError
        If the endpoint refuses or keeps failing. Nothing is written; call again to go on where it stopped.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=1, rng=0)
    >>> sd.tl.predict_response(adata, strategy="prompt", base_url="http://localhost:8000/v1")  # doctest: +SKIP
    """
    from scdrugmap import prompting
    from scdrugmap._random import seed_of
    from scdrugmap.prompting.templates import get_template

    edit = _anndata.edit(adata, copy=copy, mod=mod)
    _anndata.refuse_empty(edit.adata, genes=True)
    taken = {"context", "source", "examples", "embedding", "progress_bar"} & set(options)
    if taken:
        name = min(taken)
        raise InputError(name, "an array", "columns of obs", "pass context=, source_key=, reference= or progress=.")
    template = get_template(options.pop("template", "default"))
    if context is None:
        context = [] if template.name == "scdrugmap" else [c for c in CONTEXT if c in edit.adata.obs]
    if label_key in context:
        raise InputError("context", label_key, "columns that do not hold the answer", f"leave out {label_key!r}.")
    seed = seed_of(rng)
    examples, names = None, np.empty(0, dtype=str)
    if n_shots and reference is not None:
        known = _anndata.reading(reference, mod=mod, argument="reference")
        examples = _examples(known, label_key, layer, context, shots, shots_rep)
        names = known.obs_names.to_numpy(dtype=str)
    source = None if source_key is None else _anndata.obs_text(edit.adata, source_key, "source_key").tolist()
    result = prompting.predict(
        _anndata.counts(edit.adata, layer),
        _symbols(edit.adata, layer),
        model=_model_name(model),
        template=template,
        context=_told(edit.adata, context),
        source=source,
        examples=examples,
        n_shots=n_shots,
        shots=shots,
        embedding=_embedding(edit.adata, "adata", shots_rep) if shots == "nearest" and n_shots else None,
        rng=seed,
        progress_bar=progress,
        **options,
    )
    codes = np.where(np.isnan(result.pred), -1, np.nan_to_num(result.pred)).astype(int)
    columns = {
        key_added + KEYS.pred: pd.Categorical.from_codes(codes, categories=list(CLASSES)),
        key_added + KEYS.score: result.score,
        key_added + KEYS.status: pd.Categorical(result.status.astype(str)),
    }
    for column, values in columns.items():
        edit.adata.obs[column] = values
    edit.adata.uns[f"{key_added}{KEYS.pred}_colors"] = list(CLASS_COLOURS)
    edit.adata.uns[key_added] = _record(result, seed, n_shots, shots, context, options, names)
    return edit.finish(list(columns))


def _model_name(model: Any) -> str:
    """Name for the endpoint; the registry's own spelling becomes the vendor's."""
    if model is None:
        return "gpt-4o-mini"
    if not isinstance(model, str):
        raise InputTypeError("model", type(model).__name__, "the name of a chat model", "pass model='gpt-4o-mini'.")
    from scdrugmap.models import registry

    try:
        card = registry.get(model).card
    except UnknownNameError:
        return model
    if card.kind != "prompt":
        raise InputError("model", card.name, "a chat model", "pass model='gpt-4o-mini', or strategy='frozen'.")
    return card.name.lower() if model in (card.name, card.key) else model


def _symbols(adata: AnnData, layer: str | None) -> list[str]:
    """Symbols, or the names of genes without one."""
    genes = _anndata.gene_ids(adata, layer)
    return np.where(genes.symbols == "", genes.names, genes.symbols).tolist()


def _told(adata: AnnData, context: Sequence[str]) -> pd.DataFrame | None:
    if not len(context):
        return None
    return pd.DataFrame({name: _anndata.obs_column(adata, name, "context").to_numpy() for name in context})


def _embedding(adata: AnnData, argument: str, key: str | None) -> np.ndarray:
    if key is None or key not in adata.obsm:
        known = ", ".join(map(repr, adata.obsm)) or "none"
        raise MissingKeyError(
            "shots_rep", repr(key), f"a key of {argument}.obsm ({known})", "embed both objects, or pass shots='random'."
        )
    return np.asarray(adata.obsm[key])


def _examples(
    reference: AnnData, label_key: str, layer: str | None, context: Sequence[str], shots: str, rep: str | None
) -> Any:
    from scdrugmap._cohort import encode
    from scdrugmap.prompting import Examples

    return Examples(
        _anndata.counts(reference, layer),
        _symbols(reference, layer),
        encode(_anndata.obs_column(reference, label_key, "label_key")),
        _embedding(reference, "reference", rep) if shots == "nearest" else None,
        _told(reference, [name for name in context if name in reference.obs]),
    )


def _record(
    result: Any,
    seed: int,
    n_shots: int,
    shots: str,
    context: Sequence[str],
    options: dict[str, Any],
    names: np.ndarray,
) -> dict[str, Any]:
    """What ``uns`` says, in types that an h5ad file holds."""
    log = result.log
    settings = {k: v for k, v in options.items() if isinstance(v, (str, int, float, bool)) and k != "base_url"}
    params = {"strategy": "prompt", "template": log["template"], "seed": seed, "n_shots": n_shots, "shots": shots}
    provenance = {
        "scdrugmap": __version__,
        "host": log["host"],
        "models": np.asarray(log["models"], dtype=str),
        "fingerprints": np.asarray(log["fingerprints"], dtype=str),
        "fallbacks": np.asarray(log["fallbacks"], dtype=str),
        "cells": log["cells"],
        "replies": log["replies"],
        "attempts": log["attempts"],
        "examples_excluded": log["examples_excluded"],
        "usage": dict(result.usage),
        "estimate": log["estimate"],
    }
    if result.cost is not None:
        provenance["cost"] = result.cost
    return {
        "params": params | {"context": np.asarray(list(context), dtype=str), "options": settings},
        "provenance": provenance,
        "shots": names[result.shots] if len(names) else names,
    }
