"""A command from a run specification: one flag per field, with its type, help and group."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer

from scdrugmap._errors import SpecError
from scdrugmap.cli._help import help_all
from scdrugmap.spec import Spec, extra_of, kinds_of

Json = typer.Option(False, "--json", help="Print the result as JSON.", rich_help_panel="Output", show_default=False)


def command(
    spec: type[Spec], run: Callable[[Any, bool], None], example: str, common: tuple[str, ...] | None = None
) -> Callable[..., None]:
    """Return the function that typer turns into a command.

    Parameters
    ----------
    spec
        What the command takes.
    run
        Gets the specification, and whether the result is printed as JSON.
    example
        One command that runs.
    common
        Fields that the short help shows; all if not given.
    """
    fields = {n: f for n, f in spec.model_fields.items() if n != "input"}
    takers = {n: _taker(f.annotation, words="words" in extra_of(f)) for n, f in fields.items()}
    former = {extra_of(f)["former"]: n for n, f in fields.items() if "former" in extra_of(f)}

    def call(**given: Any) -> None:
        input, file, as_json = given.pop("input", None), given.pop("spec"), given.pop("json")
        given.pop("help_all", None)
        if isinstance(input, Path) and input.suffix in (".yaml", ".yml") and file is None:
            input, file = None, input
        values = {
            name: takers[former.get(name, name)][1](_flag(spec, former.get(name, name)), value)
            for name, value in given.items()
            if value not in (None, [])
        }
        run(spec.build(file, **({"input": input or None} if takes_input else {}), **values), as_json)

    takes_input = "input" in spec.model_fields
    parameters = []
    if takes_input:
        source = spec.model_fields["input"].annotation
        parameters.append(
            _parameter("input", source, typer.Argument(help=_help(spec, "input"), metavar="INPUT", show_default=False))
        )
    groups = ("data", "model", "evaluation", "machine", "output")
    for name in sorted(fields, key=lambda n: (groups.index(extra_of(fields[n])["group"]), n == "options")):
        parameters.append(_parameter(name, takers[name][0], _option(spec, name)))
    for old, name in former.items():
        parameters.append(_parameter(old, takers[name][0], typer.Option(None, f"--{old}", hidden=True)))
    yaml = typer.Option(None, "--spec", help="YAML run specification; flags override it.", rich_help_panel="Data")
    parameters += [_parameter("spec", Path, yaml), _parameter("json", bool, Json, default=False)]
    if common is not None:
        call.common = (*common, "output", "spec")  # type: ignore[attr-defined]
        parameters.append(_parameter("help_all", bool, help_all(), default=False))
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    call.__doc__ = f"{inspect.getdoc(spec)}\n\nExample: {example}"
    return call


def _parameter(name: str, kind: Any, info: Any, default: Any = None) -> inspect.Parameter:
    annotation = kind if default is not None else kind | None
    info.default = default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=annotation)


def _option(spec: type[Spec], name: str) -> Any:
    field = spec.model_fields[name]
    flags = extra_of(field).get("flag") or [f"--{name.replace('_', '-')}"]
    if kinds_of(field.annotation) == [bool] and len(flags) == 1:
        flags = [f"{flags[0]}/--no-{flags[0][2:]}"]
    panel = extra_of(field)["group"].capitalize()
    return typer.Option(
        None, *flags, help=_help(spec, name), rich_help_panel=panel, show_default=False,
        autocompletion=_offer(field.annotation, name),
    )  # fmt: skip


def _offer(annotation: Any, name: str) -> Callable[[str], list[str]] | None:
    """What the Tab key offers for a field: names of models, or the words that a field may have."""
    kinds = [part for kind in kinds_of(annotation) for part in (get_args(kind) if get_origin(kind) is list else [kind])]
    words = [str(word) for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    if name not in ("model", "models") and not words:
        return None

    def offer(incomplete: str) -> list[str]:
        if name not in ("model", "models"):
            return [word for word in words if word.startswith(incomplete)]
        from scdrugmap import models

        return [word for word in models.list().index if str(word).lower().startswith(incomplete.lower())]

    return offer


def _help(spec: type[Spec], name: str) -> str:
    field = spec.model_fields[name]
    default = field.default
    if field.is_required() or default is None or isinstance(default, bool | dict):
        return field.description or ""
    shown = ", ".join(map(str, default)) if isinstance(default, tuple | list) else default
    return f"{field.description} Default: {shown}."


def _flag(spec: type[Spec], name: str) -> str:
    return str((extra_of(spec.model_fields[name]).get("flag") or [f"--{name.replace('_', '-')}"])[0])


def _taker(annotation: Any, *, words: bool = False) -> tuple[Any, Callable[[str, Any], Any]]:
    """Type of the flag of a field, and the function that reads what was typed."""
    kinds = kinds_of(annotation)
    origins = [get_origin(kind) or kind for kind in kinds]
    if list in origins or tuple in origins:
        return list[str], lambda flag, value: value
    if origins == [dict]:
        return list[str], word_pairs if words else pairs
    if len(kinds) == 1 and kinds[0] in (bool, int, float, Path):
        return kinds[0], lambda flag, value: value
    if origins == [str] or all(o is Literal and all(isinstance(a, str) for a in get_args(k)) for o, k in
                               zip(origins, kinds, strict=True)):  # fmt: skip
        return str, lambda flag, value: value
    return str, scalar


def scalar(flag: str, text: str) -> Any:
    """Read a value that may be a number, a truth value or a word."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise SpecError(flag, text, "a YAML value", f"quote it, as in {flag} '[1, 2]'.") from None


def pairs(flag: str, texts: list[str]) -> dict[str, Any]:
    """Read ``name=value`` pairs; values are YAML scalars, lists or mappings."""
    out = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise SpecError(flag, text, "name=value", f"write for example {flag} max_length=64.")
        try:
            out[name.strip().replace("-", "_")] = scalar(flag, value)
        except SpecError:
            raise SpecError(flag, text, "a YAML value", f"quote it, as in {flag} name='[1, 2]'.") from None
    return out


def word_pairs(flag: str, texts: list[str]) -> dict[str, str | None]:
    """Read ``name=value`` pairs whose names and values are words of the data; an empty value is none."""
    out: dict[str, str | None] = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        if not equals or not name:
            raise SpecError(flag, text, "value=meaning", f"write for example {flag} non-responder=resistant.")
        out[name] = value.strip() or None
    return out
