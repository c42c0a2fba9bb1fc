"""What the pages of a prediction say about the query: whether the predictor knows such cells."""

from __future__ import annotations

import pytest

pytest.importorskip("jinja2")

from scdrugmap.web.render import static_report
from scdrugmap.web.results import _trust

SUMMARY = {
    "n_cells": 10, "fraction_resistant": 0.5, "fraction_ood": None, "samples": [], "clusters": [], "commands": [], "record": {},
}  # fmt: skip


@pytest.mark.parametrize(
    ("verdict", "look", "words"),
    [
        ("in domain", "good", "are like those"),
        ("shifted", "bad", "do not rely on these calls"),
        ("cannot tell", "warn", "cannot be told"),
    ],
)
def test_the_verdict_on_the_query_stands_first(verdict, look, words, tmp_path):
    (tmp_path / "map.svg").write_text("<svg></svg>")
    record = {"shift": {"verdict": verdict, "reason": "coherence <0.1"}, "worth": {"reason": "no groups"}}
    page = static_report(SUMMARY | _trust(record), tmp_path / "map.svg")
    banner = page[page.index(f'class="banner {look}" id="verdict"') :]
    assert words in banner and "coherence &lt;0.1." in banner
    assert "Worth on unseen groups: not known (no groups)." in banner
    assert page.index('id="verdict"') < page.index("<svg")


def test_a_model_without_training_data_has_no_verdict(tmp_path):
    (tmp_path / "map.svg").write_text("<svg></svg>")
    assert 'id="verdict"' not in static_report(SUMMARY | _trust({}), tmp_path / "map.svg")
