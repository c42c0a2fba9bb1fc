"""One prompt from question to answers: cache, endpoint, parser, and what to do with an incomplete answer."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from scdrugmap.prompting.cache import ResponseCache
from scdrugmap.prompting.client import ChatClient, Reply, Request, RequestFailed
from scdrugmap.prompting.cost import cost_of
from scdrugmap.prompting.options import EndpointError
from scdrugmap.prompting.parsing import Answer, label_probability, parse_answer
from scdrugmap.prompting.plan import Plan

ANSWERED, NO_GENES, FAILED, NOT_ASKED = "answered", "no_genes", "failed", "not_asked"
#: Asking about the same single cell again does not help after these.
_FINAL = ("refused", "filtered", FAILED, NOT_ASKED)


@dataclass(frozen=True)
class Cell:
    """What is known about one cell: status, label, P(sensitive), and number of requests that it was part of."""

    status: str
    label: float = math.nan
    score: float = math.nan
    rounds: int = 0


def read(plan: Plan, reply: Reply, n_cells: int) -> Answer:
    """Parse a reply; the problem names the endpoint's reason where there is one."""
    answer = parse_answer(reply.text, n_cells, plan.template.example_answer(n_cells))
    if not answer.problem:
        return answer
    problem = answer.problem
    if reply.refusal:
        problem = "refused"
    elif reply.finish == "content_filter":
        problem = "filtered"
    elif reply.finish == "length":
        problem = "truncated"
    return Answer(answer.labels, answer.places, problem, answer.n_extra)


def known_reply(plan: Plan, cache: ResponseCache, key: str, n_cells: int, ask_again: bool) -> Reply | None:
    """Return the cached reply of a request; with ``ask_again`` only if it answers for every cell."""
    entry = cache.get(key)
    if entry is None:
        return None
    try:
        reply = Reply(**entry["reply"])
        usable = not read(plan, reply, n_cells).problem
    except (KeyError, TypeError, AttributeError):
        return None
    return reply if usable or not ask_again else None


class Asker:
    """Ask about groups of cells, from several threads, within limits.

    Parameters
    ----------
    plan
        The prompts.
    connect
        Opens the client when the first request has to be sent.
    cache
        Replies on disk.
    ask_again
        Whether cached replies that do not answer for every cell are asked for again.
    price
        Per million tokens.
    max_cost, max_requests, max_repairs
        As in :func:`scdrugmap.prompting.predict`.
    """

    def __init__(
        self,
        plan: Plan,
        connect: Callable[[], ChatClient],
        cache: ResponseCache,
        ask_again: bool,
        price: tuple[float, float] | None,
        max_cost: float | None,
        max_requests: int | None,
        max_repairs: int,
    ) -> None:
        self.plan, self._connect, self._cache, self._ask_again = plan, connect, cache, ask_again
        self._price, self._max_cost, self._max_requests, self._max_repairs = price, max_cost, max_requests, max_repairs
        self._client: ChatClient | None = None
        self._lock = threading.Lock()
        self._failures = 0
        self.records: list[dict[str, Any]] = []
        self.usage = {
            "requests": 0,
            "input": 0,
            "output": 0,
            "cached_requests": 0,
            "cached_input": 0,
            "cached_output": 0,
        }

    def client(self) -> ChatClient:
        """Return the client, opened on first use."""
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    @property
    def fallbacks(self) -> list[str]:
        """What the endpoint did not take."""
        return self._client.fallbacks if self._client else []

    def stop(self) -> None:
        """End waiting requests."""
        if self._client:
            self._client.stop()

    def close(self) -> None:
        """Close the client."""
        if self._client:
            self._client.close()

    def ask(self, rows: np.ndarray, depth: int = 0, attempt: int = 0) -> list[tuple[int, Cell]]:
        """Return what is known about each cell after asking, and asking again as often as allowed.

        Raises
        ------
        EndpointError
            If the endpoint refuses, or too many requests failed in a row.
        """
        request = self.plan.request(rows)
        reply, problem = self._reply(request, self.plan.key(request, attempt), len(rows))
        answer = Answer(problem=problem) if reply is None else read(self.plan, reply, len(rows))
        out, left = [], []
        for number, row in enumerate(map(int, rows), 1):
            if number not in answer.labels:
                left.append(row)
                continue
            score = None
            if reply is not None and reply.tokens:
                alternatives = {int(i): options for i, options in reply.alternatives.items()}
                score = label_probability(reply.tokens, alternatives, answer.places[number])
            out.append((row, Cell(ANSWERED, answer.labels[number], math.nan if score is None else score, depth + 1)))
        again = self._again(left, len(rows), answer.problem, depth)
        for part in again:
            out += self.ask(part, depth + 1, attempt + 1 if len(part) == len(rows) else 0)
        if not again:
            asked = depth + (answer.problem != NOT_ASKED)
            out += [(row, Cell(answer.problem, rounds=asked)) for row in left]
        return out

    def _again(self, left: list[int], n_asked: int, problem: str, depth: int) -> list[np.ndarray]:
        """Groups of cells to ask about once more."""
        if not left or depth >= self._max_repairs or problem in (FAILED, NOT_ASKED):
            return []
        if n_asked == 1:
            return [] if problem in _FINAL else [np.asarray(left)]
        if len(left) < n_asked:
            return [np.asarray(left)]
        return np.array_split(np.asarray(left), 2)

    def _reply(self, request: Request, key: str, n_cells: int) -> tuple[Reply | None, str]:
        """Return the reply from the cache or the endpoint, or none and the status of the cells."""
        reply = known_reply(self.plan, self._cache, key, n_cells, self._ask_again)
        if reply is not None:
            self._account(key, n_cells, reply, cached=True)
            return reply, ""
        if not self._reserve():
            return None, NOT_ASKED
        try:
            reply = self.client().complete(request)
        except RequestFailed as error:
            self._failed(key, n_cells, error)
            return None, FAILED
        about = {"host": self.plan.options.host, "model": self.plan.options.model, "time": time.time()}
        asked = {"messages": list(request.messages), "template": self.plan.template.name}
        asked["version"] = self.plan.template.version
        self._cache.put(key, {"key": key, **about, "request": asked, "reply": reply.to_json()})
        self._account(key, n_cells, reply, cached=False)
        return reply, ""

    def _reserve(self) -> bool:
        """Tell whether one more request may be sent, and count it."""
        with self._lock:
            spent = cost_of(self.usage, self._price)
            if self._max_requests is not None and self.usage["requests"] >= self._max_requests:
                return False
            if self._max_cost is not None and spent is not None and spent >= self._max_cost:
                return False
            self.usage["requests"] += 1
            return True

    def _account(self, key: str, n_cells: int, reply: Reply, *, cached: bool) -> None:
        problem = read(self.plan, reply, n_cells).problem
        record = {
            "key": key, "cells": n_cells, "status": problem or ANSWERED, "cached": cached, "attempts": reply.attempts,
            "waited": reply.waited, "model": reply.model, "fingerprint": reply.fingerprint, "finish": reply.finish,
            "sent": reply.sent, **{k: reply.usage.get(k, 0) for k in ("input", "output")},
        }  # fmt: skip
        with self._lock:
            self._failures = 0
            self.records.append(record)
            self.usage["cached_requests"] += cached
            for kind in ("input", "output"):
                self.usage[f"cached_{kind}" if cached else kind] += reply.usage.get(kind, 0)

    def _failed(self, key: str, n_cells: int, error: RequestFailed) -> None:
        with self._lock:
            self._failures += 1
            record = {"key": key, "cells": n_cells, "status": FAILED, "cached": False, "attempts": error.attempts}
            self.records.append(record | {"reason": str(error)})
            if self._failures >= self.plan.options.max_failures:
                raise EndpointError(
                    f"{self.plan.options.host}: {self._failures} requests in a row failed, the last with {error}."
                    " Fix: call again later; the answers so far are in the cache"
                ) from None
