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

#: Decided by the server, never by a visitor: its hardware, and arguments that may hold places on its disk.
_OURS = frozenset({"device", "n_jobs", "overwrite", "options", "embed_options", "lora_options", "source"})
_FILES = ("input", "output")
#: Columns of obs that a form offers as a menu.
COLUMNS = ("label_key", "groups", "sample_key", "study_key", "patient_key", "by", "context", "conformal_by", "key")


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
    preset
        What the form proposes where it differs from the specification's own default.
    hidden
        Fields that the form leaves out because they say nothing here.
    """

    name: str
    title: str
    text: str
    specs: tuple[type[BaseModel], ...]
    roles: Mapping[str, bool]
    needs_predictor: bool = False
    preset: Mapping[str, Any] = field(default_factory=dict)
    hidden: frozenset[str] = frozenset()

    def schema(self) -> dict[str, Any]:
        """JSON schema of the options: the fields of the specifications that a visitor may set."""
        properties: dict[str, Any] = {}
        definitions: dict[str, Any] = {}
        for one in self.specs:
            whole = one.model_json_schema()
            definitions |= whole.get("$defs", {})
            for name, schema in whole["properties"].items():
                if name in _allowed(one) - self.hidden:
                    properties.setdefault(name, {**schema, **_default(self.preset, name)})
        return {"type": "object", "properties": properties, "additionalProperties": False, "$defs": definitions}

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Check what a visitor set; what was left out keeps its default."""
        given = {k: v for k, v in given.items() if v is not None and v != ""}
        nested = given.pop("options", {})
        if not isinstance(nested, Mapping):
            raise Problem(422, "options", "options.options is no mapping.", "Leave it out.")
        merged = {**nested, **given}
        known = set().union(*(_allowed(one) for one in self.specs))
        for name in merged:
            if name not in known:
                raise Problem(
                    422, "options", f"{str(name)[:60]!r} is no option of {self.name}.",
                    f"The options are {', '.join(sorted(known))}.",
                )  # fmt: skip
        out = dict(merged)
        if "prompt" in out.get("strategy", ""):
            raise Problem(422, "strategy", "This server asks no chat model.", "Choose frozen or lora.")
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


def all_kinds() -> dict[str, Kind]:
    """Every kind of job that this version of the library can do."""
    kinds = [
        Kind(
            "predict", "Predict with a saved predictor", "Which cells of your file resist, by a predictor of this shelf.",
            (spec.PredictSpec,), {"query": True}, needs_predictor=True,
            hidden=frozenset({"model", "use_rep", "strategy", "n_shots", "shot_unit", "label_key"}),
        ),
        Kind(
            "train_predict", "Train on labelled cells, predict mine",
            "Learn from a labelled file or a curated study, then predict your cells.",
            (spec.TrainSpec,), {"query": True, "reference": True},
            preset={"model": "pca", "head": "logistic", "ood": True},
        ),
        Kind(
            "benchmark", "Evaluate models on my labelled cells",
            "How well do models predict cells of samples (or studies) that they have not seen?",
            (spec.BenchmarkSpec,), {"query": True},
            preset={"models": ["pca"], "head": "logistic", "baselines": ["all_sensitive", "majority", "depth", "hvg"]},
        ),
    ]  # fmt: skip
    return {k.name: k for k in [*kinds, *_found_in_tools()]}


#: What a person asks with a tool; others are called by their name.
_TITLES = {"explain": "Which genes, and why", "score_drugs": "Which drugs"}


def _found_in_tools() -> list[Kind]:
    """Interpretation joins by itself: a tool with a run specification becomes a kind."""
    import scdrugmap as sd

    own = {"embed", "train", "predict", "benchmark"}
    out = []
    for name, found in spec.TOOLS.items():
        room, _, function = found.tool.partition(".")
        if name not in own and function in dir(getattr(sd, room, None)):
            text = (found.__doc__ or name).strip().splitlines()[0]
            fields = found.model_fields
            taken = {*_FILES, "predictor", "reference"}
            if not any(f.is_required() and _is_path(f) for n, f in fields.items() if n not in taken):
                roles = {"query": True} | ({"reference": False} if "reference" in fields else {})
                title = _TITLES.get(name, name.replace("_", " ").capitalize())
                out.append(Kind(name, title, text, (found,), roles, needs_predictor="predictor" in fields))
    return out


def find(name: str) -> Kind:
    """A kind by name."""
    known = all_kinds()
    if name not in known:
        raise Problem(422, "kind", f"{str(name)[:60]!r} is no kind of job.", f"The kinds are {', '.join(known)}.")
    return known[name]
