"""Imports only point down the list of rooms."""

from __future__ import annotations

import ast
from pathlib import Path

import scdrugmap

ROOT = Path(scdrugmap.__file__).parent
#: Ground floor first; a room imports from rooms that stand before it (or itself).
ORDER = [
    ("settings", "_keys", "_errors", "_logging", "_threads"),
    ("genes",),
    ("_anndata",),
    ("download",),
    ("models",),
    ("response",),
    ("prompting",),
    ("evaluation",),
    ("datasets", "pp", "tl", "pl"),
    ("testing", "spec"),
    ("cli",),
]
FLOOR = {room: i for i, rooms in enumerate(ORDER) for room in rooms}
#: ``BenchmarkResult.report`` is a method, as users expect, and draws with ``pl`` when it is called.
EXCEPTIONS = {"evaluation/report.py imports scdrugmap.pl"}


def room_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_imports_point_down():
    wrong = []
    for path in ROOT.rglob("*.py"):
        room = room_of(path)
        if room == "__init__":
            continue
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "scdrugmap" and len(parts) > 1 and parts[1] in FLOOR and FLOOR[parts[1]] > FLOOR[room]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert set(wrong) <= EXCEPTIONS


def test_every_room_has_its_floor():
    assert {room_of(p) for p in ROOT.rglob("*.py")} - {"__init__"} <= set(FLOOR)


def test_no_file_is_too_long_to_read():
    long = {str(p.relative_to(ROOT)): n for p in ROOT.rglob("*.py") if (n := len(p.read_text().splitlines())) > 520}
    assert not long


def test_no_code_mentions_a_model_by_name_but_its_own_file():
    names = ("tgpt", "scbert", "geneformer", "celllm", "scfoundation", "scgpt", "cellplm", "llama38b")
    allowed = {"registry.py", "programmes.py"}
    wrong = []
    for path in (ROOT / "models").glob("*.py"):
        if path.name in allowed:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            module = getattr(node, "module", None) if isinstance(node, ast.ImportFrom) else None
            if module and module.rsplit(".", 1)[-1] in names and path.stem not in names:
                wrong.append(f"{path.name} imports {module}")
    assert not wrong
