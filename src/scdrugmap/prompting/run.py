"""The run: ask about all cells, ask again where an answer is incomplete, and account for everything."""

from __future__ import annotations

import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from scdrugmap._errors import InputError, OfflineError, ScDrugMapWarning
from scdrugmap._logging import get_logger, progress
from scdrugmap.prompting.asking import NOT_ASKED, Asker, Cell
from scdrugmap.prompting.cache import ResponseCache
from scdrugmap.prompting.client import ChatClient, Stopped
from scdrugmap.prompting.cost import Preview, Prices, cost_of, price_of
from scdrugmap.prompting.examples import Examples
from scdrugmap.prompting.options import client_options
from scdrugmap.prompting.plan import Plan, make_plan
from scdrugmap.prompting.templates import Template, get_template


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


def predict(
    X: Any,
    genes: Iterable[str],
    *,
    template: str | Template = "default",
    n_genes: int | None = None,
    cells_per_prompt: int | None = None,
    ranking: Literal["expressed", "contrast"] = "expressed",
    exclude: Sequence[str] | None = None,
    context: pd.DataFrame | None = None,
    source: str | Sequence[str] | None = None,
    show_accession: bool = False,
    examples: Examples | None = None,
    n_shots: int = 0,
    shots: Literal["random", "nearest"] = "random",
    embedding: np.ndarray | None = None,
    shuffle: bool | None = None,
    max_repairs: int = 2,
    prices: Prices | None = None,
    max_cost: float | None = None,
    max_requests: int | None = None,
    confirm: Callable[[Preview], bool] | None = None,
    allow_remote: bool | None = None,
    cache: bool | str | Path = True,
    ask_again: bool = False,
    rng: int | np.random.Generator | None = None,
    progress_bar: bool | None = None,
    **client: Any,
) -> PromptResult:
    """Ask a chat model whether cells are sensitive or resistant.

    Parameters
    ----------
    X, genes
        Counts (cells x genes) and the names of the columns.
    template
        ``"default"`` (also ``"scdrugmap-fixed"``), ``"scdrugmap"`` (the published text), or a :class:`Template`.
    n_genes, cells_per_prompt, exclude, shuffle
        Genes per cell, cells per prompt, gene families to leave out, and whether cells are shuffled so that one
        prompt does not hold one label; by default as the template says.
    ranking
        As in :func:`select_genes`.
    context
        Table with one row per cell: what is told beside the genes. It must not hold labels.
    source
        Data source, one text or one per cell.
    show_accession
        Leave accessions such as GSE numbers in ``context`` and ``source``; by default they are hidden, because a
        model may know a public study.
    examples, n_shots, shots, embedding
        Labelled cells, how many per class a prompt shows, how they are chosen (``"random"`` or ``"nearest"``), and
        for the nearest the embedding of the cells in question. Cells that are asked about are never examples.
    max_repairs
        How often an incomplete answer is followed by new questions: about the cells without an answer alone, or,
        after an answer that cannot be used at all, in halves.
    prices
        ``(input, output)`` per million tokens, or a table by model.
    max_cost, max_requests
        Nothing is sent if the estimate is above; and no further request once what was sent reaches it.
    confirm
        Called with the estimate before anything is sent; nothing is sent unless it returns ``True``.
    allow_remote
        Gene names and context leave this machine unless the endpoint is local: ``None`` warns, ``True`` is silent,
        ``False`` forbids.
    cache
        Keep answers in the cache folder (``True``) or another folder, one file per request; ``False`` keeps none.
    ask_again
        Send requests again whose cached answer was a refusal or could not be used.
    rng
        Seed of the shuffling and of random examples.
    progress_bar
        Show a progress bar; by default on a terminal.
    **client
        Fields of :class:`ClientOptions`: ``model``, ``base_url``, ``api_version`` (Azure), ``concurrency`` ...

    Returns
    -------
    The answers. A cell without an answer has NaN and its reason; nothing is guessed or dropped.

    Raises
    ------
    InputError
        For arguments that cannot be used, or an estimate above a limit.
    EndpointError
        If the endpoint refuses or keeps failing. What it answered before is in the cache; call again to go on.
    MissingDependencyError
        Without the ``openai`` package.

    Notes
    -----
    The key comes from the environment alone. Replies of a hosted model may differ between runs even at temperature 0;
    the cache makes a run repeatable.

    Examples
    --------
    >>> import numpy as np
    >>> from scdrugmap import prompting
    >>> counts = np.array([[5, 0, 2], [0, 3, 1]])
    >>> result = prompting.predict(counts, ["EGFR", "TP53", "MYC"], base_url="http://localhost:8000/v1")  # doctest: +SKIP
    >>> result.pred  # doctest: +SKIP
    array([1., 0.], dtype=float32)
    """
    plan, answers, price, budget = _prepare(
        X, genes, template, client, prices, cache, ask_again, rng, max_cost, max_requests, max_repairs,
        {"n_genes": n_genes, "cells_per_prompt": cells_per_prompt, "ranking": ranking, "exclude": exclude,
         "context": context, "source": source, "show_accession": show_accession, "examples": examples,
         "n_shots": n_shots, "shots": shots, "embedding": embedding, "shuffle": shuffle},
    )  # fmt: skip
    estimate = _estimate(plan, answers, price)
    get_logger().info("%s", estimate)
    cells = [Cell(NOT_ASKED) for _ in range(len(plan.genes))]
    if estimate.n_requests > estimate.n_cached:
        _gate(plan, estimate, budget, confirm, allow_remote)
    chat = ChatClient(plan.options) if plan.chunks and estimate.n_cached < estimate.n_requests else None
    asker = Asker(plan, chat, answers, price, budget, max_repairs)
    try:
        _run(plan, asker, cells, progress_bar)
    finally:
        asker.close()
    result = _result(plan, asker, cells, price, estimate)
    _warn(result)
    return result


def preview(
    X: Any,
    genes: Iterable[str],
    *,
    template: str | Template = "default",
    prices: Prices | None = None,
    cache: bool | str | Path = True,
    ask_again: bool = False,
    rng: int | np.random.Generator | None = None,
    **arguments: Any,
) -> Preview:
    """Estimate what :func:`predict` would send and cost with the same arguments; sends nothing and needs no key.

    Parameters
    ----------
    X, genes, template, prices, cache, ask_again, rng, **arguments
        As in :func:`predict`.

    Returns
    -------
    The estimate, with the first prompt.

    Raises
    ------
    InputError
        For arguments that cannot be used.

    Examples
    --------
    >>> import numpy as np
    >>> from scdrugmap import prompting
    >>> prompting.preview(np.eye(12), [f"G{i}" for i in range(12)], cache=False, prices=(0.15, 0.6)).n_requests
    2
    """
    for name in ("max_repairs", "max_cost", "max_requests", "confirm", "allow_remote", "progress_bar"):
        arguments.pop(name, None)
    names = ("n_genes", "cells_per_prompt", "ranking", "exclude", "context", "source", "show_accession", "examples")
    names += ("n_shots", "shots", "embedding", "shuffle")
    defaults = {"ranking": "expressed", "show_accession": False, "n_shots": 0, "shots": "random"}
    of_plan = {name: arguments.pop(name, defaults.get(name)) for name in names}
    plan, answers, price, _ = _prepare(
        X, genes, template, arguments, prices, cache, ask_again, rng, None, None, 0, of_plan
    )
    return _estimate(plan, answers, price)
