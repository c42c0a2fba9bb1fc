"""One rule for another try, in downloads and in prompts."""

from __future__ import annotations

import pytest

from scdrugmap import _retry
from scdrugmap._retry import Backoff, passing, retry_after


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_what_may_pass_is_tried_again(status):
    assert passing(status)


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 410, 416, 422])
def test_what_stays_is_not(status):
    assert not passing(status)


def test_header_names_have_no_case_and_dates_count(monkeypatch):
    monkeypatch.setattr(_retry.time, "time", lambda: 0.0)
    assert retry_after({"Retry-After": "Thu, 01 Jan 1970 00:01:00 GMT"}) == 60.0
    assert retry_after({"RETRY-AFTER": "7"}) == 7.0
    assert retry_after({"Retry-After": "nonsense"}) is None


def test_waits_double_up_to_the_limit_and_follow_the_seed():
    waits = [Backoff(1.0, 8.0, seed=3).seconds(n) for n in range(6)]
    assert all(min(2.0**n, 8.0) / 2 <= w <= min(2.0**n, 8.0) for n, w in enumerate(waits))
    drawn = [[Backoff(1.0, 8.0, seed).seconds(2) for _ in range(1)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
