"""Help that fits one screen: an example first, then what is used most, by group; everything with ``--help-all``."""

from __future__ import annotations

import functools
import inspect
import os
import re
import textwrap
from typing import Any, get_args

import typer
from typer.core import TyperCommand, TyperGroup

#: Groups of options, in the order in which they are shown; what names no group comes last.
GROUPS = ("Data", "Model", "Evaluation", "Machine", "Output", "Options")
#: Room for the names of options; longer ones get a line of their own.
NAMES = 26
#: Longest word about a command in a list of them; what is longer ends at a comma.
ONE_LINE = 64
#: What the list of commands leaves out: one of the two is enough to know of.
UNSHOWN = ("help", "show_completion")
#: Types of values, in the words of the help.
WORDS = {"str": "TEXT", "string": "TEXT", "int": "N", "integer": "N", "float": "X", "path": "PATH"}
EVERYTHING = "scdrugmap.help_all"


class _Help:
    """What commands and groups of commands share."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help; ``echo`` takes the styles out where the output is no terminal."""
        formatter.write("\n".join(_lines(self, ctx, formatter.width)) + "\n")


class Command(_Help, TyperCommand):
    """A command; its short help shows the parameters that its function names in ``common``, or all."""


class Group(_Help, TyperGroup):
    """Commands; without one, the help is what was asked for."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Print the help where a command is missing."""
        if not args and self.no_args_is_help and not ctx.resilient_parsing:
            typer.echo(ctx.get_help())
            raise typer.Exit(2)
        return list(super().parse_args(ctx, args))


class App(typer.Typer):
    """A Typer application with this help."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"cls": Group, **settings})

    def command(self, name: str | None = None, **settings: Any) -> Any:
        """Register a command."""
        return super().command(name, **{"cls": Command, **settings})


def help_all() -> Any:
    """Return the option that shows every option."""
    return typer.Option(False, "--help-all", is_eager=True, callback=_show_all, hidden=True)


def _show_all(ctx: typer.Context, value: bool) -> None:
    if value:
        ctx.meta[EVERYTHING] = True
        typer.echo(ctx.get_help())
        raise typer.Exit


def _lines(command: Any, ctx: Any, width: int) -> list[str]:
    about, _, example = inspect.cleandoc(command.help or "").partition("Example: ")
    params = [p for p in command.get_params(ctx) if not getattr(p, "hidden", False) and p.name not in UNSHOWN]
    common = None if ctx.meta.get(EVERYTHING) else getattr(command.callback, "common", None)
    shown = [p for p in params if common is None or p.name in common or p.param_type_name == "argument"]
    pieces = ["COMMAND"] if isinstance(command, Group) else [_name(p) for p in shown if p.param_type_name == "argument"]
    out = [_bold("Usage: ") + " ".join([ctx.command_path, *pieces, *(["[OPTIONS]"] if shown else [])])]
    if example:
        out += [_bold("Example: ") + " ".join(example.split())]
    out += ["", *textwrap.wrap(" ".join(about.split()), width)]
    rows = _commands(command, ctx) if isinstance(command, Group) else {}
    for param in sorted(shown, key=lambda p: p.param_type_name != "argument"):
        rows.setdefault(_group(param), []).append((_name(param), param.help or ""))
    order = [*(g for g in rows if g not in GROUPS), *(g for g in GROUPS if g in rows)]
    options = [len(name) for g in GROUPS for name, _ in rows.get(g, ())]
    for group in order:
        lengths = options if group in GROUPS else [len(name) for g in rows if g not in GROUPS for name, _ in rows[g]]
        room = min(NAMES, max(lengths))
        out += ["", _bold(group), *(line for name, text in rows[group] for line in _row(name, text, room, width))]
    if len(shown) < len(params):
        out += ["", f"{len(params) - len(shown)} more options: {ctx.command_path} --help-all"]
    if command.epilog:
        out += ["", *textwrap.wrap(command.epilog, width)]
    return out


def _commands(group: Any, ctx: Any) -> dict[str, list[tuple[str, str]]]:
    """Names and first sentences of commands, by the panel that they are put in."""
    rows: dict[str, list[tuple[str, str]]] = {}
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        panel = getattr(command, "rich_help_panel", None)
        about = " ".join(inspect.cleandoc(command.short_help or command.help or "").split())
        first = re.split(r"[.:;]\s", about)[0].rstrip(".")
        if len(first) > ONE_LINE:
            first = first[:ONE_LINE].rpartition(", ")[0] or first
        rows.setdefault(panel if isinstance(panel, str) else "Commands", []).append((name, first))
    return rows


def _group(param: Any) -> str:
    """The panel that an option names, or that options of this name have where a tool is run."""
    panel = getattr(param, "rich_help_panel", None)
    if isinstance(panel, str):
        return panel
    return "Data" if param.param_type_name == "argument" else _known_groups().get(param.name, "Options")


@functools.cache
def _known_groups() -> dict[str, str]:
    from scdrugmap.spec import TOOLS, extra_of

    fields = [(n, f) for spec in TOOLS.values() for n, f in spec.model_fields.items()]
    return {"json": "Output", **{name: str(extra_of(field)["group"]).capitalize() for name, field in fields}}


def _name(param: Any) -> str:
    """What is typed: the flags and the kind of value, or the name of an argument."""
    if param.param_type_name == "argument":
        name = str(param.name).upper() + ("..." if param.nargs == -1 else "")
        return param.metavar or (name if param.required else f"[{name}]")
    flags = ", ".join(sorted(param.opts, key=len))
    if param.is_flag:
        return flags.replace("--", "--[no-]") if param.secondary_opts else flags
    kind = (param.metavar or _kind(param)).lower()
    return f"{flags} {WORDS.get(kind, kind.upper())}" + ("..." if param.multiple else "")


def _kind(param: Any) -> str:
    """Name of the type of a value, in releases of Typer with and without Click below them."""
    if hasattr(param, "type_descriptor"):
        annotation = param.type_descriptor.annotation
        return str(next(iter(get_args(annotation)), annotation).__name__)
    return str(param.type.name)


def _row(name: str, text: str, room: int, width: int) -> list[str]:
    lead = "  " + name.ljust(room)
    lines = textwrap.wrap(text, width - room - 4) or [""]
    pad = " " * (room + 4)
    if len(name) > room:
        return [lead, *(pad + line for line in lines)]
    return [f"{lead}  {lines[0]}".rstrip(), *(pad + line for line in lines[1:])]


def _bold(text: str) -> str:
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return text if plain else typer.style(text, bold=True)
