"""Names of models to classes: the built-in rows, entry points and what a session registers."""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scdrugmap._errors import InputError, InputTypeError, UnknownNameError
from scdrugmap._logging import warn
from scdrugmap.models.card import ModelCard, model_key

if TYPE_CHECKING:
    from scdrugmap.models.base import Model, NetworkModel

ENTRY_POINTS = "scdrugmap.models"

_BUILT_IN = {
    "tgpt": "scdrugmap.models.tgpt:TGPT",
    "scbert": "scdrugmap.models.scbert:ScBERT",
    "geneformer": "scdrugmap.models.geneformer:Geneformer",
    "celllm": "scdrugmap.models.celllm:CellLM",
    "scfoundation": "scdrugmap.models.scfoundation:ScFoundation",
    "scgpt": "scdrugmap.models.scgpt:ScGPT",
    "cellplm": "scdrugmap.models.cellplm:CellPLM",
    "uce": "scdrugmap.models.uce:UCE",
    "llama38b": "scdrugmap.models.llama:Llama",
    "gpt4omini": "scdrugmap.models.gpt4omini:GPT4oMini",
    "hvg": "scdrugmap.models.hvg:HVG",
    "pca": "scdrugmap.models.pca:PCA",
    "scvi": "scdrugmap.models.scvi:SCVI",
    "pathways": "scdrugmap.models.pathways:Pathways",
}
_REGISTERED: dict[str, type[Model]] = {}


def register(model: type[Model]) -> type[Model]:
    """Add a model class for this session; usable as a decorator.

    Packages register theirs through the entry-point group ``scdrugmap.models`` instead. Either way the entries in its
    ``checkpoints`` join the checkpoint registry.

    Parameters
    ----------
    model
        A subclass of ``scdrugmap.models.base.NetworkModel``, ``GroupModel`` or ``FittedModel``.

    Returns
    -------
    The class, unchanged.

    Raises
    ------
    InputError
        If a built-in model already has the name.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> from scdrugmap.models.pca import PCA
    >>> sd.models.register(PCA)
    Traceback (most recent call last):
    scdrugmap._errors.InputError: ...
    """
    if not isinstance(getattr(model, "card", None), ModelCard):
        raise InputTypeError(
            "model", repr(model), "a model class with a ModelCard as .card", "see the developer guide."
        )
    if model.card.key in _BUILT_IN:
        raise InputError("model.card.name", model.card.name, "a name that is not built in", "choose another name.")
    _add_checkpoints(model)
    _REGISTERED[model.card.key] = model
    return model


def _add_checkpoints(model: type[Model]) -> None:
    own = getattr(model, "checkpoints", None)
    if own:
        from scdrugmap.download.catalog import add_entries

        add_entries("checkpoints", own)


@cache
def _plugins() -> dict[str, Any]:
    return {model_key(point.name): point for point in entry_points(group=ENTRY_POINTS)}


def _plugin(key: str) -> type[Model]:
    """Load the model of another package.

    Raises
    ------
    InputError
        It cannot be imported, or is no model.
    """
    point = _plugins()[key]
    try:
        cls = point.load()
        reason = "" if isinstance(getattr(cls, "card", None), ModelCard) else "it has no ModelCard as .card"
        if not reason:
            _add_checkpoints(cls)
    except Exception as error:  # noqa: BLE001  other people's code may raise anything
        reason = f"{type(error).__name__}: {error}"
    if reason:
        package = point.dist.name if getattr(point, "dist", None) is not None else "another package"
        raise InputError(
            "model",
            f"the plug-in {point.name!r} ({point.value}) of {package}, which cannot be used ({reason})",
            "a plug-in that can be imported",
            f"update or uninstall {package}.",
        )
    return cls


@cache
def _works(key: str) -> bool:
    """Whether the plug-in can be used; one that cannot is named once, and does not stand in the way of others."""
    try:
        _plugin(key)
    except InputError as error:
        warn(str(error))
        return False
    return True


def keys() -> list[str]:
    """Keys of all known models that can be used."""
    return [*_BUILT_IN, *(k for k in _plugins() if k not in _BUILT_IN and _works(k)), *_REGISTERED]


def get(name: str | Model | type[Model]) -> type[Model]:
    """Return the class of a model by name; case and punctuation do not matter.

    Raises
    ------
    UnknownNameError
        With the nearest names.
    InputError
        The plug-in of this name cannot be used.
    """
    if not isinstance(name, str):
        cls = name if isinstance(name, type) else type(name)
        if not isinstance(getattr(cls, "card", None), ModelCard):
            raise InputTypeError("model", repr(name), "a name or a loaded model", "sd.models.list() shows the names.")
        return cls
    key = model_key(name)
    if key in _REGISTERED:
        return _REGISTERED[key]
    if key in _BUILT_IN:
        module, _, attribute = _BUILT_IN[key].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if key in _plugins():
        return _plugin(key)
    known = usable()
    for cls in known.values():
        if key in {model_key(alias) for alias in cls.card.aliases}:
            return cls
    raise UnknownNameError("model", name, [c.card.name for c in known.values()], "sd.models.list() shows them all.")


def usable() -> dict[str, type[Model]]:
    """Classes of all known models by key; a plug-in that fails is left out, with a warning."""
    return {key: get(key) for key in keys()}


def info(name: str) -> ModelCard:
    """Return the card of a model.

    Parameters
    ----------
    name
        Name of the model; case and punctuation do not matter.

    Returns
    -------
    What the model is, what it needs and under which licence its weights come.

    Raises
    ------
    UnknownNameError
        With the nearest names.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> sd.models.info("UCE").dim
    1280
    """
    return get(name).card


def load(name: str, checkpoint: str | Path | None = None, **options: Any) -> NetworkModel:
    """Load a network model with its official weights.

    Parameters
    ----------
    name
        Name of the model.
    checkpoint
        Folder or file in the official layout, or a variant of the checkpoint registry
        (default: the first one on the card), which must be fetched or fetchable.
    **options
        ``recipe`` and the options of the model.

    Returns
    -------
    The model, on the CPU and in evaluation mode.

    Raises
    ------
    UnknownNameError
        For an unknown model, option or variant.
    InputError
        For a fitted or prompted model, which has no checkpoint.
    CheckpointError
        If files are missing, corrupt or of another layout.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> sd.models.load("pca")
    Traceback (most recent call last):
    scdrugmap._errors.InputError: ...
    """
    cls = get(name)
    card = cls.card
    if card.kind != "network":
        raise InputError(
            "model",
            card.name,
            "a model with a checkpoint",
            f"{card.name} is {card.kind}; use sd.tl.embed or sd.tl.predict_response with its name.",
        )
    # Wrong options must not cost a download.
    cls._validated({k: v for k, v in options.items() if k != "recipe"})
    return cls.from_checkpoint(resolve_checkpoint(card, checkpoint), **options).prepared()  # type: ignore[attr-defined]


def resolve_checkpoint(card: ModelCard, checkpoint: str | Path | None) -> Path:
    """Turn a path or a registry variant into a folder or file on this machine."""
    if checkpoint is not None:
        path = Path(checkpoint).expanduser()
        if path.exists():
            return path
        text = str(checkpoint)
        variants = {model_key(c): c for c in card.checkpoints} | {
            model_key(c.partition("/")[2] or c): c for c in card.checkpoints
        }
        if model_key(text) not in variants:
            from scdrugmap._errors import CheckpointError

            known = ", ".join(card.checkpoints) or "none"
            raise CheckpointError(
                "checkpoint",
                text,
                f"an existing folder or file in the official layout of {card.name}, or one of its variants ({known})",
                f"check the path; sd.models.fetch({card.name!r}) fetches the default. A saved predictor whose checkpoint was "
                "moved: sd.load_predictor(folder, checkpoint=<where it is>), or scdrugmap predict --checkpoint.",
            )
        variant = variants[model_key(text)]
    elif not card.checkpoints:
        from scdrugmap._errors import CheckpointError

        raise CheckpointError(
            "checkpoint", None, f"the folder of a checkpoint of {card.name}, which names none to fetch",
            "pass checkpoint=<folder>, or give the model an entry in checkpoints (see the developer guide).",
        )  # fmt: skip
    else:
        variant = card.checkpoints[0]
    from scdrugmap import download

    return download.fetch("checkpoints", variant)
