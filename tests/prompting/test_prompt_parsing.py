import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scdrugmap.prompting.parsing import label_probability, parse_answer

LABELS = st.lists(st.integers(0, 1), min_size=1, max_size=50)
SPACE = st.sampled_from(["", " ", "\n", "  \n "])
WORDS = ("resistant", "sensitive")


def objects(labels, space=" ", quote='"', words=False):
    value = [f"{quote}{WORDS[v]}{quote}" if words else str(v) for v in labels]
    items = [f"{{{quote}cell{quote}:{space}{i},{space}{quote}label{quote}:{space}{v}}}" for i, v in enumerate(value, 1)]
    return f"{{{quote}answers{quote}:{space}[{f',{space}'.join(items)}]}}"


RENDERINGS = {
    "json": lambda y, s: objects(y, s),
    "single quotes": lambda y, s: objects(y, s, "'"),
    "words": lambda y, s: objects(y, s, words=True),
    "fenced": lambda y, s: f"Sure!\n```json\n{objects(y, s)}\n```",
    "published": lambda y, s: "{res:" + f",{s}".join(map(str, y)) + "}",
    "trailing comma": lambda y, s: "{res: " + f"{s},".join(map(str, y)) + ",}",
    "list": lambda y, s: f"Result: [{s}" + f",{s}".join(map(str, y)) + f"{s}]",
    "quoted list": lambda y, s: "['" + f"',{s}'".join(map(str, y)) + "']",
    "list of words": lambda y, s: json.dumps([WORDS[v] for v in y]),
    "named list": lambda y, s: f'{{"res":{s}[' + ",".join(map(str, y)) + "]}",
    "map": lambda y, s: json.dumps({str(i): v for i, v in enumerate(y, 1)}),
    "lines": lambda y, s: "\n".join(f"Cell {i}: {WORDS[v].title()}" for i, v in enumerate(y, 1)),
    "numbered": lambda y, s: "\n".join(f"{i}. {v}" for i, v in enumerate(y, 1)),
}


@pytest.mark.parametrize("name", RENDERINGS)
@given(labels=LABELS, space=SPACE)
def test_what_is_written_is_read(name, labels, space):
    text = RENDERINGS[name](labels, space)
    answer = parse_answer(text, len(labels))
    assert answer.problem == ""
    assert [answer.labels[i] for i in range(1, len(labels) + 1)] == labels
    for i, place in answer.places.items():
        assert text[place : place + 9].lower().startswith((str(labels[i - 1]), WORDS[labels[i - 1]]))


@given(labels=LABELS, order=st.randoms(use_true_random=False))
def test_named_entries_may_stand_in_any_order(labels, order):
    entries = [{"cell": i, "label": v} for i, v in enumerate(labels, 1)]
    order.shuffle(entries)
    assert list(parse_answer(json.dumps(entries), len(labels)).labels.values()) == labels


@given(labels=LABELS, cut=st.integers(0, 400))
def test_a_cut_answer_gives_true_labels_or_none(labels, cut):
    for text in (objects(labels), "{res:" + ",".join(map(str, labels)) + "}"):
        answer = parse_answer(text[:cut], len(labels))
        assert all(labels[i - 1] == v for i, v in answer.labels.items())
        assert (answer.problem == "") == (len(answer.labels) == len(labels))


@given(text=st.text(max_size=300), n=st.integers(1, 12))
def test_any_text_gives_an_account(text, n):
    answer = parse_answer(text, n)
    assert set(answer.labels) <= set(range(1, n + 1))
    assert set(answer.labels.values()) <= {0, 1}
    assert (answer.problem == "") == (len(answer.labels) == n)


@given(text=st.text(alphabet="{}[]\"':,01cellabresid \n", max_size=200), n=st.integers(1, 12))
def test_broken_answers_give_an_account(text, n):
    answer = parse_answer(text, n)
    assert (answer.problem == "") == (len(answer.labels) == n)
    assert set(answer.labels) == set(answer.places)


@pytest.mark.parametrize(
    ("text", "n", "labels", "problem"),
    [
        ("", 3, {}, "empty"),
        (None, 3, {}, "empty"),
        ("I'm sorry, but I can't help with that.", 3, {}, "refused"),
        ("The cells look fine to me.", 3, {}, "unparsable"),
        ("{res:1,0}", 3, {}, "wrong_count"),
        ("{res:1,0,1,1}", 3, {}, "wrong_count"),
        ("{res:1,0,1", 3, {}, "unparsable"),
        ("[0.2, 0.9, 1]", 3, {}, "unparsable"),
        ('[{"cell": 1, "label": 1}, {"cell": 3, "label": 0}]', 3, {1: 1, 3: 0}, "missing"),
        ('[{"cell": 1, "label": 1}, {"cell": 2, "label": 0.5}]', 2, {1: 1}, "missing"),
        ('[{"cell": 1, "label": 1}, {"cell": 1, "label": 0}]', 2, {}, "missing"),
        ('[{"cell": 1, "label": 1}, {"cell": 2, "label": 0}, {"cell": 2, "label": 1}]', 2, {1: 1}, "missing"),
        ('[{"cell": 1, "label": 1}, {"cell": 2, "label": 2}]', 2, {1: 1}, "missing"),
        ("first {res:1,1,1} then, on reflection, {res:0,0,0}", 3, {1: 0, 2: 0, 3: 0}, ""),
    ],
)
def test_answers_that_are_not_whole(text, n, labels, problem):
    answer = parse_answer(text, n)
    assert (answer.labels, answer.problem) == (labels, problem)


def test_entries_for_other_cells_are_counted_and_left_out():
    answer = parse_answer('[{"cell": 1, "label": 1}, {"cell": 2, "label": 0}, {"cell": 9, "label": 0}]', 2)
    assert answer.labels == {1: 1, 2: 0}
    assert answer.n_extra == 1


def test_an_echo_of_the_example_does_not_count_beside_an_answer():
    echo = "{res:1,0,1}"
    for text in (f"As in {echo}: {{res:0,0,1}}", f"{{res:0,0,1}}, in the format {echo}"):
        assert list(parse_answer(text, 3, (1, 0, 1)).labels.values()) == [0, 0, 1]
    assert list(parse_answer(echo, 3, (1, 0, 1)).labels.values()) == [1, 0, 1]


@pytest.mark.parametrize(
    ("token", "options", "expected"),
    [
        ("1", {"1": np.log(0.6), "0": np.log(0.2)}, 0.75),
        (' "0', {' "0': np.log(0.5), " 1": np.log(0.5)}, 0.5),
        ("sens", {"sens": np.log(0.9), "res": np.log(0.1)}, 0.9),
        ("1", {"1": -0.01}, 1.0),
        ("10", {"10": -0.1}, None),
    ],
)
def test_probability_is_read_at_the_label(token, options, expected):
    p = label_probability(["{", token, "}"], {1: options}, 1 + len(token) - 1)
    assert p == (None if expected is None else pytest.approx(expected))


def test_probability_is_unknown_without_alternatives():
    assert label_probability(["1"], {}, 0) is None
    assert label_probability([], {}, 0) is None
    assert label_probability(["1"], {0: {"1": -0.1}}, 5) is None
