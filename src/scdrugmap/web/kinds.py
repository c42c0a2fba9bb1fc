"""What can be asked: each kind of job is a run specification, from which its form follows."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from scdrugmap import spec
from scdrugmap.web.problems import Problem

#: Decided by the server, never by a visitor: places on its disk and its hardware.
_OURS = frozenset({"device", "n_jobs", "overwrite", "options"})
#: Columns of obs that a form offers as a menu.
COLUMNS = ("label_key", "groups", "sample_key", "study_key", "by", "context")


@dataclass(frozen=True)
class Kind:
    """One thing to ask.

    Parameters
    ----------
    name
        Name in the API.
    title, text
        What a person reads.
    specs
        Run specifications whose fields are the options.
    roles
        Which uploads it takes, and whether each is needed.
    needs_predictor
        Whether one of the shelf is chosen.
    further
        Options of the library's function that the specification keeps under ``options``.
    preset
        What the form proposes where it differs from the specification's own default.
    """

    name: str
    title: str
    text: str
    specs: tuple[type[BaseModel], ...]
    roles: Mapping[str, bool]
    needs_predictor: bool = False
    further: Mapping[str, Any] = field(default_factory=dict)
    preset: Mapping[str, Any] = field(default_factory=dict)

    def schema(self) -> dict[str, Any]:
        """JSON schema of the options: the fields of the specifications that a visitor may set."""
        properties: dict[str, Any] = {}
        definitions: dict[str, Any] = {}
        for one in self.specs:
            whole = one.model_json_schema()
            definitions |= whole.get("$defs", {})
            for name, schema in whole["properties"].items():
                if name in _allowed(one):
                    properties.setdefault(name, {**schema, **_default(self.preset, name)})
        for name, schema in self.further.items():
            properties.setdefault(name, schema)
        return {"type": "object", "properties": properties, "additionalProperties": False, "$defs": definitions}

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Check what a visitor set; what was left out keeps its default."""
        given = {k: v for k, v in given.items() if v is not None and v != ""}
        nested = given.pop("options", {})
        if not isinstance(nested, Mapping):
            raise Problem(422, "options", "options.options is no mapping.", "Leave it out.")
        merged = {**nested, **given}
        known = set(self.further).union(*(_allowed(one) for one in self.specs))
        for name in merged:
            if name not in known:
                raise Problem(
                    422, "options", f"{str(name)[:60]!r} is no option of {self.name}.",
                    f"The options are {', '.join(sorted(known))}.",
                )  # fmt: skip
        out = dict(merged)
        for name, schema in self.further.items():
            if name in out:
                _check_further(name, out[name], schema)
        self._build(out)
        return out

    def _build(self, options: Mapping[str, Any]) -> None:
        """Build each specification, so that a wrong value is told before the line."""
        for one in self.specs:
            own = {k: v for k, v in options.items() if k in one.model_fields}
            places = {n: Path("cells.h5ad") for n, f in one.model_fields.items() if _is_path(f) and f.is_required()}
            try:
                one(**places, **own)
            except ValidationError as error:
                first = error.errors()[0]
                name = ".".join(map(str, first["loc"])) or "options"
                raise Problem(422, "options", f"{name}: {first['msg']}.", "Choose another value.") from None

    def check(self, options: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        """Refuse columns that the file does not have."""
        columns = {c["name"] for c in found.get("columns", ())}
        role = "reference" if self.roles.get("reference") else "query"
        for name in COLUMNS:
            value = options.get(name)
            for column in value if isinstance(value, list) else [value]:
                if column and role == "query" and column not in columns and name not in ("study_key", "sample_key"):
                    raise Problem(
                        422, name, f"The file has no column {str(column)[:80]!r}.",
                        f"Choose one of {', '.join(sorted(columns)[:20]) or 'none: it has no columns'}.",
                    )  # fmt: skip


def _allowed(one: type[BaseModel]) -> set[str]:
    return {n for n, f in one.model_fields.items() if n not in _OURS and not _is_path(f)}


def _is_path(field_info: Any) -> bool:
    kinds = (field_info.annotation, *typing.get_args(field_info.annotation))
    return any(isinstance(k, type) and issubclass(k, Path) for k in kinds)


def _default(preset: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {"default": preset[name]} if name in preset else {}


def _check_further(name: str, value: Any, schema: Mapping[str, Any]) -> None:
    kinds: dict[str, tuple[type, ...]] = {
        "number": (int, float), "integer": (int,), "string": (str,), "boolean": (bool,), "array": (list,),
    }  # fmt: skip
    if schema["type"] == "array" and isinstance(value, list):
        for one in value:
            _check_further(name, one, schema["items"])
        return
    fits = isinstance(value, kinds[schema["type"]]) and (schema["type"] == "boolean" or not isinstance(value, bool))
    if fits and "enum" in schema:
        fits = value in schema["enum"]
    if fits and schema["type"] in ("number", "integer"):
        fits = schema.get("minimum", value) <= value <= schema.get("maximum", value)
    if not fits:
        wanted = schema.get("enum") or f"{schema['type']} from {schema.get('minimum')} to {schema.get('maximum')}"
        raise Problem(422, "options", f"{name}: {str(value)[:60]!r} cannot be used.", f"Choose {wanted}.")


_BASELINES = {
    "baselines": {
        "type": "array", "default": ["all_sensitive", "majority", "depth", "hvg"], "title": "Baselines beside the models",
        "items": {"type": "string", "enum": [
            "all_sensitive", "majority", "random", "depth", "hvg", "pca", "scvi", "sample_probe"]},
        "description": "What a model has to beat; scvi and sample_probe take long without a GPU.",
    },
}  # fmt: skip
_TRUST = {
    "conformal": {
        "type": "number", "minimum": 0.5, "maximum": 0.99, "title": "Coverage of prediction sets",
        "description": "A set holds the true class in this share of cells; a set of both classes means: unsure. "
        "Needs two samples of each class.",
    },
    "ood": {
        "type": "boolean", "default": True, "title": "Out-of-domain flag",
        "description": "Flag cells that are unlike all training cells.",
    },
    "calibrate": {
        "type": "string", "enum": ["sigmoid", "isotonic"], "title": "Calibration",
        "description": "Makes the score a probability; sigmoid for few samples. "
        "Needs two samples of each class.",
    },
}  # fmt: skip


def all_kinds() -> dict[str, Kind]:
    """Every kind of job that this version of the library can do."""
    kinds = [
        Kind(
            "predict", "Predict with a saved predictor", "Which cells of your file resist, by a predictor of this shelf.",
            (spec.PredictSpec,), {"query": True}, needs_predictor=True,
            further={"sample_key": {
                "type": "string", "title": "Column of samples", "description": "For the table of samples."}},
        ),
        Kind(
            "train_predict", "Train on labelled cells, predict mine",
            "Learn from a labelled file or a curated study, then predict your cells.",
            (spec.TrainSpec,), {"query": True, "reference": True}, further=_TRUST,
            preset={"model": "pca", "head": "logistic"},
        ),
        Kind(
            "benchmark", "Evaluate models on my labelled cells",
            "How well do models predict cells of samples (or studies) that they have not seen?",
            (spec.BenchmarkSpec,), {"query": True}, further=_BASELINES, preset={"models": ["pca", "hvg"], "head": "logistic"},
        ),
    ]  # fmt: skip
    return {k.name: k for k in [*kinds, *_found_in_tools()]}


def _found_in_tools() -> list[Kind]:
    """Interpretation joins by itself: a tool with a run specification becomes a kind."""
    import scdrugmap as sd

    titles = {
        "biomarkers": ("Which genes and why", "BiomarkersSpec", "Genes that separate resistant from sensitive samples."),
        "score_drugs": ("Which drugs", "ScoreDrugsSpec", "Which drugs the cells respond to."),
    }
    out = []
    for name, (title, specification, text) in titles.items():
        found = getattr(spec, specification, None)
        if hasattr(sd.tl, name) and found is not None:
            out.append(Kind(name, title, text, (found,), {"query": True}))
    return out


def find(name: str) -> Kind:
    """A kind by name."""
    known = all_kinds()
    if name not in known:
        raise Problem(422, "kind", f"{str(name)[:60]!r} is no kind of job.", f"The kinds are {', '.join(known)}.")
    return known[name]
