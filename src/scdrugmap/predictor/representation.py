"""What a head looks at: columns of ``obsm``, a foundation model, or a baseline fitted on the training cells."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from scdrugmap import _anndata
from scdrugmap._device import Engine
from scdrugmap._errors import CheckpointError, InputError, InputTypeError
from scdrugmap.predictor.origin import Part, check_coverage, in_words_of, layer_of, origin_of, read_obsm, same_origin

_MOVED = (
    "Where the checkpoint of the training lies elsewhere: load_predictor(path, checkpoint=<folder>), or checkpoint= of "
    "predict_response (scdrugmap predict --checkpoint)."
)


class Representation(ABC):
    """Turns an AnnData or MuData into features."""

    kind: str

    @abstractmethod
    def features(
        self, data: Any, mod: str, engine: Engine, *, layer: str | None = None, rows: np.ndarray | None = None
    ) -> np.ndarray:
        """Return (cells, d) float32; a row without any number is a cell that the representation cannot place.

        Parameters
        ----------
        data, mod
            AnnData, or MuData and modality.
        engine
            How a network computes.
        layer
            Layer of the raw counts where it is another one than at training.
        rows
            Cells to return, ascending; by default all.
        """

    @abstractmethod
    def meta(self) -> dict[str, Any]:
        """Return what JSON can hold."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Return fitted arrays."""
        return {}

    @property
    @abstractmethod
    def label(self) -> str:
        """Name for people."""


class ObsmRepresentation(Representation):
    """Embeddings that lie in ``obsm`` already, side by side."""

    kind = "obsm"

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = list(parts)
        self._trained_on: Any = None

    @classmethod
    def open(cls, data: Any, use_rep: Any, mod: str) -> ObsmRepresentation:
        """Note width and origin of what ``use_rep`` names in the training data.

        Raises
        ------
        InputTypeError
            If ``use_rep`` is neither a key, a list of keys nor a mapping of modality to key.
        MissingKeyError
            If there is no such modality or key.
        """
        if isinstance(use_rep, str):
            wanted = [Part(None, use_rep)]
        elif isinstance(use_rep, Mapping):
            if not _anndata.is_mudata(data):
                raise InputTypeError(
                    "use_rep", use_rep, "a key of obsm: only a MuData has modalities", "pass a key, or a list of keys."
                )
            wanted = [
                Part(m, k) for m, keys in use_rep.items() for k in ([keys] if isinstance(keys, str) else list(keys))
            ]
        elif isinstance(use_rep, Sequence):
            wanted = [Part(None, str(k)) for k in use_rep]
        else:
            raise InputTypeError("use_rep", use_rep, "a key of obsm, a list or a mapping of them", "pass 'X_scgpt'.")
        if not wanted:
            raise InputError("use_rep", use_rep, "one key or more", "pass 'X_scgpt'.")
        parts = []
        for part in wanted:
            adata = _anndata.resolve(data, mod=part.mod or mod)
            parts.append(replace(part, dim=read_obsm(adata, part.key).shape[1], origin=origin_of(adata, part.key)))
        opened = cls(parts)
        opened._trained_on = weakref.ref(data)
        return opened

    @property
    def label(self) -> str:
        """Keys, with their modality."""
        return " + ".join(f"{p.mod}:{p.key}" if p.mod else p.key for p in self.parts)

    def features(
        self, data: Any, mod: str, engine: Engine, *, layer: str | None = None, rows: np.ndarray | None = None
    ) -> np.ndarray:
        """Concatenate the entries, matched by cell name across modalities.

        Raises
        ------
        InputError
            If an entry has another width, comes from another model, or holds NaN among its numbers.
        """
        main = _anndata.resolve(data, mod=mod)
        columns = []
        for part in self.parts:
            adata = _anndata.resolve(data, mod=part.mod or mod)
            values = read_obsm(adata, part.key)
            if values.shape[1] != part.dim:
                raise InputError(
                    f"adata.obsm[{part.key!r}]",
                    f"{values.shape[1]} columns",
                    f"{part.dim}, as in training",
                    "embed the query with the model and the options of the training data.",
                )
            own = self._trained_on is not None and self._trained_on() is data
            same_origin(part, origin_of(adata, part.key), own)
            if adata is not main:
                at = adata.obs_names.get_indexer(main.obs_names)
                values = np.where((at >= 0)[:, None], values[at], np.float32(np.nan))
            columns.append(values)
        out = np.concatenate(columns, axis=1)
        absent = np.any([np.isnan(c).all(axis=1) for c in columns], axis=0)
        if not np.isfinite(out[~absent]).all():
            bad = int((~np.isfinite(out[~absent]).all(axis=1)).sum())
            raise InputError(
                f"obsm ({self.label})",
                f"NaN or infinite values in {bad} of {len(out)} cells",
                "finite numbers, or a row of NaN alone for a cell without embedding",
                "embed again, or drop these cells.",
            )
        out[absent] = np.nan
        return out if rows is None else out[rows]

    def meta(self) -> dict[str, Any]:
        """Return the parts."""
        return {"parts": [{"mod": p.mod, "key": p.key, "dim": p.dim, "origin": p.origin} for p in self.parts]}

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> ObsmRepresentation:
        """Rebuild from :meth:`meta`."""
        return cls([Part(p["mod"], p["key"], int(p["dim"]), dict(p["origin"])) for p in meta["parts"]])


class NetworkRepresentation(Representation):
    """A foundation model, referenced by name and digest; with LoRA, its network carries adapters."""

    kind = "network"

    def __init__(
        self,
        name: str,
        *,
        checkpoint: str | None,
        digests: Mapping[str, str],
        options: Mapping[str, Any],
        recipe: str | None,
        layer: str | None,
        context: str | None,
        genes: Sequence[str] = (),
        model: Any = None,
        adapted: bool = False,
    ) -> None:
        self.name, self.checkpoint, self.digests = name, checkpoint, dict(digests)
        self.options, self.recipe, self.layer, self.context = dict(options), recipe, layer, context
        self.genes, self.model, self.adapted = [str(g) for g in genes], model, adapted

    @classmethod
    def open(
        cls, model: Any, *, checkpoint: str | None, layer: str | None, context: str | None
    ) -> NetworkRepresentation:
        """Wrap a loaded network model."""
        return cls(
            model.card.name,
            checkpoint=checkpoint,
            digests=model.digests,
            options=model.options.model_dump(mode="json"),
            recipe=model.recipe,
            layer=layer,
            context=context,
            model=model,
        )

    @property
    def label(self) -> str:
        """Name of the model."""
        return self.name + (" + LoRA" if self.adapted else "")

    def load(self) -> Any:
        """Return the model, read from its checkpoint where that has not happened yet.

        Raises
        ------
        CheckpointError
            If the checkpoint is another one than the predictor was trained on.
        """
        if self.model is None:
            from scdrugmap.models import registry

            options = {**self.options, **({"recipe": self.recipe} if self.recipe else {})}
            try:
                loaded = registry.load(self.name, self.checkpoint, **options)
            except CheckpointError as error:
                raise CheckpointError(error.argument, error.found, error.expected, f"{error.fix} {_MOVED}") from error
            self.model = self.verified(loaded)
        return self.model

    def verified(self, model: Any) -> Any:
        """Return ``model`` if its files have the digests of the training."""
        if dict(model.digests) != self.digests:
            wrong = sorted(k for k in {*model.digests, *self.digests} if model.digests.get(k) != self.digests.get(k))
            raise CheckpointError(
                "checkpoint",
                f"other contents than at training in {', '.join(wrong)} of {self.name} ({self.checkpoint or 'default'})",
                "the checkpoint whose SHA-256 the predictor names",
                _MOVED,
            )
        return model

    def features(
        self, data: Any, mod: str, engine: Engine, *, layer: str | None = None, rows: np.ndarray | None = None
    ) -> np.ndarray:
        """Embed, or take the embedding of these very cells from ``obsm`` or the cache."""
        from scdrugmap.embedding.cells import read_cells
        from scdrugmap.embedding.embed import embed_cells

        model, adata = self.load(), _anndata.reading(data, mod=mod)
        layer = layer_of(adata, layer, self.layer)
        cells = read_cells(adata, model, layer=layer, context=self.context, reuse=not self.adapted)
        found = model.align(cells.genes).genes
        check_coverage(self.genes, found, self.label)
        values = embed_cells(model, cells, engine, rows=rows).values
        self.genes = self.genes or [str(g) for g in found]
        return values

    def meta(self) -> dict[str, Any]:
        """Return the reference to the model."""
        names = ("name", "checkpoint", "digests", "options", "recipe", "layer", "context", "adapted")
        return {n: getattr(self, n) for n in names}

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any], genes: Sequence[str]) -> NetworkRepresentation:
        """Rebuild from :meth:`meta` and the gene list; the checkpoint is read when it is needed."""
        values = dict(meta)
        if "groups" in values:  # as version 0.1 called it
            values["context"] = values.pop("groups")
        return cls(values.pop("name"), genes=genes, **values)


class FittedRepresentation(Representation):
    """A baseline that was fitted on the training cells."""

    kind = "fitted"

    def __init__(self, model: Any, *, layer: str | None) -> None:
        self.model, self.layer = model, layer

    def canonical(self) -> FittedRepresentation:
        """Return this representation with its arrays laid out as a file holds them.

        Products of matrices differ in the last bit with the memory layout; so they do not, before and after a file.
        """
        state = {k: np.array(v, order="C") for k, v in self.model.state().items()}
        return FittedRepresentation.from_meta(self.meta(), state)

    @property
    def label(self) -> str:
        """Name of the baseline."""
        return self.model.card.name

    @property
    def genes(self) -> list[str]:
        """Genes that the baseline was fitted on."""
        state = self.model.state()
        return [str(g) for g in state["genes"]] if "genes" in state else []

    def features(
        self, data: Any, mod: str, engine: Engine, *, layer: str | None = None, rows: np.ndarray | None = None
    ) -> np.ndarray:
        """Project cells."""
        from scdrugmap.embedding.cells import read_cells
        from scdrugmap.embedding.embed import embed_cells
        from scdrugmap.models.kit.expression import identifiers

        adata = _anndata.reading(data, mod=mod)
        cells = read_cells(adata, self.model, layer=layer_of(adata, layer, self.layer))
        cells = replace(cells, genes=in_words_of(self.genes, cells.genes))
        if self.genes:
            check_coverage(self.genes, identifiers(cells.genes, np.asarray(self.genes)), self.label)
        return embed_cells(self.model, cells, engine, rows=rows).values

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the state of the baseline."""
        return self.model.state()

    def meta(self) -> dict[str, Any]:
        """Return name, options and layer."""
        return {
            "name": self.model.card.name,
            "options": self.model.options.model_dump(mode="json"),
            "recipe": self.model.recipe,
            "layer": self.layer,
        }

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> FittedRepresentation:
        """Rebuild from :meth:`meta` and :meth:`arrays`."""
        from scdrugmap.models import registry

        options = {**meta["options"], **({"recipe": meta["recipe"]} if meta["recipe"] else {})}
        model: Any = registry.get(meta["name"])
        return cls(model.from_state(arrays, **options), layer=meta["layer"])


def open_representation(
    adata: Any,
    model: Any,
    engine: Engine,
    *,
    checkpoint: str | Path | None = None,
    layer: str | None = None,
    context: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> NetworkRepresentation | FittedRepresentation:
    """Return the representation of a model by name or object; a baseline is not fitted yet.

    Parameters
    ----------
    adata
        The training cells.
    model
        Name, or a loaded or fitted model.
    engine
        Holds the seed of a model by name.
    checkpoint, options
        Of a model by name.
    layer, context
        As in :func:`scdrugmap.tl.train`.

    Raises
    ------
    InputError
        If the model cannot embed these cells.
    """
    from scdrugmap.embedding.open import open_model
    from scdrugmap.models.base import FittedModel

    _anndata.refuse_empty(adata, genes=True)
    genes = _anndata.gene_ids(adata, layer)
    opened = open_model(model, genes, checkpoint=checkpoint, options=options, seed=engine.seed)
    _anndata.counts(adata, layer)
    if isinstance(opened.model, FittedModel):
        return FittedRepresentation(opened.model, layer=layer)
    text = as_checkpoint_text(checkpoint)
    return NetworkRepresentation.open(opened.model, checkpoint=text, layer=layer, context=context)


def as_checkpoint_text(checkpoint: str | Path | None) -> str | None:
    """Return a checkpoint argument as text, an existing path in absolute form."""
    if checkpoint is None:
        return None
    path = Path(checkpoint).expanduser()
    return str(path.resolve()) if path.exists() else str(checkpoint)
