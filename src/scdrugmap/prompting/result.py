"""The answers of a run, with an account of everything that was sent."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from scdrugmap.prompting.asking import Asker, Cell
from scdrugmap.prompting.cost import Preview, cost_of


@dataclass(frozen=True, eq=False)
class PromptResult:
    """Answers for all cells, in their order.

    Parameters
    ----------
    pred
        ``(n,)`` float32: 1 sensitive, 0 resistant, NaN where there is no answer.
    score
        ``(n,)`` float32: P(sensitive) from log-probabilities, NaN where the endpoint gives none.
    status
        ``(n,)`` text: ``"answered"``, or why not: ``"no_genes"``, ``"refused"``, ``"filtered"`` (by the endpoint),
        ``"truncated"``, ``"empty"``, ``"unparsable"``, ``"wrong_count"``, ``"missing"`` (left out of an answer, or
        answered in two ways), ``"failed"`` (no answer after all attempts), ``"not_asked"`` (the limit was reached).
    rounds
        ``(n,)`` number of requests that each cell was part of.
    shots
        Rows of the reference that served as examples.
    usage
        Requests and tokens that this call sent, and those that the cache answered.
    cost
        Of this call, by the server's count of tokens; ``None`` without prices.
    log
        Counts per status and per kind of reply, the models and fingerprints that answered, what the endpoint did
        not take, attempts, seconds waited, the estimate, and one record per request.
    """

    pred: np.ndarray
    score: np.ndarray
    status: np.ndarray
    rounds: np.ndarray
    shots: np.ndarray
    usage: dict[str, int]
    cost: float | None
    log: dict[str, Any]

    @property
    def counts(self) -> dict[str, int]:
        """Number of cells per status."""
        return dict(Counter(self.status.tolist()))


def collect(asker: Asker, cells: list[Cell], price: tuple[float, float] | None, estimate: Preview) -> PromptResult:
    """Put answers, sums and the log of a finished run together."""
    plan = asker.plan
    records = sorted(asker.records, key=lambda record: str(record["key"]))
    status = np.asarray([cell.status for cell in cells], dtype=object)
    shots = [plan.shots(rows) for rows in plan.chunks]
    log = {
        "cells": dict(Counter(status.tolist())),
        "replies": dict(Counter(record["status"] for record in records)),
        "attempts": sum(record["attempts"] for record in records if not record["cached"]),
        "waited": sum(record.get("waited", 0.0) for record in records if not record["cached"]),
        "models": sorted({record.get("model", "") for record in records} - {""}),
        "fingerprints": sorted({record.get("fingerprint", "") for record in records} - {""}),
        "fallbacks": asker.fallbacks,
        "host": plan.options.host,
        "template": f"{plan.template.name} {plan.template.version}",
        "examples_excluded": plan.n_reference_excluded,
        "estimate": str(estimate),
        "records": records,
    }
    return PromptResult(
        np.asarray([cell.label for cell in cells], dtype=np.float32),
        np.asarray([cell.score for cell in cells], dtype=np.float32),
        status,
        np.asarray([cell.rounds for cell in cells], dtype=np.int32),
        np.unique(np.concatenate(shots)) if shots else np.empty(0, np.int64),
        dict(asker.usage),
        cost_of(asker.usage, price),
        log,
    )
