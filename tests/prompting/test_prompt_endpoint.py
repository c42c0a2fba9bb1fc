import json
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from prompting_endpoint import KEY, as_json, cells_of, completion, truth, truthful, with_logprobs

from scdrugmap._errors import InputError, MissingDependencyError, OfflineError, ScDrugMapWarning
from scdrugmap.prompting import EndpointError, Examples, predict, preview
from scdrugmap.prompting.client import Limiter

FAST = {"backoff": 0.01, "rng": 0}
pytestmark = pytest.mark.filterwarnings("ignore:The endpoint gave no log-prob")


def ask(endpoint, cells, cache=False, **arguments):
    return predict(cells[0], cells[1], base_url=endpoint.url, cache=cache, **FAST | arguments)


def refuse(status, message, code=None):
    return status, {}, {"error": {"message": message, "code": code, "type": "error"}}


def once(first, then=truthful):
    """A script that misbehaves on the first request only."""
    return lambda request, number: first(request) if number == 0 else then(request)


def test_every_cell_gets_its_own_answer(endpoint, cells):
    result = ask(endpoint, cells)
    assert np.array_equal(result.pred, cells[2])
    assert result.counts == {"answered": 47}
    assert np.isnan(result.score).all()
    assert result.usage["requests"] == len(endpoint.requests) == 5
    assert (result.usage["input"], result.usage["output"]) == (500, 50)
    assert result.log["models"] == ["gpt-4o-mini-served"]


def test_request_is_deterministic_strict_and_holds_no_label(endpoint, cells):
    ask(endpoint, cells)
    for request in endpoint.requests:
        assert (request["temperature"], request["seed"]) == (0, 0)
        assert request["response_format"]["json_schema"]["strict"] is True
        cell = request["response_format"]["json_schema"]["schema"]["properties"]["answers"]["items"]["properties"][
            "cell"
        ]
        assert cell["enum"] == list(range(1, len(cells_of(request)) + 1))
        assert "label 1" not in request["messages"][-1]["content"]
    assert all(headers["authorization"] == f"Bearer {KEY}" for headers in endpoint.headers)


@pytest.mark.parametrize("concurrency", [1, 16])
def test_threads_do_not_change_the_answers(endpoint, cells, concurrency):
    endpoint.script = lambda request, number: with_logprobs(truthful(request), 0.8)
    result = ask(endpoint, cells, concurrency=concurrency, cells_per_prompt=3)
    assert np.array_equal(result.pred, cells[2])
    assert np.allclose(result.score, np.where(cells[2] == 1, 0.8, 0.2), atol=1e-6)
    assert len(endpoint.requests) == 16


def test_published_template_round_trip(endpoint, cells):
    def published(request, number):
        text = request["messages"][0]["content"]
        lists = re.search(r"^\[\[.*\]\]$", text, re.M)[0]
        labels = [int("ABCB1" not in item) for item in re.findall(r"\[('[^\]]*)\]", lists)]
        echo = re.findall(r"\{res:[01,]+\}", text)[0]
        return f"In the format {echo} the answer is {{res: {', '.join(map(str, labels))}}}."

    endpoint.script = published
    result = ask(endpoint, cells, template="scdrugmap", source="GSE161801")
    assert np.array_equal(result.pred, cells[2])
    request = endpoint.requests[0]
    assert not {"temperature", "seed", "response_format", "max_tokens"} & set(request)
    assert "GSE161801" not in request["messages"][0]["content"]
    endpoint.requests.clear()
    ask(endpoint, cells, template="scdrugmap", source="GSE161801", show_accession=True)
    assert "GSE161801" in endpoint.requests[0]["messages"][0]["content"]


def test_retry_after_is_honoured(endpoint, cells):
    endpoint.script = once(lambda r: (429, {"Retry-After": "0.4"}, {"error": {"message": "slow down"}}))
    result = ask(endpoint, cells)
    assert endpoint.times[1] - endpoint.times[0] >= 0.4
    assert np.array_equal(result.pred, cells[2])
    assert result.log["attempts"] == 6
    assert result.log["waited"] >= 0.4


def test_a_long_retry_after_ends_the_run(endpoint, cells):
    endpoint.script = lambda r, n: (429, {"Retry-After": "86400"}, {"error": {"message": "tomorrow"}})
    with pytest.raises(EndpointError, match="86400 s"):
        ask(endpoint, cells)
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_passing_failures_are_retried(endpoint, cells, status):
    endpoint.script = lambda r, n: refuse(status, "later") if n % 2 == 0 else truthful(r)
    result = ask(endpoint, cells, concurrency=1)
    assert np.array_equal(result.pred, cells[2])
    assert result.log["attempts"] == 10


def test_a_slow_answer_is_given_up_and_asked_for_again(endpoint, cells):
    gate = threading.Event()

    def slow(request):
        gate.wait(30)
        return truthful(request)

    endpoint.script = once(slow)
    result = ask(endpoint, cells, timeout=0.7)
    gate.set()
    assert np.array_equal(result.pred, cells[2])
    assert result.log["attempts"] >= 6


@pytest.mark.parametrize("body", [b'{"choices": [{"mess', b"", b"<html>busy</html>", b'{"choices": []}', b"[]"])
def test_a_broken_body_is_asked_for_again(endpoint, cells, body):
    endpoint.script = once(lambda r: body)
    assert np.array_equal(ask(endpoint, cells).pred, cells[2])


@pytest.mark.parametrize(
    ("status", "message", "code", "word"),
    [
        (401, "bad key", None, "check the key"),
        (403, "no", None, "may not use"),
        (404, "no such model", "model_not_found", "base_url"),
        (400, "something else", None, "see the message"),
        (429, "You exceeded your current quota", "insufficient_quota", "add credit"),
    ],
)
def test_lasting_failures_end_the_run_at_once(endpoint, cells, status, message, code, word):
    endpoint.script = lambda r, n: refuse(status, message, code)
    with pytest.raises(EndpointError, match=word):
        ask(endpoint, cells)
    assert len(endpoint.requests) == 1


def test_a_failing_request_is_counted_and_the_others_go_on(endpoint, cells):
    def script(request, number):
        return refuse(500, "broken") if any("EPCAM" in line for line in cells_of(request)[:1]) else truthful(request)

    X = cells[0].copy()
    X[1:, 7] = 0
    X[0, 7] = 90
    endpoint.script = script
    with pytest.warns(ScDrugMapWarning, match="1 of 47 cells have no answer"):
        result = ask(endpoint, (X, *cells[1:]), cells_per_prompt=1, max_retries=1)
    assert result.status[0] == "failed"
    assert np.isnan(result.pred[0])
    assert np.array_equal(result.pred[1:], cells[2][1:])


def test_an_endpoint_that_keeps_failing_ends_the_run(endpoint, cells):
    endpoint.script = lambda r, n: refuse(503, "down")
    with pytest.raises(EndpointError, match="3 requests in a row"):
        ask(endpoint, cells, max_retries=0, max_failures=3, cells_per_prompt=1, concurrency=1)
    assert len(endpoint.requests) == 3


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (lambda r: {"refusal": "I will not", "content": None}, "refused"),
        (lambda r: "I'm sorry, I cannot judge this.", "refused"),
        (lambda r: {"content": "", "finish_reason": "content_filter"}, "filtered"),
        (lambda r: {"content": '{"answers": [', "finish_reason": "length"}, "truncated"),
        (lambda r: "", "empty"),
        (lambda r: "They all look alike.", "unparsable"),
        (lambda r: "{res:1,0,1,1,1,1,1,1,1,1,1,1,1}", "wrong_count"),
        (lambda r: '{"answers": []}', "unparsable"),
        (lambda r: refuse(400, "blocked", "content_filter"), "filtered"),
    ],
)
def test_no_answer_is_nan_with_its_reason(endpoint, cells, answer, status):
    endpoint.script = lambda request, number: answer(request)
    with pytest.warns(ScDrugMapWarning, match=f"47 {status}"):
        result = ask(endpoint, cells)
    assert result.counts == {status: 47}
    assert np.isnan(result.pred).all()
    assert np.isnan(result.score).all()
    assert result.log["replies"][status] == len(endpoint.requests) > 5


def test_cells_that_were_left_out_are_asked_about_alone(endpoint, cells):
    endpoint.script = once(lambda r: as_json(truth(r)[:7]))
    result = ask(endpoint, cells)
    assert np.array_equal(result.pred, cells[2])
    assert sorted(len(cells_of(r)) for r in endpoint.requests) == [3, 7, 10, 10, 10, 10]
    assert sorted(np.unique(result.rounds, return_counts=True)[1].tolist()) == [3, 44]


def test_a_useless_answer_is_followed_by_halves(endpoint, cells):
    endpoint.script = lambda r, n: "no idea" if len(cells_of(r)) > 3 else truthful(r)
    result = ask(endpoint, cells, max_repairs=3)
    assert np.array_equal(result.pred, cells[2])
    assert result.log["replies"]["unparsable"] > 5


def test_truncated_json_keeps_what_was_whole(endpoint, cells):
    endpoint.script = once(lambda r: {"content": truthful(r)[:100], "finish_reason": "length"})
    with pytest.warns(ScDrugMapWarning, match="truncated"):
        result = ask(endpoint, cells, max_repairs=0)
    answered = result.status == "answered"
    assert np.array_equal(result.pred[answered], cells[2][answered])
    assert 1 <= result.counts["truncated"] < 10


def test_without_repairs_nothing_is_asked_twice(endpoint, cells):
    endpoint.script = lambda r, n: "{res:1}"
    with pytest.warns(ScDrugMapWarning):
        assert ask(endpoint, cells, max_repairs=0).counts["wrong_count"] == 40 + 7
    assert len(endpoint.requests) == 5


def test_a_cell_without_genes_is_not_asked_about(endpoint, cells):
    X = np.vstack([cells[0], np.zeros((1, 8), dtype=int)])
    with pytest.warns(ScDrugMapWarning, match="1 no_genes"):
        result = ask(endpoint, (X, cells[1]))
    assert result.status[-1] == "no_genes"
    assert result.rounds[-1] == 0


@pytest.mark.parametrize("word", ["response_format", "logprobs", "seed", "temperature"])
def test_what_the_endpoint_does_not_take_is_left_out_and_remembered(endpoint, cells, word):
    def script(request, number):
        if word in request:
            return refuse(400, f"Unsupported parameter: '{word}' is not supported with this model.")
        return truthful(request)

    endpoint.script = script
    result = ask(endpoint, cells)
    assert np.array_equal(result.pred, cells[2])
    assert any(word in entry for entry in result.log["fallbacks"])
    assert len(endpoint.requests) == (7 if word == "response_format" else 6)


def test_json_mode_is_tried_before_plain_text(endpoint, cells):
    def script(request, number):
        kind = request.get("response_format", {}).get("type")
        return refuse(400, "json_schema is not supported") if kind == "json_schema" else truthful(request)

    endpoint.script = script
    ask(endpoint, cells)
    assert [r["response_format"]["type"] for r in endpoint.requests] == ["json_schema"] + ["json_object"] * 5


def test_unusable_logprobs_leave_the_score_open(endpoint, cells):
    def script(request, number):
        answer = with_logprobs(truthful(request))
        answer["logprobs"]["content"].pop(3)
        return answer

    endpoint.script = script
    with pytest.warns(ScDrugMapWarning, match="no log-probabilities for 47"):
        result = ask(endpoint, cells)
    assert np.array_equal(result.pred, cells[2])
    assert np.isnan(result.score).all()


def test_a_changed_fingerprint_is_reported(endpoint, cells):
    endpoint.fingerprint = lambda number: f"fp_{number % 2}"
    with pytest.warns(ScDrugMapWarning, match="fp_0, fp_1"):
        ask(endpoint, cells)


def test_a_repeated_run_sends_nothing(endpoint, cells, tmp_path, monkeypatch):
    endpoint.script = lambda r, n: with_logprobs(truthful(r)) if n else "no idea"
    first = ask(endpoint, cells, tmp_path, prices=(1.0, 2.0))
    sent = len(endpoint.requests)
    monkeypatch.delenv("OPENAI_API_KEY")
    second = ask(endpoint, cells, tmp_path, prices=(1.0, 2.0), concurrency=1)
    assert len(endpoint.requests) == sent == first.usage["requests"]
    assert second.usage["requests"] == 0
    assert second.usage["cached_requests"] == sent
    assert second.cost == 0 < first.cost
    for name in ("pred", "score", "status", "rounds"):
        assert np.array_equal(getattr(first, name), getattr(second, name), equal_nan=name in ("pred", "score"))


def test_refusals_are_kept_and_asked_again_only_on_request(endpoint, cells, tmp_path):
    endpoint.script = lambda r, n: "I'm sorry, no."
    with pytest.warns(ScDrugMapWarning):
        ask(endpoint, cells, tmp_path)
    sent = len(endpoint.requests)
    endpoint.script = lambda r, n: truthful(r)
    with pytest.warns(ScDrugMapWarning):
        assert ask(endpoint, cells, tmp_path).counts == {"refused": 47}
    assert len(endpoint.requests) == sent
    assert np.array_equal(ask(endpoint, cells, tmp_path, ask_again=True).pred, cells[2])


@pytest.mark.parametrize(
    "change", [{"model": "other"}, {"temperature": 0.5}, {"n_genes": 2}, {"sampling_seed": 1}, {"structured": False}]
)
def test_another_question_is_not_answered_from_the_cache(endpoint, cells, tmp_path, change):
    ask(endpoint, cells, tmp_path)
    ask(endpoint, cells, tmp_path, **change)
    assert len(endpoint.requests) == 10


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"reply": 3}', '{"reply": {"colour": 1}}', "\x00\x01"])
def test_a_damaged_cache_file_is_asked_for_again(endpoint, cells, tmp_path, damage):
    ask(endpoint, cells, tmp_path)
    file = sorted(tmp_path.rglob("*.json"))[0]
    file.write_text(damage)
    assert np.array_equal(ask(endpoint, cells, tmp_path).pred, cells[2])
    assert len(endpoint.requests) == 6
    assert json.loads(file.read_text())["reply"]["text"]


def test_the_key_is_nowhere_but_in_the_header(endpoint, cells, tmp_path, caplog, capsys):
    answers = [
        lambda r: refuse(500, f"you sent {KEY}"),
        lambda r: f"your key {KEY}: " + truthful(r),
        lambda r: {"content": None, "refusal": f"not for {KEY}"},
    ]
    endpoint.script = lambda r, n: answers[n](r) if n < len(answers) else truthful(r)
    logger = logging.getLogger("scdrugmap")
    logger.propagate = True
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = ask(endpoint, cells, tmp_path, concurrency=1)
        endpoint.script = lambda r, n: refuse(401, f"Incorrect API key provided: {KEY}")
        with pytest.raises(EndpointError) as failure:
            ask(endpoint, cells, tmp_path, model="other")
    written = "".join(p.read_text() for p in tmp_path.rglob("*.json"))
    printed = capsys.readouterr()
    assert "your key ***" in written
    for text in (written, caplog.text, repr(result), str(failure.value), str(caught), printed.out, printed.err):
        assert KEY not in text
    assert failure.value.__cause__ is None


def test_a_killed_run_goes_on_where_it_stopped(endpoint, cells, tmp_path):
    X, genes, y = cells
    np.save(tmp_path / "X.npy", X)
    program = textwrap.dedent(
        f"""
        import numpy as np
        from scdrugmap import prompting
        prompting.predict(np.load({str(tmp_path / "X.npy")!r}), {genes!r}, base_url={endpoint.url!r}, rng=0,
                          cache={str(tmp_path / "cache")!r}, cells_per_prompt=2, concurrency=2)
        """
    )
    gate = threading.Event()

    def script(request, number):
        if number >= 9:
            gate.wait(30)
        return with_logprobs(truthful(request))

    endpoint.script = script
    child = subprocess.Popen([sys.executable, "-c", program], env=os.environ, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(endpoint.requests) < 11 and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    gate.set()
    assert len(endpoint.requests) == 11
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.suffix != ".json"]
    result = ask(endpoint, cells, tmp_path / "cache", cells_per_prompt=2)
    assert np.array_equal(result.pred, y)
    assert result.usage["cached_requests"] == 9
    assert result.usage["requests"] == 24 - 9
    whole = ask(endpoint, cells, tmp_path / "other", cells_per_prompt=2)
    assert np.array_equal(whole.score, result.score)


def test_examples_are_shown_with_their_labels(endpoint, cells, tmp_path):
    X, genes, y = cells
    draw = np.random.default_rng(9)
    reference = draw.integers(1, 30, (12, 8))
    examples = Examples(reference, genes, np.arange(12) % 2)
    result = ask(endpoint, cells, tmp_path, examples=examples, n_shots=3)
    shown = [re.findall(r"^- label ([01]).*?: (.*)$", r["messages"][-1]["content"], re.M) for r in endpoint.requests]
    assert all(sorted(label for label, _ in lines) == ["0"] * 3 + ["1"] * 3 for lines in shown)
    assert len(result.shots) == 6
    own = {", ".join(np.asarray(genes)[np.argsort(-reference[i], kind="stable")]) for i in result.shots}
    assert {text for _, text in shown[0]} == own
    near = ask(
        endpoint, cells, tmp_path, n_shots=2, shots="nearest", cells_per_prompt=1, embedding=X.astype(float),
        examples=Examples(reference, genes, np.arange(12) % 2, reference.astype(float)),
    )  # fmt: skip
    assert np.array_equal(near.pred, y)


def test_limits_stop_before_and_during_the_run(endpoint, cells):
    with pytest.raises(InputError, match="max_requests"):
        ask(endpoint, cells, max_requests=4)
    with pytest.raises(InputError, match="max_cost"):
        ask(endpoint, cells, prices=(1e6, 1e6), max_cost=1.0)
    with pytest.raises(InputError, match="prices"):
        ask(endpoint, cells, max_cost=1.0)
    assert not endpoint.requests
    endpoint.script = lambda r, n: "no idea"
    with pytest.warns(ScDrugMapWarning, match="not_asked"):
        result = ask(endpoint, cells, max_requests=6)
    assert len(endpoint.requests) == 6 == result.usage["requests"]
    assert set(result.counts) <= {"not_asked", "unparsable"}


def test_the_cost_so_far_stops_a_run_that_costs_more_than_estimated(endpoint, cells):
    """The estimate allows the run, but each answer takes more tokens than were estimated."""

    def costly(request, number):
        usage = {"prompt_tokens": 599, "completion_tokens": 1, "total_tokens": 600}
        return 200, {}, completion(request, truthful(request), "fp_1") | {"usage": usage}

    endpoint.script = costly
    one_each = {"prices": (1e6, 1e6), "cells_per_prompt": 5, "concurrency": 1}
    free = ask(endpoint, cells, **one_each)
    assert len(endpoint.requests) == 10 and free.usage["input"] == 5990
    endpoint.requests.clear()
    budget = preview(cells[0], cells[1], base_url=endpoint.url, cache=False, **FAST | one_each).cost + 1
    with pytest.warns(ScDrugMapWarning, match="not_asked"):
        result = ask(endpoint, cells, max_cost=budget, **one_each)
    # A request is sent while less than the budget is spent, so the last one may exceed it.
    sent = int(np.ceil(budget / 600))
    assert 1 < sent < 10
    assert len(endpoint.requests) == sent == result.usage["requests"]
    assert result.counts["answered"] == 5 * sent and result.counts["not_asked"] == 47 - 5 * sent


def test_nothing_is_sent_without_consent(endpoint, cells):
    seen = []
    with pytest.raises(InputError, match="confirm"):
        ask(endpoint, cells, confirm=seen.append)
    assert seen[0].n_requests == 5
    assert not endpoint.requests
    assert ask(endpoint, cells, confirm=lambda preview: True).counts == {"answered": 47}


def test_a_remote_endpoint_needs_the_network_and_is_named(cells, monkeypatch):
    from scdrugmap.settings import settings

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    X, genes, _ = cells
    remote = {"base_url": "http://host.invalid/v1", "cache": False, "max_retries": 0, "max_failures": 1}
    with pytest.raises(InputError, match="allow_remote"):
        predict(X, genes, allow_remote=False, **remote)
    with pytest.warns(ScDrugMapWarning, match=r"leave this machine.*host\.invalid"), pytest.raises(EndpointError):
        predict(X, genes, **remote)
    monkeypatch.setattr(settings, "offline", True)
    with pytest.raises(OfflineError):
        predict(X, genes, **remote)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InputError, match="OPENAI_API_KEY"):
        predict(X, genes, **remote)


def test_azure_is_addressed_by_deployment(endpoint, cells, monkeypatch):
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "azure-key-1234")
    url = endpoint.url.removesuffix("/v1")
    predict(*cells[:2], base_url=url, api_version="2024-10-21", model="mine", cache=False, **FAST)
    assert endpoint.paths[0].startswith("/openai/deployments/mine/chat/completions")
    assert endpoint.headers[0]["api-key"] == "azure-key-1234"


@pytest.mark.parametrize(("requests", "tokens", "gap"), [(60, None, 1.0), (None, 6000, 2.0), (60, 6000, 2.0)])
def test_rate_limits_space_requests(requests, tokens, gap):
    limiter, begin, starts = Limiter(requests, tokens), time.monotonic(), []
    for _ in range(4):
        limiter.acquire(200, lambda seconds: starts.append(time.monotonic() + seconds))
    assert all(start >= begin + gap * i - 1e-3 for i, start in enumerate(starts))
    assert starts[-1] < begin + gap * 4
    limiter.pause(100)
    limiter.acquire(200, lambda seconds: starts.append(seconds))
    assert starts[-1] > 90


def test_missing_package_is_named(cells, endpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingDependencyError, match=r"scdrugmap\[llm\]"):
        ask(endpoint, cells)


def test_prompting_does_not_import_the_client():
    program = "import sys, scdrugmap.prompting as p; p.predict, p.preview; sys.exit('openai' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_no_unfinished_files_remain(endpoint, cells, tmp_path):
    ask(endpoint, cells, tmp_path)
    assert {p.suffix for p in Path(tmp_path).rglob("*") if p.is_file()} == {".json"}
