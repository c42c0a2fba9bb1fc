"""The run: ask about all cells, ask again where an answer is incomplete, and account for everything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from scdrugmap._errors import InputError, OfflineError
from scdrugmap._logging import get_logger, progress, warn
from scdrugmap.prompting.asking import ANSWERED, NO_GENES, Asker, Cell, known_reply
from scdrugmap.prompting.cache import ResponseCache
from scdrugmap.prompting.cache import folder as cache_folder
from scdrugmap.prompting.client import ChatClient, Stopped
from scdrugmap.prompting.cost import Preview, Prices, cost_of, price_of
from scdrugmap.prompting.examples import Examples
from scdrugmap.prompting.options import client_options
from scdrugmap.prompting.plan import Plan, make_plan
from scdrugmap.prompting.result import PromptResult, collect
from scdrugmap.prompting.templates import Template, get_template
from scdrugmap.settings import settings


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
    >>> result = prompting.predict(
    ...     counts, ["EGFR", "TP53", "MYC"], base_url="http://localhost:8000/v1"
    ... )  # doctest: +SKIP
    >>> result.pred  # doctest: +SKIP
    array([1., 0.], dtype=float32)
    """
    plan, known, price = _prepare(
        X, genes, template, client, prices, cache, rng,
        {"n_genes": n_genes, "cells_per_prompt": cells_per_prompt, "ranking": ranking, "exclude": exclude,
         "context": context, "source": source, "show_accession": show_accession, "examples": examples,
         "n_shots": n_shots, "shots": shots, "embedding": embedding, "shuffle": shuffle},
    )  # fmt: skip
    _check_limits(max_repairs, max_cost, max_requests, price)
    estimate = _estimate(plan, known, price, ask_again)
    get_logger().info("%s", estimate)
    _within(estimate, max_cost, max_requests)

    def connect() -> ChatClient:
        client = ChatClient(plan.options)
        _consent(plan, estimate, allow_remote, confirm)
        return client

    asker = Asker(plan, connect, known, ask_again, price, max_cost, max_requests, max_repairs)
    try:
        cells = _run(asker, len(plan.genes), estimate.n_cached < estimate.n_requests, progress_bar)
    finally:
        asker.close()
    result = collect(asker, cells, price, estimate)
    _warn(result, plan)
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
    names: tuple[str, ...] = (
        "n_genes",
        "cells_per_prompt",
        "ranking",
        "exclude",
        "context",
        "source",
        "show_accession",
        "examples",
    )
    names += ("n_shots", "shots", "embedding", "shuffle")
    defaults = {"ranking": "expressed", "show_accession": False, "n_shots": 0, "shots": "random"}
    of_plan = {name: arguments.pop(name, defaults.get(name)) for name in names}
    plan, known, price = _prepare(X, genes, template, arguments, prices, cache, rng, of_plan)
    return _estimate(plan, known, price, ask_again)


def _prepare(
    X: Any,
    genes: Iterable[str],
    template: str | Template,
    client: dict[str, Any],
    prices: Prices | None,
    cache: bool | str | Path,
    rng: int | np.random.Generator | None,
    of_plan: dict[str, Any],
) -> tuple[Plan, ResponseCache, tuple[float, float] | None]:
    """Check all arguments and lay out the prompts."""
    options = client_options(client)
    price = price_of(options.model, prices)
    folder: Path | None = None
    if cache is True:
        folder = cache_folder()
    elif cache:
        folder = Path(cache).expanduser()
    plan = make_plan(X, genes, options, get_template(template), rng=_generator(rng), **of_plan)
    return plan, ResponseCache(folder), price


def _generator(rng: int | np.random.Generator | None) -> np.random.Generator:
    return np.random.default_rng(settings.seed if rng is None else rng)


def _check_limits(
    max_repairs: int, max_cost: float | None, max_requests: int | None, price: tuple[float, float] | None
) -> None:
    for name, value in {"max_repairs": max_repairs, "max_cost": max_cost, "max_requests": max_requests}.items():
        if value is not None and not value >= 0:
            raise InputError(name, value, "0 or more", f"leave out {name}.")
    if max_cost is not None and price is None:
        raise InputError("max_cost", max_cost, "a limit with prices", "pass prices=(input, output) per million tokens.")


def _estimate(plan: Plan, known: ResponseCache, price: tuple[float, float] | None, ask_again: bool) -> Preview:
    """Count what the first round would send; writes every prompt once."""
    tokens, n_cached, text = {"input": 0, "output": 0}, 0, ""
    for rows in plan.chunks:
        request = plan.request(rows)
        if not text:
            text = "\n\n".join(m["content"] for m in request.messages)
        if known_reply(plan, known, plan.key(request), len(rows), ask_again) is not None:
            n_cached += 1
            continue
        output = plan.template.answer_tokens(len(rows))
        tokens["input"] += request.tokens - output
        tokens["output"] += output
    n_cells = sum(map(len, plan.chunks))
    return Preview(
        plan.options.model, plan.options.host, n_cells, len(plan.genes) - n_cells, len(plan.chunks), n_cached,
        tokens["input"], tokens["output"], cost_of(tokens, price), text,
    )  # fmt: skip


def _within(estimate: Preview, max_cost: float | None, max_requests: int | None) -> None:
    """Refuse a run whose estimate is above a limit."""
    to_send = estimate.n_requests - estimate.n_cached
    if max_requests is not None and to_send > max_requests:
        raise InputError("max_requests", max_requests, f"{to_send} or more", "ask about fewer cells, or raise it.")
    if max_cost is not None and estimate.cost is not None and estimate.cost > max_cost:
        raise InputError("max_cost", max_cost, f"{estimate.cost:.4g} or more", "ask about fewer cells, or raise it.")


def _consent(
    plan: Plan, estimate: Preview, allow_remote: bool | None, confirm: Callable[[Preview], bool] | None
) -> None:
    """Refuse or warn before data leaves this machine, and let the caller decide."""
    if not plan.options.is_local:
        if settings.offline:
            raise OfflineError(f"prompting {plan.options.host} needs the network. Fix: sd.settings.offline = False")
        if allow_remote is False:
            raise InputError("allow_remote", False, "a local base_url", "use a local endpoint, or allow_remote=True.")
        if allow_remote is None:
            warn(
                f"Gene names and context of the cells leave this machine. {estimate} Pass allow_remote=True to say that"
                " this is known."
            )
    if confirm is not None and not confirm(estimate):
        raise InputError("confirm", "no consent", "True", "nothing was sent; confirm the estimate to go on.")


def _run(asker: Asker, n: int, sends: bool, progress_bar: bool | None) -> list[Cell]:
    """Ask about all chunks; the first that is sent goes alone, so that fall-backs and a wrong key show at once."""
    cells = [Cell(NO_GENES)] * n
    chunks = list(asker.plan.chunks)
    if sends:
        asker.client()
    with progress(sum(map(len, chunks)), "prompting", "cell", show=progress_bar) as bar:

        def one(rows: np.ndarray) -> None:
            try:
                for i, cell in asker.ask(rows):
                    cells[i] = cell
            except BaseException:
                asker.stop()  # here, so that no other thread starts another request
                raise
            bar.update(len(rows))

        while chunks and not asker.usage["requests"]:
            one(chunks.pop(0))
        with ThreadPoolExecutor(asker.plan.options.concurrency) as pool:
            futures = [pool.submit(one, rows) for rows in chunks]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                if not all(future.done() for future in futures):
                    asker.stop()
                    pool.shutdown(wait=True, cancel_futures=True)
        errors = [error for f in futures if not f.cancelled() and (error := f.exception()) is not None]
        for error in sorted(errors, key=lambda error: isinstance(error, Stopped)):
            raise error
    return cells


def _warn(result: PromptResult, plan: Plan) -> None:
    """Say what is missing."""
    answered = result.status == ANSWERED
    notes = []
    if not answered.all():
        why = ", ".join(f"{n} {name}" for name, n in sorted(result.counts.items()) if name != ANSWERED)
        notes.append(f"{int((~answered).sum())} of {len(answered)} cells have no answer ({why}); they are NaN.")
    unscored = int((answered & np.isnan(result.score)).sum())
    if unscored and plan.options.logprobs:
        notes.append(
            f"The endpoint gave no log-probabilities for {unscored} answered cells; their score is NaN, and"
            " measures that rank cells, such as AUROC, cannot be computed for them."
        )
    if len(result.log["fingerprints"]) > 1:
        notes.append(f"The server changed during the run: fingerprints {', '.join(result.log['fingerprints'])}.")
    for note in notes:
        warn(note)
