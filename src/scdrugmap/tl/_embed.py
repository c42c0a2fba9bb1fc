"""``sd.tl.embed``: the shell over the inference engine and the fitted baselines."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scdrugmap import __version__, _anndata
from scdrugmap._errors import InputError, ScDrugMapWarning
from scdrugmap._keys import KEYS
from scdrugmap._random import seed_of
from scdrugmap.genes.identifiers import recognise

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from scdrugmap.embedding.cluster import Origin
    from scdrugmap.models.base import FittedModel, Model, NetworkModel


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
    groups: str | None = None,
    rng: int | np.random.Generator | None = None,
    store: str | Path | None = None,
    mod: str = "rna",
    copy: bool = False,
    progress: bool | None = None,
    **model_options: Any,
) -> AnnData | MuData | None:
    """Embed cells with a foundation model or a baseline.

    Every row depends on its own cell alone, whatever the batch size and the neighbours, except for models whose
    cells see each other by design (``context == "group"`` on the card), where ``groups`` says which ones do.

    Parameters
    ----------
    adata
        Raw counts in ``X`` or a layer; in memory, backed by a file, zarr or dask. While a ``dask.distributed`` client
        is active, the chunks of a dask array are embedded on its workers, each of which loads the model once.
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
    groups
        Column of ``obs``. For models whose cells see each other: cells with one label form one group (by default
        ``sample`` if it is there). For the baseline ``scvi``: the batch (by default ``batch`` if it is there).
    rng
        Seed of the draws that some models make; ``sd.settings.seed`` if ``None``. A generator is asked for a seed.
    store
        Folder of an on-disk zarr store that grows block by block; a killed call that is repeated goes on there.
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
        ``(n_obs, dim)`` float32 in the order of the cells; NaN (with a warning) for a cell without usable genes.
    ``uns["<key>"]``
        ``{"params": ..., "provenance": ...}``: versions, digests and licence of the checkpoint, coverage of the
        vocabulary, seed, device, precision.

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
    >>> adata.obsm["X_pca"].shape == (adata.n_obs, 8)
    True
    """
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
    seed = seed_of(rng)
    results = {}
    for one in models:
        key, values, record = _embed_one(
            target, one, checkpoint, layer, key_added, batch_size, device, precision, groups, seed, store, progress,
            model_options,
        )  # fmt: skip
        results[key] = values, record
    for key, (values, record) in results.items():
        target.obsm[KEYS.embedding(key)] = values
        target.uns[key] = record
    return edit.finish()


def _embed_one(
    adata: AnnData,
    model: str | Model,
    checkpoint: str | Path | None,
    layer: str | None,
    key_added: str | None,
    batch_size: int | None,
    device: str | None,
    precision: str | None,
    groups: str | None,
    seed: int,
    store: str | Path | None,
    progress: bool | None,
    options: dict[str, Any],
) -> tuple[str, np.ndarray, dict[str, Any]]:
    from scdrugmap.embedding import cluster as distributed
    from scdrugmap.models import registry

    cls = registry.get(model)
    card = cls.card
    if card.kind == "prompt":
        raise InputError(
            "model", card.name, "a model that gives an embedding",
            "use sd.tl.predict_response(adata, model=..., strategy='prompt').",
        )  # fmt: skip
    key = card.key if key_added is None else check_key(key_added)
    genes = _anndata.gene_ids(adata)
    _check_species(genes.names, card.species, card.name)
    counts = _anndata.counts(adata, layer)
    params = {
        "model": card.name, "checkpoint": str(checkpoint or ""), "layer": layer or "", "groups": groups or "",
        "seed": seed, **options,
    }  # fmt: skip
    provenance: dict[str, Any] = {"scdrugmap": __version__, "model": card.name, "licence": card.weights_licence}
    if card.kind == "fitted":
        if checkpoint is not None:
            raise InputError("checkpoint", str(checkpoint), f"None: {card.name} is fitted", "leave it out.")
        fitted = cls(seed=seed, **options) if isinstance(model, str) else model
        labels = _group_labels(adata, groups, KEYS.batch)
        values = _embed_fitted(fitted, counts, genes, labels, fit=isinstance(model, str))  # type: ignore[arg-type]
        provenance |= {"fitted_on": "all cells of this object", "device": "cpu", "precision": "float32"}
        return key, values, {"params": params, "provenance": provenance}
    network: NetworkModel
    origin = None
    if isinstance(model, str):
        seeded = {"seed": seed, **options}
        network = registry.load(model, checkpoint, **seeded)
        origin = distributed.Origin(checkpoint, seeded)
    else:
        network = model  # type: ignore[assignment]
        if checkpoint is not None or options:
            raise InputError("model", "a loaded model", "its own checkpoint and options", "pass the name instead.")
    values, described = _embed_network(
        adata, network, counts, genes, groups, batch_size, device, precision, store, progress, origin
    )
    provenance |= {
        "checkpoint_sha256": dict(network.digests), "options": _plain(network.options.model_dump()),
        "recipe": network.recipe or "", **described,
    }  # fmt: skip
    return key, values, {"params": _plain(params), "provenance": provenance}


def _embed_network(
    adata: AnnData,
    model: NetworkModel,
    counts: Any,
    genes: Any,
    groups: str | None,
    batch_size: int | None,
    device: str | None,
    precision: str | None,
    store: str | Path | None,
    progress: bool | None,
    origin: Origin | None,
) -> tuple[np.ndarray, dict[str, Any]]:
    from scdrugmap.embedding import runner as inference
    from scdrugmap.embedding.source import CountSource
    from scdrugmap.settings import settings

    grouped = model.card.context == "group"
    labels = _group_labels(adata, groups, KEYS.sample) if grouped else None
    if grouped and labels is None:
        warnings.warn(
            f"no groups= and no obs[{KEYS.sample!r}]: all cells form one group and see each other. "
            "Pass groups=<column of obs> to keep samples apart.",
            ScDrugMapWarning,
            stacklevel=4,
        )
    result = inference.embed_counts(
        model,
        CountSource(counts),
        genes,
        groups=labels,
        batch_size=batch_size,
        device=device,
        precision=precision,
        store=None if store is None else Path(store) / model.card.key,
        cache=settings.cache_dir / "embeddings" if settings.embedding_cache else None,
        show_progress=progress,
        origin=origin,
    )
    if result.alignment.merged:
        some = ", ".join(result.alignment.merged[:5])
        warnings.warn(
            f"{len(result.alignment.merged)} genes occur in several columns, whose counts were summed: {some}",
            ScDrugMapWarning,
            stacklevel=4,
        )
    if not result.usable.all():
        n = int((~result.usable).sum())
        warnings.warn(
            f"{n} of {len(result.usable)} cells hold no gene that {model.card.name} knows; their embedding is NaN. "
            "Remove them with adata[~np.isnan(adata.obsm[key]).any(1)].",
            ScDrugMapWarning,
            stacklevel=4,
        )
    described = inference.describe(result)
    if grouped:
        described["groups"] = "one group" if labels is None else f"{len(np.unique(labels))} groups"
    return np.asarray(result.values[:]), described


def _embed_fitted(model: FittedModel, counts: Any, genes: Any, labels: np.ndarray | None, *, fit: bool) -> np.ndarray:
    from scdrugmap.embedding.runner import BLOCK
    from scdrugmap.embedding.source import CountSource

    source = CountSource(counts)
    if fit:
        model.fit(source[slice(0, source.shape[0])], genes, batch=labels)
    return np.concatenate([model.transform(X, genes) for _, X in source.blocks(BLOCK)])


def check_key(key: Any) -> str:
    """Return a name for new slots if files can hold it."""
    if not isinstance(key, str) or not key or "/" in key:
        raise InputError("key_added", repr(key), "a name without '/'", "use letters, digits and underscores.")
    return key


def _check_species(names: np.ndarray, species: tuple[str, ...], model: str) -> None:
    found = recognise(names)
    known = ("unknown", *species, *("mouse or rat" for s in species if s in ("mouse", "rat")))
    if "any" in species or found.species in known or found.species_share < 0.5:
        return
    raise InputError(
        "adata.var",
        f"gene names of {found.species} ({found.species_share:.0%} of them)",
        f"{' or '.join(species)} genes, which {model} was trained on",
        "map the genes to their human orthologues first (this package does not do that).",
    )


def _group_labels(adata: AnnData, groups: str | None, default: str) -> np.ndarray | None:
    if groups is not None:
        return _anndata.obs_column(adata, groups, "groups").astype(str).to_numpy()
    return adata.obs[default].astype(str).to_numpy() if default in adata.obs else None


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Values that an h5ad file can hold: ``None`` becomes an empty text, other objects their text."""
    plain = (str, int, float, bool, np.ndarray)
    return {k: "" if v is None else v if isinstance(v, plain) else str(v) for k, v in values.items()}
