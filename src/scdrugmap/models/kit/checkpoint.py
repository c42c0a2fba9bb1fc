"""Reading official checkpoints: safe formats only, every tensor accounted for."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scdrugmap._errors import CheckpointError

_FIX = "fetch it again with sd.models.fetch({name!r}) or point checkpoint= at a complete copy."
#: Globals that official dictionaries of strings, numbers and NumPy arrays need; nothing else is admitted.
_ADMITTED = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
}


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ADMITTED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not a plain container, string, number or array")


def load_pickle(path: Path) -> Any:
    """Read an official pickle that holds only containers, strings, numbers and NumPy arrays.

    Raises
    ------
    CheckpointError
        If the file is corrupt or asks for any other object.
    """
    try:
        return _RestrictedUnpickler(io.BytesIO(path.read_bytes())).load()
    except (
        pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, ImportError, IndexError, KeyError,
    ) as error:  # fmt: skip
        raise CheckpointError(
            "checkpoint", f"{path.name}: {error}", "a pickle of plain values", "replace the file by the official one."
        ) from error


def load_json(path: Path, kind: type = dict) -> Any:
    """Read a JSON file of a checkpoint.

    Parameters
    ----------
    path
        The file.
    kind
        What it holds: ``dict`` for names and values, or ``list``.

    Raises
    ------
    CheckpointError
        If the file is no JSON, or holds something else.
    """
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            "checkpoint", f"{path.name}: {error}", "valid JSON", "replace the file by the official one."
        ) from error
    if not isinstance(content, kind):
        raise CheckpointError(
            "checkpoint",
            f"{path.name} with a {type(content).__name__}",
            "a JSON object (names and values)" if kind is dict else f"a JSON {kind.__name__}",
            "replace the file by the official one.",
        )
    return content


def check_words(words: Mapping[str, Any], size: int, source: str) -> None:
    """Refuse a vocabulary whose words and numbers do not fit each other.

    Parameters
    ----------
    words
        Word to id.
    size
        Rows of the embedding: one word for each.
    source
        File name for the message.

    Raises
    ------
    CheckpointError
        If ids are no numbers, two words share one, or an id from 0 to ``size - 1`` has no word.
    """
    ids = list(words.values())
    problem = ""
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        problem = "with ids that are no whole numbers"
    elif len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        problem = f"with several words on the id {twice}: {', '.join(w for w, i in words.items() if i == twice)}"
    elif set(ids) != set(range(size)):
        lacking = sorted(set(range(size)) - set(ids))[:5]
        problem = f"with {len(ids):,} words, none for the ids {lacking}" if lacking else f"with {len(ids):,} words"
    if problem:
        raise CheckpointError(
            "checkpoint",
            f"{source} {problem}",
            f"{size:,} words (vocab_size), one for every row of the embedding",
            "use the vocabulary that came with these weights.",
        )


def load_tensors(path: Path) -> Any:
    """Read a weight file (``.safetensors``, or ``torch.save`` with ``weights_only=True``) onto the CPU, memory-mapped."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:160]
        raise CheckpointError(
            "checkpoint",
            f"{path.name} ({path.stat().st_size:,} bytes): {type(error).__name__}: {reason}",
            "a complete weight file that loads without running code",
            "compare its size with the official file and copy or fetch it again.",
        ) from error


def find_file(path: Path, names: Iterable[str], model: str, *, required: bool = True) -> Path | None:
    """Find the first of some file names (globs allowed) in a checkpoint folder or beside a checkpoint file."""
    names = list(names)
    if not path.exists():
        raise CheckpointError("checkpoint", str(path), "an existing folder or file", _FIX.format(name=model))
    folder = path if path.is_dir() else path.parent
    for name in names:
        if path.is_file() and path.match(name):
            return path
        hits = sorted(p for p in folder.glob(name) if p.is_file())
        if hits:
            return hits[0]
    if not required:
        return None
    listing = ", ".join(sorted(p.name for p in folder.iterdir())[:12]) or "nothing"
    raise CheckpointError(
        "checkpoint",
        f"{folder.name}/ with {listing}",
        f"{' or '.join(names)}, which the official {model} checkpoint holds",
        _FIX.format(name=model),
    )


def require_file(path: Path, names: Iterable[str], model: str) -> Path:
    """Like :func:`find_file`, for a file that must be there."""
    found = find_file(path, names, model)
    assert found is not None
    return found


def load_strict(
    network: nn.Module, tensors: Mapping[str, Tensor], *, ignore: Iterable[str] = (), source: str = "checkpoint"
) -> None:
    """Copy tensors into a network; every parameter must come, every tensor must be used or listed.

    Parameters
    ----------
    network
        Receives the values; their dtype becomes that of the network.
    tensors
        By the network's own names.
    ignore
        Regular expressions (full match) of tensors that the embedding does not need: heads, decoders.
    source
        File name for the message.

    Raises
    ------
    CheckpointError
        On missing, unexpected or mis-shaped tensors, on whole numbers where weights belong, and on NaN or infinity.
    """
    patterns = [re.compile(p) for p in ignore]
    given = {k: v for k, v in tensors.items() if not any(p.fullmatch(k) for p in patterns)}
    own = network.state_dict()
    missing, extra = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    shapes = [
        f"{k} {tuple(given[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own.keys() & given.keys()
        if own[k].shape != given[k].shape
    ]
    weights = {k: v for k, v in network.named_parameters() if k in given and given[k].shape == v.shape}
    whole = sorted(f"{k} ({given[k].dtype})" for k in weights if not given[k].is_floating_point())
    broken = sorted(k for k in weights if given[k].is_floating_point() and not _finite(given[k]))
    for problem, names in (
        ("lacks", missing),
        ("holds unexpected", extra),
        ("has mis-shaped", sorted(shapes)),
        ("has whole numbers in", whole),
        ("has NaN or infinity in", broken),
    ):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise CheckpointError(
                "checkpoint",
                f"{source} {problem} {', '.join(names[:5])}{more}",
                "exactly the tensors of the official layout",
                "use the official, unmodified checkpoint that matches this model.",
            )
    network.load_state_dict(given)


def _finite(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers only, found without a copy of its size."""
    flat = tensor.detach().reshape(-1)
    return all(bool(torch.isfinite(part.float()).all()) for part in flat.split(1 << 22))


def split_qkv(tensors: dict[str, Tensor], fused: str, names: tuple[str, str, str], *, dim: int = 0) -> None:
    """Replace a stacked query-key-value tensor by three of their own names, in place."""
    for name, part in zip(names, tensors.pop(fused).chunk(3, dim=dim), strict=True):
        tensors[name] = part


def digests(*files: Path) -> dict[str, str]:
    """SHA-256 of each file by name."""
    return {f.name: _sha256(f, f.stat().st_size, f.stat().st_mtime_ns) for f in files}


@lru_cache(maxsize=256)
def _sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
