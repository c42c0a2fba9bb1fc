"""From the JSON schema of a kind of job to the fields of its form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scdrugmap.web.kinds import COLUMNS, Kind

#: What most people never change stands behind "more".
_FIRST = (
    "model",
    "models",
    "label_key",
    "groups",
    "sample_key",
    "study_key",
    "head",
    "setting",
    "split",
    "conformal",
    "ood",
    "calibrate",
)
_BASELINES = ("all_sensitive", "majority", "random", "depth", "hvg", "pca", "scvi", "sample_probe")
_MENUS: dict[str, tuple[str, ...]] = {
    "head": ("mlp", "logistic"), "split": ("auto", "sample", "study", "patient", "cell"),
    "preset": ("published", "strict"), "strategy": ("frozen", "lora"),
}  # fmt: skip
#: Words of people for names of arguments; others show their own name.
_TITLES = {
    "label_key": "Column with the labels", "key": "Column with the labels", "groups": "Column of samples, which stay together",
    "sample_key": "Column of samples", "study_key": "Column of studies", "patient_key": "Column of patients",
    "conformal": "Prediction sets", "conformal_by": "Column within which the sets hold", "ood": "Flag cells unlike the training cells",
    "calibrate": "Calibration of the scores", "head": "Classifier on the embedding", "mod": "Modality",
    "by": "Column whose values are evaluated one by one", "split": "What stays whole", "key_added": "Prefix of the columns",
    "n_folds": "Folds", "use_rep": "Embedding in the file instead of a model",
}  # fmt: skip
_GUESS = {
    "label_key": "label",
    "groups": "sample",
    "sample_key": "sample",
    "study_key": "study",
    "key": "label",
    "by": "",
}


def fields(kind: Kind, check: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Fields of a form, the important ones first.

    Parameters
    ----------
    kind
        What is asked.
    check
        What the check of the upload found: its columns become menus.
    """
    schema = kind.schema()
    # Columns of the labelled file, not of this one, are meant where there is a reference.
    own = {} if "reference" in kind.roles else check
    made = [_field(name, one, own, schema["$defs"]) for name, one in schema["properties"].items()]
    out = [f for f in made if f is not None]
    order = {name: i for i, name in enumerate(_FIRST)}
    return sorted(out, key=lambda f: order.get(f["name"], len(order)))


def _field(
    name: str, schema: Mapping[str, Any], check: Mapping[str, Any], definitions: Mapping[str, Any]
) -> dict[str, Any] | None:
    plain = _plain(schema, definitions)
    out: dict[str, Any] = {
        "name": name, "title": _TITLES.get(name, name.replace("_", " ").capitalize()),
        "text": schema.get("description", ""), "default": schema.get("default"), "first": name in _FIRST,
        "group": schema.get("group", ""), "minimum": plain.get("minimum", plain.get("exclusiveMinimum")),
        "maximum": plain.get("maximum"),
    }  # fmt: skip
    columns = [c["name"] for c in check.get("columns", ())]
    if name in ("model", "models"):
        return out | {"kind": "models" if name == "models" else "menu", "choices": _models(), "required": True}
    if name == "mod" and not check.get("mod"):
        return None
    if name == "layer":
        return out | {"kind": "menu", "choices": check.get("layers", ()), "required": False}
    if name in COLUMNS and check:
        guess = next((c["name"] for c in check["columns"] if c["looks_like"] == _GUESS.get(name)), None)
        default = out["default"] if out["default"] in columns else guess
        return out | {
            "kind": "menu",
            "choices": columns,
            "default": default,
            "required": False,
            "many": plain.get("type") == "array",
        }
    if name == "baselines":
        return out | {"kind": "models", "choices": _BASELINES}
    if name in _MENUS:
        return out | {"kind": "menu", "choices": _MENUS[name], "required": out["default"] is not None}
    if plain.get("type") in ("array", "object", None) and "enum" not in plain:
        return None  # For programs; a form has no field for it.
    if "enum" in plain:
        needed = out["default"] is not None
        return out | {"kind": "menu", "choices": plain["enum"], "required": needed}
    if plain.get("type") == "boolean" and out["default"] is None:
        return out | {"kind": "menu", "choices": ("true", "false"), "required": False}
    kinds = {"boolean": "check", "integer": "number", "number": "number"}
    return out | {
        "kind": kinds.get(plain.get("type", "string"), "text"),
        "step": 1 if plain.get("type") == "integer" else "any",
    }


def _plain(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first part of a union that is not null, with references followed."""
    if "$ref" in schema:
        return _plain(definitions[schema["$ref"].rsplit("/", 1)[-1]], definitions)
    for part in schema.get("anyOf", ()):
        if part.get("type") != "null":
            return _plain(part, definitions)
    return schema


def _models() -> list[str]:
    """Names of the models, those that need no download first."""
    import scdrugmap as sd

    table = sd.models.list()
    usable = table[table["kind"] != "prompt"]
    fitted = usable[usable["kind"] == "fitted"]["name"].tolist()
    return ["pca", *[n for n in fitted if n != "pca"], *usable[usable["kind"] != "fitted"]["name"].tolist()]
