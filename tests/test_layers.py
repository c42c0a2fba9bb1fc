"""Imports only point down the list of rooms, between files as well as between folders, and no circle is closed."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import scdrugmap
from scdrugmap.models import registry

ROOT = Path(scdrugmap.__file__).parent
#: Ground floor first; a room imports from rooms that stand before it (or itself).
ORDER = [
    (
        "settings",
        "_keys",
        "_errors",
        "_logging",
        "_threads",
        "_files",
        "_random",
        "_device",
        "_retry",
        "_docs",
        "_metrics",
    ),
    ("genes",),
    ("download",),
    ("spec",),
    ("_disk", "_disk_write", "_anndata", "_labels", "_cohort"),
    ("models/kit",),
    ("models",),
    ("embedding",),
    ("heads",),
    ("lora",),
    ("trust",),
    ("predictor",),
    ("prompting",),
    ("datasets",),
    ("figures",),
    ("evaluation/splits",),
    ("evaluation/result",),
    ("evaluation/grid",),
    ("interpret", "drugs"),
    ("evaluation", "response"),
    ("pp", "pl"),
    ("tl",),
    ("study",),
    ("testing",),
    ("cli", "web"),
]
FLOOR = {room: i for i, rooms in enumerate(ORDER) for room in rooms}


def modules(root: Path = ROOT) -> dict[str, Path]:
    out = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        out[".".join(["scdrugmap", *(parts[:-1] if parts[-1] == "__init__" else parts)])] = path
    return out


def names_imported(path: Path) -> set[str]:
    """Every module that any statement of a file imports, also inside functions and for type checkers."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "scdrugmap"}


def arrows(known: dict[str, Path]) -> dict[Path, set[Path]]:
    """Files that each file imports; a name from a package counts as an arrow to the file that it names."""
    out: dict[Path, set[Path]] = {}
    for path in known.values():
        names = names_imported(path)
        # ``from package import module`` names the package as well, but takes nothing from it.
        packages = {n.rpartition(".")[0] for n in names if n in known}
        taken = {n for n in names if n in known and not (n in packages and known[n].name == "__init__.py")}
        out[path] = {known[n] for n in taken} - {path, ROOT / "__init__.py"}
    return out


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    for depth in (2, 1):
        room = "/".join(parts[:depth])
        if room in FLOOR and (len(parts) > depth or len(parts) == depth == 1):
            return room
    return parts[0]


def test_every_room_has_its_floor():
    rooms = {room_of(p) for p in ROOT.rglob("*.py")} - {"__init__"}
    assert rooms <= set(FLOOR), rooms - set(FLOOR)


def test_imports_point_down():
    wrong = []
    for path, others in arrows(modules()).items():
        if path == ROOT / "__init__.py":
            continue
        for other in others:
            pair = (path.relative_to(ROOT).as_posix(), other.relative_to(ROOT).as_posix())
            if FLOOR[room_of(other)] > FLOOR[room_of(path)]:
                wrong.append(" imports ".join(pair))
    assert not wrong, "\n".join(sorted(wrong))


def test_command_line_and_server_stand_on_top():
    wrong = []
    for path, others in arrows(modules()).items():
        for other in others:
            rooms = (room_of(path), room_of(other))
            starts = path.name == "_serve.py"  # the command that starts the server
            if rooms[1] in ("cli", "web") and rooms[0] != rooms[1] and not starts:
                wrong.append(f"{path.relative_to(ROOT)} imports {other.relative_to(ROOT)}")
    assert not wrong, "\n".join(sorted(wrong))


def test_no_circle_is_closed():
    graph = arrows(modules())
    graph.pop(ROOT / "__init__.py")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(p.relative_to(ROOT).as_posix() for p in error.args[1]))


def test_no_model_file_imports_another_network():
    """A model is one file: what two of them share lies in ``models/kit``. The names come from the registry."""
    cards = [registry.info(key) for key in registry.keys()]  # noqa: SIM118
    networks = {registry.get(card.key).__module__ for card in cards if card.kind != "fitted"}
    known = modules()
    for path in known.values():
        inside = path.is_relative_to(ROOT / "models") and path.stem != "registry"
        wrong = {n for n in names_imported(path) if n in networks and known[n] != path}
        assert not (inside and wrong), f"{path.name} imports {wrong}"


def test_no_file_is_too_long_to_read():
    long = {str(p.relative_to(ROOT)): n for p in ROOT.rglob("*.py") if (n := len(p.read_text().splitlines())) > 520}
    assert not long
