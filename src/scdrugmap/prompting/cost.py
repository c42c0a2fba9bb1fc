"""What a run would send and cost, before anything is sent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scdrugmap._errors import InputError

#: Characters per token. Gene symbols break into short tokens, so this is lower than for prose.
CHARACTERS_PER_TOKEN = 3.0

Prices = Mapping[str, "float | tuple[float, float]"] | tuple[float, float]


@dataclass(frozen=True)
class Preview:
    """An estimate of a run; ``print(preview)`` reads well.

    Parameters
    ----------
    model, host
        What would be asked, and where.
    n_cells, n_empty
        Cells that are asked about, and cells without a gene to name.
    n_requests, n_cached
        Requests of the first round, and how many of them the cache answers. Asking again after incomplete answers
        is not in the estimate.
    input_tokens, output_tokens
        Tokens of the requests that would be sent, from the number of characters: right to about a third.
    cost
        In the currency of the prices; ``None`` without prices.
    text
        The first prompt, as it would be sent.
    """

    model: str
    host: str
    n_cells: int
    n_empty: int
    n_requests: int
    n_cached: int
    input_tokens: int
    output_tokens: int
    cost: float | None
    text: str

    def __str__(self) -> str:
        cost = "unknown; pass prices=(input, output) per million tokens" if self.cost is None else f"{self.cost:.4g}"
        return (
            f"{self.n_cells} cells to {self.model} at {self.host}: {self.n_requests - self.n_cached} requests to send,"
            f" {self.n_cached} in the cache; about {self.input_tokens} tokens in and {self.output_tokens} out"
            f" (estimate, right to about a third, without repeats after bad answers); cost about {cost}."
        )


def estimate_tokens(texts: Iterable[str]) -> int:
    """Estimate the tokens of texts from their characters.

    Examples
    --------
    >>> estimate_tokens(["EGFR, TP53"])
    4
    """
    return math.ceil(sum(map(len, texts)) / CHARACTERS_PER_TOKEN)


def price_of(model: str, prices: Prices | None) -> tuple[float, float] | None:
    """Return the prices of a model per million input and output tokens.

    Parameters
    ----------
    model
        Name of the model.
    prices
        ``(input, output)``; or ``{"input": ..., "output": ...}``; or such pairs by the name of the model, of which
        the longest that the model's name begins with counts.

    Raises
    ------
    InputError
        If prices are given in another form, or not for this model.

    Examples
    --------
    >>> price_of("gpt-4o-mini-2024-07-18", {"gpt-4o": (2.5, 10), "gpt-4o-mini": (0.15, 0.6)})
    (0.15, 0.6)
    """
    if prices is None:
        return None
    pair: object = prices
    if isinstance(prices, Mapping):
        if set(prices) == {"input", "output"}:
            pair = prices["input"], prices["output"]
        else:
            fitting = [name for name in prices if model.startswith(name)]
            pair = prices[max(fitting, key=len)] if fitting else None
    try:
        first, second = (float(value) for value in pair)  # type: ignore[attr-defined]
        if not (0 <= first < math.inf and 0 <= second < math.inf):
            raise ValueError
    except (TypeError, ValueError):
        raise InputError(
            "prices", prices, f"(input, output) per million tokens, or a table with {model!r}", "pass (0.15, 0.6)."
        ) from None
    return first, second


def cost_of(usage: Mapping[str, int], price: tuple[float, float] | None) -> float | None:
    """Return the cost of counted tokens.

    Examples
    --------
    >>> cost_of({"input": 2_000_000, "output": 0}, (0.15, 0.6))
    0.3
    """
    if price is None:
        return None
    return (usage.get("input", 0) * price[0] + usage.get("output", 0) * price[1]) / 1e6
