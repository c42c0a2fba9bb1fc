"""Whoever waits sees that something happens: a bar in a notebook and on a terminal, lines elsewhere."""

from __future__ import annotations

import io
import sys
import types
from types import SimpleNamespace

import pytest

from scdrugmap import _logging
from scdrugmap.cli import _demo


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("shell", "stream", "expected"),
    [
        (SimpleNamespace(kernel=object()), io.StringIO(), True),
        (SimpleNamespace(), io.StringIO(), False),
        (None, io.StringIO(), False),
        (None, Terminal(), True),
    ],
)
def test_who_watches(monkeypatch, shell, stream, expected):
    module = types.ModuleType("IPython")
    module.get_ipython = lambda: shell
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setattr(sys, "stderr", stream)
    assert _logging.watched() is expected
    with _logging.progress(3, "embed", "cell") as bar:
        assert bar.disable is not expected
    with _logging.progress(3, "embed", "cell", show=False) as bar:
        assert bar.disable


def test_without_ipython_nobody_watches_a_pipe(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert _logging.watched() is False


def test_a_long_step_of_the_demo_tells_that_it_goes_on(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(_demo.time, "perf_counter", lambda: clock[0])
    said = []
    monkeypatch.setattr(_demo, "progress", SimpleNamespace(is_terminal=False, print=lambda text: said.append(text)))
    steps = _demo.Steps.__new__(_demo.Steps)
    steps.start = steps.said = 0.0
    steps.bar = SimpleNamespace(update=lambda *_, **__: None, advance=lambda *_: None)
    steps.task, steps.names, steps.name = 0, iter(_demo.STEPS), ""
    steps.next()
    outcome = SimpleNamespace(unit=SimpleNamespace(model="pca"))
    for second in range(1, 31):
        clock[0] = float(second)
        steps.unit(outcome, second, 30)
    assert len(said) == 11 and said[-1].endswith("30 of 30 (pca)")
    assert all("simulate" in line for line in said)


def test_warnings_point_outside_the_package():
    source = "import scdrugmap._logging as log\ndef call():\n    log.warn('here')\n"
    inside: dict = {}
    exec(compile(source, _logging._PACKAGE + "somewhere.py", "exec"), inside)
    beside: dict = {}
    exec(compile(source, _logging._PACKAGE.rstrip("/\\") + "_plugin/mine.py", "exec"), beside)
    with pytest.warns(UserWarning, match="here") as seen:
        inside["call"]()
        beside["call"]()
    assert seen[0].filename == __file__
    assert seen[1].filename.endswith("mine.py")
