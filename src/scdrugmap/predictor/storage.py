"""Folders of JSON and safetensors: written whole or not at all, verified when read, no pickle."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scdrugmap._errors import CheckpointError, InputError, InputTypeError, OutputError
from scdrugmap._files import atomic_folder

MANIFEST = "predictor.json"
FORMAT = 1


def write_folder(path: Path, fill: Callable[[Path], dict[str, Any]], *, overwrite: bool) -> None:
    """Write a folder of a predictor, whole or not at all.

    Parameters
    ----------
    path
        The folder to be.
    fill
        Writes the files into the folder that it is given, and returns the manifest, to which the digests are added.
    overwrite
        Replace an earlier predictor.

    Raises
    ------
    InputError
        If something is there that must not be replaced.
    OutputError
        If the place cannot be written.
    """
    path = Path(path).expanduser().absolute()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        if not (path / MANIFEST).is_file():
            raise InputError("path", str(path), "a new folder", "choose another name: this is not a predictor.")
        if not overwrite:
            raise InputError("path", f"{path} holds a predictor", "a new folder", "pass overwrite=True to replace it.")
    with contextlib.ExitStack() as stack:
        try:
            fresh = stack.enter_context(atomic_folder(path))
        except OSError as error:
            raise OutputError("path", path, error) from None
        manifest = fill(fresh)
        # PEFT writes what it is told; anything unexpected must not travel
        manifest["files"] = {
            p.relative_to(fresh).as_posix(): sha256(p) for p in sorted(fresh.rglob("*")) if p.is_file()
        }
        text = json.dumps({"format": FORMAT, **manifest}, indent=2, default=_jsonable)
        (fresh / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of a predictor and verify the files that it names.

    Parameters
    ----------
    path
        Folder of a predictor.

    Returns
    -------
    The manifest.

    Raises
    ------
    CheckpointError
        If this is no predictor, of another format, or a file is missing or changed.
    """
    file = Path(path).expanduser() / MANIFEST
    if not file.is_file():
        raise CheckpointError("path", str(path), f"a folder with {MANIFEST}", "pass what .save() wrote.")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError("path", f"{file}: {error}", "JSON", "save the predictor again.") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise CheckpointError("path", f"format {found}", f"format {FORMAT}", "use a matching version of scdrugmap.")
    if not isinstance(manifest.get("files"), dict):
        raise CheckpointError("path", f"{file} without a list of files", "what .save() wrote", "copy the folder again.")
    for name, digest in manifest["files"].items():
        part = file.parent / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise CheckpointError("path", name, "a file inside the folder", "do not use this folder.")
        if not part.is_file() or (name != "README.md" and sha256(part) != digest):
            raise CheckpointError(
                "path",
                f"{name} is {'changed' if part.is_file() else 'missing'}",
                "the file as it was saved",
                "copy it again.",
            )
    return manifest


def write_arrays(file: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
    """Write numeric arrays as safetensors; return the text arrays, which belong into the JSON.

    Parameters
    ----------
    file
        Target; not written if there is no numeric array.
    arrays
        Names and arrays.

    Returns
    -------
    Text arrays as lists.
    """
    from safetensors.numpy import save_file

    texts = {k: [str(v) for v in a] for k, a in arrays.items() if np.asarray(a).dtype.kind in "UO"}
    numbers = {k: np.ascontiguousarray(a) if np.ndim(a) else np.asarray(a) for k, a in arrays.items() if k not in texts}
    if numbers:
        save_file(numbers, str(file))
    return texts


def read_arrays(file: Path, texts: Mapping[str, list[str]] | None = None) -> dict[str, np.ndarray]:
    """Read what :func:`write_arrays` wrote.

    Parameters
    ----------
    file
        The safetensors file; may be absent.
    texts
        The text arrays.

    Returns
    -------
    Names and arrays.
    """
    from safetensors.numpy import load_file

    out: dict[str, np.ndarray] = dict(load_file(str(file))) if file.is_file() else {}
    return {**out, **{k: np.asarray(v, dtype="U") for k, v in (texts or {}).items()}}


def dump_head(head: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Take a fitted head apart into JSON and arrays.

    Parameters
    ----------
    head
        A fitted :class:`MLPHead`, logistic regression, or a pipeline of scaler and logistic regression.

    Returns
    -------
    What JSON holds, and the arrays.

    Raises
    ------
    InputTypeError
        For any other estimator, which only a pickle could hold.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    from scdrugmap.heads.mlp import MLPHead

    classes = [str(c) for c in head.classes_]
    if type(head) is MLPHead:
        params = {k: v if _is_json(v) else str(v) for k, v in head.get_params().items() if k != "random_state"}
        seed = head.random_state
        params["random_state"] = int(seed) if isinstance(seed, int | np.integer) else None
        return {"kind": "mlp", "classes": classes, "params": params}, head.get_state()
    steps = [s for _, s in head.steps] if type(head) is Pipeline else [head]
    kinds = [type(s) for s in steps]
    if kinds not in ([LogisticRegression], [StandardScaler, LogisticRegression]):
        raise InputTypeError(
            "head",
            f"a fitted {type(head).__name__}",
            "'mlp', 'logistic', or LogisticRegression, alone or after StandardScaler",
            "keep this predictor in memory: another estimator could only be stored as a pickle, which is not safe to load.",
        )
    names = [n for n, _ in head.steps] if type(head) is Pipeline else []
    params = {
        k: v for k, v in steps[-1].get_params().items() if k in ("C", "max_iter", "fit_intercept") and _is_json(v)
    }
    arrays = {f"logistic.{k}": np.asarray(getattr(steps[-1], k)) for k in ("coef_", "intercept_", "n_iter_")}
    if len(steps) == 2:
        scaler = steps[0]
        found = {k: getattr(scaler, k) for k in ("mean_", "scale_", "var_", "n_samples_seen_")}
        arrays |= {f"scaler.{k}": np.asarray(v) for k, v in found.items() if v is not None}
        params |= {"with_mean": scaler.with_mean, "with_std": scaler.with_std}
    return {"kind": "logistic", "classes": classes, "params": params, "steps": names}, arrays


def load_head(meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Any:
    """Put a head together again.

    Parameters
    ----------
    meta, arrays
        Of :func:`dump_head`.

    Returns
    -------
    A fitted classifier.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    from scdrugmap.heads.mlp import MLPHead

    params = dict(meta["params"])
    if meta["kind"] == "mlp":
        params["hidden"] = tuple(params["hidden"])
        # a predictor runs wherever it is loaded, not where it was trained
        return MLPHead.from_state(arrays, meta["classes"], **{**params, "device": None})
    if meta["kind"] != "logistic":
        raise CheckpointError("head", meta["kind"], "'mlp' or 'logistic'", "use a matching version of scdrugmap.")
    scaling = {k: params.pop(k) for k in ("with_mean", "with_std") if k in params}
    logistic = LogisticRegression(**params)
    logistic.classes_ = np.asarray(meta["classes"])
    for name in ("coef_", "intercept_", "n_iter_"):
        setattr(logistic, name, arrays[f"logistic.{name}"])
    logistic.n_features_in_ = logistic.coef_.shape[1]
    if not meta["steps"]:
        return logistic
    steps: list[Any] = [logistic]
    if len(meta["steps"]) == 2:
        scaler = StandardScaler(**scaling)
        for name in ("mean_", "scale_", "var_", "n_samples_seen_"):
            setattr(scaler, name, arrays.get(f"scaler.{name}"))
        scaler.n_features_in_ = logistic.n_features_in_
        steps = [scaler, logistic]
    return Pipeline(list(zip(meta["steps"], steps, strict=True)))


def sha256(file: Path) -> str:
    """SHA-256 of a file.

    Parameters
    ----------
    file
        The file.

    Returns
    -------
    Hexadecimal digest.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _jsonable(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} in the manifest")


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, default=_jsonable)
    except (TypeError, ValueError):
        return False
    return True
