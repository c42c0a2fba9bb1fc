"""``sd.tl.embed``: the shell over :func:`scdrugmap.embedding.embed.embed_cells`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scdrugmap import __version__, _anndata
from scdrugmap._device import Engine
from scdrugmap._errors import InputError
from scdrugmap._keys import KEYS
from scdrugmap._logging import warn
from scdrugmap._random import seed_of

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from scdrugmap.embedding.cells import Cells
    from scdrugmap.embedding.embed import Embedding
    from scdrugmap.embedding.open import Opened
    from scdrugmap.models.base import Model


def embed(
    adata: AnnData | MuData,
    model: str | Model | Sequence[str | Model],
    *,
    checkpoint: str | Path | None = None,
    layer: str | None = None,
    key_added: str | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    precision: Literal["auto", "float32", "bfloat16", "float16"] | None = None,
    context: str | None = None,
    rng: int | np.random.Generator | None = None,
    store: str | Path | None = None,
    mod: str = "rna",
    copy: bool = False,
    progress: bool | None = None,
    **model_options: Any,
) -> AnnData | MuData | None:
    """Embed cells with a foundation model or a baseline.

    Every row depends on its own cell alone, whatever the batch size and the neighbours, except for models whose
    cells see each other by design (``context == "group"`` on the card), where ``context`` says which ones do.

    Parameters
    ----------
    adata
        Raw counts in ``X`` or a layer; in memory, backed by a file, zarr or dask. While a ``dask.distributed`` client
        is active, counts in files and chunks of a dask array are read and embedded by its workers, each of which loads
        the model once.
    model
        Name of a model (``sd.models.list()``), a loaded model, or a list of them.
    checkpoint
        Folder or file in the official layout, or a variant of the checkpoint registry; by default the first
        variant on the model's card.
    layer
        Layer that holds the raw counts; ``X`` if ``None``.
    key_added
        Name instead of the model's key.
    batch_size
        Most cells in one forward pass; by default a budget of tokens decides.
    device, precision
        ``None`` follows ``sd.settings``: the GPU with bfloat16 if there is one, else the CPU with float32.
    context
        Column of ``obs``. For models whose cells see each other: cells with one label form one group (by default
        ``sample`` if it is there). For the baseline ``scvi``: the batch (by default ``batch`` if it is there, else
        ``sample``). Its old name, ``groups``, is accepted with a warning.
    rng
        Seed of the draws that some models make; ``sd.settings.seed`` if ``None``. A generator is asked for a seed.
    store
        Folder in which the embedding grows block by block and stays: ``obsm`` holds it memory mapped. A killed call
        that is repeated goes on there.
        Finished embeddings of network models are also kept in ``sd.settings.cache_dir`` by their content, and
        reused, unless ``sd.settings.embedding_cache`` is off.
    mod
        Modality of a MuData.
    copy
        Return a modified copy.
    progress
        Show a progress bar (cells done, cells/s, time left); by default on a terminal.
    **model_options
        ``recipe`` (a published behaviour by name) and the options of the model, see ``type(model).Options``.

    Returns
    -------
    ``None``, or the copy. Writes:

    ``obsm["X_<key>"]``
        ``(n_obs, dim)`` float32 in the order of the cells; NaN (with a warning) for a cell without usable genes. The key
        is ``key_added``, or the model's own (``scgpt``); for a baseline, whose name other tools use for slots of
        theirs, ``scdrugmap_pca``, ``scdrugmap_hvg`` or ``scdrugmap_scvi``.
    ``uns["<key>"]``
        ``{"params": ..., "provenance": ...}``: versions, digests and licence of the checkpoint, coverage of the
        vocabulary, seed, device, precision, and the key of the cells' contents.

    Raises
    ------
    UnknownNameError
        For an unknown model or option, with the nearest names.
    InputError
        On values or genes that the model cannot use. Nothing is written then.
    CheckpointError
        If files of the checkpoint are missing, corrupt or of another layout.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=1, rng=0)
    >>> sd.tl.embed(adata, "pca", n_components=8)
    >>> adata.obsm["X_scdrugmap_pca"].shape == (adata.n_obs, 8)
    True
    """
    from scdrugmap.embedding.cells import read_cells
    from scdrugmap.embedding.embed import embed_cells
    from scdrugmap.embedding.open import check_options, open_model

    context, model_options = renamed_context(context, model_options)
    edit = _anndata.edit(adata, copy=copy, mod=mod)
    target = edit.adata
    _anndata.refuse_empty(target, genes=True)
    models = [model] if isinstance(model, str) or not isinstance(model, Sequence) else list(model)
    if len(models) > 1 and (checkpoint is not None or key_added is not None):
        raise InputError(
            "checkpoint or key_added", "one value for several models", "one model", "call embed per model."
        )
    if not models:
        raise InputError("model", "an empty list", "at least one model", "pass model='pca' or another name.")
    if key_added is not None:
        check_key(key_added)
    engine = Engine(device, precision, batch_size, progress, None if store is None else Path(store), seed_of(rng))
    params = {"checkpoint": str(checkpoint or ""), "layer": layer or "", "context": context or "", "seed": engine.seed}
    for one in models:
        check_options(one, model_options)
    known, results = _anndata.reading(edit.root, mod=mod), {}
    for one in models:
        genes = _anndata.gene_ids(target, layer)
        opened = open_model(one, genes, checkpoint=checkpoint, options=model_options, seed=engine.seed)
        cells = read_cells(known, opened.model, layer=layer, context=context)
        fit_here(opened, cells)
        found = embed_cells(opened.model, cells, engine, origin=opened.origin)
        record = {"params": _plain({"model": opened.model.card.name, **params, **model_options})}
        record[KEYS.provenance] = _provenance(opened, cells, found)
        results[key_added or opened.model.card.stem] = found.values, record
    for key, (values, record) in results.items():
        target.obsm[KEYS.embedding(key)] = values
        target.uns[key] = record
    return edit.finish()


def fit_here(opened: Opened, cells: Cells) -> None:
    """Fit a baseline that was asked for by name; one that was passed has to be fitted already."""
    from scdrugmap.embedding.embed import fit_model
    from scdrugmap.models.base import FittedModel

    model = opened.model
    if not isinstance(model, FittedModel):
        return
    if opened.by_name:
        fit_model(model, cells.source, cells.genes, cells.batch)
        return
    try:
        model.state()
    except AttributeError:
        raise InputError(
            "model", f"a {model.card.name} that is not fitted", "a fitted model, or its name",
            f"pass model={model.card.key!r} to fit it on these cells, or call .fit first.",
        ) from None  # fmt: skip


def _provenance(opened: Opened, cells: Cells, found: Embedding) -> dict[str, Any]:
    """What made the embedding."""
    from scdrugmap.models.base import NetworkModel
    from scdrugmap.predictor.origin import HERE

    model = opened.model
    out: dict[str, Any] = {"scdrugmap": __version__, "model": model.card.name, "licence": model.card.weights_licence}
    options = _plain(model.options.model_dump())
    if isinstance(model, NetworkModel):
        out |= {"checkpoint_sha256": dict(model.digests), "options": options, "recipe": model.recipe or ""}
        out |= found.described()
        if model.card.context == "group":
            labels = cells.context
            out["context"] = "one group" if labels is None else f"{len(np.unique(labels))} groups"
        return out
    if opened.by_name:
        batch = {"batch": cells.batch_from} if model.uses_batch else {}
        return out | {"fitted_on": HERE, **batch, **found.described()}
    return out | {"fitted_on": "other cells, before this call", "options": options, **found.described()}


def renamed_context(context: str | None, options: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Take ``groups``, the old name of ``context``, from further options."""
    if "groups" not in options:
        return context, options
    warn(
        "groups= of sd.tl.embed is called context= now (groups= of train and benchmark keeps cells on one side); the "
        "old name goes with the next release."
    )
    options = dict(options)
    old = options.pop("groups")
    return (old if context is None else context), options


def check_key(key: Any) -> str:
    """Return a name for new slots if files can hold it."""
    if not isinstance(key, str) or not key or "/" in key:
        raise InputError("key_added", repr(key), "a name without '/'", "use letters, digits and underscores.")
    return key


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Values that an h5ad file can hold: ``None`` becomes an empty text, other objects their text."""
    plain = (str, int, float, bool, np.ndarray)
    return {k: "" if v is None else v if isinstance(v, plain) else str(v) for k, v in values.items()}
