"""Errors say what to do, and survive the way back from a worker process."""

import pickle

import pytest

from scdrugmap import _errors
from scdrugmap._errors import InputError, MissingDependencyError, MissingKeyError, UnknownNameError

EXAMPLES = [
    InputError("rng", -1, "a seed", "pass rng=0."),
    MissingKeyError("layer", "'x'", "one of the layers", "pass one of them."),
    UnknownNameError("model", "scgtp", ["scGPT", "UCE"], "see sd.models.list()."),
    MissingDependencyError("openai", "llm", "prompting"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
def test_errors_survive_pickling(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)


def test_message_names_argument_value_expectation_and_fix():
    text = str(EXAMPLES[0])
    for part in ("rng", "-1", "a seed", "pass rng=0."):
        assert part in text


def test_nearest_name_is_suggested():
    assert "did you mean 'scGPT'" in str(EXAMPLES[2])


def test_key_errors_read_as_sentences():
    assert not str(EXAMPLES[1]).startswith("(")
    assert issubclass(MissingKeyError, KeyError)


def test_every_error_has_one_base():
    errors = [e for e in vars(_errors).values() if isinstance(e, type) and issubclass(e, Exception)]
    assert all(issubclass(e, (_errors.ScDrugMapError, _errors.ScDrugMapWarning)) for e in errors)
