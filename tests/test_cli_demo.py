"""The demonstration, on fewer cells than a user gets: what it leaves, and that its last lines run."""

from __future__ import annotations

import shlex

import matplotlib.pyplot as plt
from typer.testing import CliRunner

import scdrugmap as sd
from scdrugmap.cli import _demo
from scdrugmap.cli._app import app
from scdrugmap.cli._demo import next_commands


def test_demo_leaves_a_picture_a_report_and_commands_that_run(tmp_path, monkeypatch):
    simulate = sd.datasets.simulate
    monkeypatch.setattr(sd.datasets, "simulate", lambda **given: simulate(**{**given, "n_cells": 240, "n_genes": 80}))
    monkeypatch.setattr("scdrugmap.evaluation.grid.inputs.BASELINES", ("all_sensitive", "majority"))
    monkeypatch.chdir(tmp_path)
    out = CliRunner().invoke(app, ["demo"])
    assert out.exit_code == 0, out.output
    folder = tmp_path / "scdrugmap_demo"
    height, width = plt.imread(folder / "picture.png").shape[:2]
    assert width > 2 * height > 600
    for name in ("picture.png", "report.html"):
        assert name in out.stdout and (folder / name).stat().st_size > 10_000
    assert out.stderr.count(" s] ") >= 7 and " s] " not in out.stdout
    lines = [line.strip() for line in out.stdout.splitlines() if line.startswith("  scdrugmap ")]
    assert lines == next_commands(folder.relative_to(tmp_path)) and len(lines) == 3
    for line in lines:
        quick = ["--baseline", "majority", "--head", "logistic"] if " benchmark " in line else []
        again = CliRunner().invoke(app, [*shlex.split(line)[1:], *quick])
        assert again.exit_code == 0, (line, again.output)


def test_a_step_that_tells_nothing_is_said_to_go_on(monkeypatch, capsys):
    monkeypatch.setattr(_demo, "SILENCE", 0.0)
    with _demo.Steps() as steps:
        steps.next()
        assert steps.watch.is_alive()
        steps.over.wait(1.2)
    assert not steps.watch.is_alive()
    assert capsys.readouterr().err.count(f"{_demo.STEPS[0]}: goes on") >= 1
