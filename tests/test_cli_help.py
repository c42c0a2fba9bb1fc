"""The help of the command line: one screen each, with an example that runs."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys

import pytest
import typer.main
from typer.testing import CliRunner

import scdrugmap as sd
from scdrugmap.cli._app import COMMON, app
from scdrugmap.spec import PREPARE, TOOLS
from scdrugmap.study.spec import ReproduceSpec

WIDTH, HEIGHT = 80, 40
GROUPS = ("Data", "Model", "Evaluation", "Machine", "Output")


def run(*arguments):
    return CliRunner().invoke(
        app, [str(a) for a in arguments], prog_name="scdrugmap", env={"COLUMNS": str(WIDTH), "TERM": "dumb"}
    )


def paths(command=None, path=()):
    """Every command and group of commands, as what is typed after ``scdrugmap``."""
    command = command or typer.main.get_command(app)
    yield path
    for name, part in getattr(command, "commands", {}).items():
        yield from paths(part, (*path, name))


def command_of(path):
    command = typer.main.get_command(app)
    for name in path:
        command = command.commands[name]
    return command


ALL = sorted(paths())
LEAVES = [path for path in ALL if not hasattr(command_of(path), "commands")]


def example_of(path):
    return re.search(r"(?m)^Example: (.+)$", run(*path, "-h").stdout).group(1)


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_fits_a_screen(path):
    out = run(*path, "--help")
    assert out.exit_code == 0
    lines = out.stdout.splitlines()
    assert sum(max(1, math.ceil(len(line) / WIDTH)) for line in lines) <= HEIGHT
    assert run(*path, "-h").stdout == out.stdout
    assert lines[0].startswith(" ".join(("Usage: scdrugmap", *path)))
    if path in LEAVES or not path:
        assert lines[1].startswith(" ".join(("Example: scdrugmap", *path)))


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_the_example_can_be_typed(path, monkeypatch):
    """Each name and value of it is taken: nothing runs, but specifications are built."""
    words = shlex.split(example_of(path))[1 + len(path) :]
    command = command_of(path)
    context = command.make_context(path[-1], words)
    spec = (PREPARE | TOOLS | {"reproduce": ReproduceSpec}).get(path[0])
    if spec is not None:
        built = []
        for module, name in (("_runs", "run"), ("_prepare", "run"), ("_reproduce", "run_reproduce")):
            monkeypatch.setattr(f"scdrugmap.cli.{module}.{name}", lambda spec, as_json: built.append(spec))
        command.invoke(context)
        assert isinstance(built[0], spec)


def test_examples_run_in_their_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sd.settings, "cache_dir", tmp_path / "cache")
    cells = sd.datasets.simulate(n_studies=2, n_cells=160, n_genes=60, rng=0)
    cells.write_h5ad("cells.h5ad")
    for name in ("first=a", "second=b"):
        cells[:60].copy().write_h5ad(name.split("=")[1] + ".h5ad")
    for path in (
        ("check",), ("embed",), ("train",), ("predict",), ("concat",), ("models", "list"), ("models", "info"),
        ("datasets", "list"), ("datasets", "info"), ("cache", "list"), ("cache", "size"), ("cache", "clear"),
    ):  # fmt: skip
        out = run(*shlex.split(example_of(path))[1:])
        assert out.exit_code == 0, (path, out.output)
    for file in ("embedded.h5ad", "predictor/README.md", "calls.csv", "studies.h5ad"):
        assert (tmp_path / file).exists()


def flags_in(text):
    """Flags that have a line of their own in a help."""
    lines = re.findall(r"(?m)^  (?:-\w, )?(--\S+)", text)
    return {line.replace("[no-]", "") for line in lines}


@pytest.mark.parametrize("name", COMMON)
def test_what_the_short_help_leaves_out_is_one_flag_away(name):
    spec = (TOOLS | {"reproduce": ReproduceSpec})[name]
    assert set(COMMON[name]) <= {*spec.model_fields, "json"}
    short, full = run(name, "--help").stdout, run(name, "--help-all")
    assert full.exit_code == 0
    flags = {flag for p in command_of((name,)).params if not p.hidden for flag in p.opts if flag.startswith("--")}
    assert flags_in(full.stdout) >= flags
    shown = flags & flags_in(short)
    assert f"{len(flags - shown)} more options: scdrugmap {name} --help-all" in short
    places = [full.stdout.index(f"\n{group}\n") for group in GROUPS if f"\n{group}\n" in full.stdout]
    assert len(places) >= 4 and places == sorted(places)
    required = {n for n, f in spec.model_fields.items() if f.is_required() and n != "input"}
    assert required <= {*COMMON[name], "output"}


def shell(*arguments, **environment):
    """Run in a process of its own, with pipes for its output."""
    code = "from scdrugmap.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env={**os.environ, **environment}
    )


def test_completion_offers_names_of_models_and_words():
    def offered(line):
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        return shell(**words, _SCDRUGMAP_COMPLETE="complete_bash").stdout.split()

    assert {"scgpt", "scbert"} <= {word.lower() for word in offered("scdrugmap embed --model sc")}
    assert offered("scdrugmap train --strategy l") == ["lora"]


def test_results_are_plain_in_pipes(tmp_path):
    bare = shell()
    assert bare.returncode == 2 and bare.stdout.startswith("Usage: scdrugmap") and not bare.stderr
    assert "\x1b" not in bare.stdout + shell("models", "list").stdout


def test_check_is_printed_for_programs_too(tmp_path):
    sd.datasets.simulate(n_studies=2, n_cells=120, n_genes=60, rng=0).write_h5ad(tmp_path / "cells.h5ad")
    assert json.loads(run("check", tmp_path / "cells.h5ad", "--json").stdout)["ok"] is True
