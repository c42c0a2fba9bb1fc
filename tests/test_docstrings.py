"""Public functions are documented, and their examples run."""

from __future__ import annotations

import doctest
import inspect

import pytest

import scdrugmap as sd

ROOMS = {
    "": sd,
    "pp": sd.pp,
    "tl": sd.tl,
    "pl": sd.pl,
    "models": sd.models,
    "datasets": sd.datasets,
    "testing": sd.testing,
}
PUBLIC = {
    f"{room}.{name}".strip("."): getattr(module, name)
    for room, module in ROOMS.items()
    for name in dir(module)
    if inspect.isfunction(getattr(module, name)) or inspect.isclass(getattr(module, name))
}
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_is_complete(name):
    item = PUBLIC[name]
    text = inspect.getdoc(item)
    assert text, f"{name} has no docstring"
    if inspect.isfunction(item):
        for section in ("Examples", *(["Parameters"] if inspect.signature(item).parameters else [])):
            assert f"{section}\n---" in text, f"{name} lacks the section {section}"


@pytest.mark.parametrize("name", PUBLIC)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    item = PUBLIC[name]
    finder = doctest.DocTestFinder(recurse=False)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for test in finder.find(item, name, globs={}):
        runner.run(test)
    assert runner.failures == 0
