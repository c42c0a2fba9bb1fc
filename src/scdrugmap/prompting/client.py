"""The client: one request to an OpenAI-compatible endpoint, with patience, limits and fall-backs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from scdrugmap._errors import MissingDependencyError
from scdrugmap._logging import get_logger
from scdrugmap._retry import Backoff, passing, retry_after
from scdrugmap.prompting.options import ClientOptions, EndpointError
from scdrugmap.prompting.parsing import holds_label

#: Words by which an endpoint names what it does not know, and the argument to do without.
_FEATURES = {
    "response_format": ("response_format", "json_schema", "json_object", "structured output", "schema", "grammar"),
    "logprobs": ("logprob",),
    "seed": ("'seed'", '"seed"', "seed"),
    "temperature": ("temperature",),
    "max_tokens": ("max_tokens", "max_completion_tokens"),
}
_FORMATS = ("json_schema", "json_object", "text")


class RequestFailed(Exception):
    """One request failed after all its attempts; others may still succeed."""

    def __init__(self, reason: str, attempts: int) -> None:
        super().__init__(reason)
        self.attempts = attempts


class Stopped(Exception):
    """The run is being ended."""


@dataclass(frozen=True)
class Request:
    """What is asked: the messages and everything that can change the answer."""

    messages: Sequence[Mapping[str, str]]
    schema: Mapping[str, Any] | None
    temperature: float | None
    sampling_seed: int | None
    logprobs: bool
    max_tokens: int | None
    tokens: int = 0


@dataclass(frozen=True)
class Reply:
    """What came back, as the cache keeps it.

    Parameters
    ----------
    text, refusal, finish
        Content, refusal and reason of the end.
    tokens, alternatives
        Tokens of the text, and log-probabilities where a token may be a label.
    model, fingerprint
        What the server says that it runs.
    usage
        ``input`` and ``output`` tokens by the server's account.
    sent
        Format and arguments that the endpoint accepted.
    attempts, waited
        Attempts it took, and seconds between them.
    """

    text: str = ""
    refusal: str = ""
    finish: str = ""
    tokens: list[str] = field(default_factory=list)
    alternatives: dict[str, dict[str, float]] = field(default_factory=dict)
    model: str = ""
    fingerprint: str = ""
    usage: dict[str, int] = field(default_factory=dict)
    sent: str = ""
    attempts: int = 1
    waited: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)


class ChatClient:
    """Send requests with retries, a shared rate limit, and fall-backs that are found once and remembered.

    Parameters
    ----------
    options
        Settings; the key is read from the environment now.

    Raises
    ------
    MissingDependencyError
        If the ``openai`` package is not installed.
    InputError
        If there is no key.
    """

    def __init__(self, options: ClientOptions) -> None:
        try:
            import openai
        except ImportError:
            raise MissingDependencyError("openai", "llm", "prompting a chat model") from None
        self._openai: Any = openai
        self.options = options
        self._key = options.api_key()
        shared: dict[str, Any] = {"api_key": self._key, "timeout": options.timeout, "max_retries": 0}
        if options.api_version:
            self._api: Any = openai.AzureOpenAI(azure_endpoint=options.url, api_version=options.api_version, **shared)
        else:
            self._api = openai.OpenAI(base_url=options.url, **shared)
        self._limiter = Limiter(options.requests_per_minute, options.tokens_per_minute)
        self._lock = threading.Lock()
        self._format = 0
        self._dropped: set[str] = set()
        self._stop = threading.Event()
        self._backoff = Backoff(options.backoff, options.max_wait)

    def close(self) -> None:
        """End waiting requests and close the connections."""
        self._stop.set()
        self._api.close()

    def stop(self) -> None:
        """Make waiting requests end with :class:`Stopped`."""
        self._stop.set()

    @property
    def fallbacks(self) -> list[str]:
        """Arguments that the endpoint did not take, and the format that it was given instead."""
        found = sorted(self._dropped)
        return [f"response_format={_FORMATS[self._format]}", *found] if self._format else found

    def complete(self, request: Request) -> Reply:
        """Send one request.

        Raises
        ------
        RequestFailed
            If it failed after all attempts.
        EndpointError
            If no request can succeed: wrong key, unknown model, exhausted quota ...
        """
        waited, attempt = 0.0, 0
        while True:
            self._limiter.acquire(request.tokens, self._wait)
            sent = self._arguments(request)
            attempt += 1
            try:
                return self._reply(self._api.chat.completions.create(**sent), sent, attempt, waited)
            except (self._openai.APIConnectionError, self._openai.APIResponseValidationError, ValueError) as error:
                reason, asked = f"{type(error).__name__}: {self.scrub(str(error))}", None
            except self._openai.APIStatusError as error:
                status, reason = error.status_code, f"HTTP {error.status_code}: {self.scrub(error.message)}"
                asked = retry_after(error.response.headers)
                quota = "insufficient_quota" in f"{error.code} {error.type} {error.message}"
                if status in (400, 422) and "content_filter" in f"{error.code} {error.message}":
                    return Reply(finish="content_filter", attempts=attempt, waited=waited)
                if status in (400, 422) and self._fall_back(error.message, sent):
                    continue
                if quota or not passing(status):
                    raise EndpointError(f"{self.options.host}: {reason}. Fix: {_advice(status, quota)}") from None
            if attempt > self.options.max_retries:
                raise RequestFailed(reason, attempt)
            delay = self._delay(attempt, asked, reason)
            get_logger().info("attempt %d failed (%s); waiting %.1f s", attempt, reason, delay)
            if asked is not None:
                self._limiter.pause(delay)
            self._wait(delay)
            waited += delay

    def scrub(self, text: str) -> str:
        """Remove the key from a text of the server."""
        return text.replace(self._key, "***") if len(self._key) > 4 else text

    def _arguments(self, request: Request) -> dict[str, Any]:
        """What is sent, less what the endpoint is known not to take."""
        out: dict[str, Any] = {"model": self.options.model, "messages": list(request.messages)}
        kind = _FORMATS[self._format]
        if request.schema is not None and kind == "json_schema":
            schema = {"name": "responses", "strict": True, "schema": request.schema}
            out["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif request.schema is not None and kind == "json_object":
            out["response_format"] = {"type": "json_object"}
        if request.logprobs and "logprobs" not in self._dropped:
            out |= {"logprobs": True, "top_logprobs": 5}
        optional = {"seed": request.sampling_seed, "temperature": request.temperature, "max_tokens": request.max_tokens}
        return out | {k: v for k, v in optional.items() if v is not None and k not in self._dropped}

    def _fall_back(self, message: str, sent: Mapping[str, Any]) -> bool:
        """Do without the argument that a 400 names; tell whether the request can be sent again."""
        text = message.lower()
        for name, words in _FEATURES.items():
            if name not in sent or not any(word in text for word in words):
                continue
            with self._lock:
                if name == "response_format":
                    self._format = max(self._format, _FORMATS.index(sent[name]["type"]) + 1)
                else:
                    self._dropped.add(name)
            get_logger().warning("%s does not take %s; going on without it", self.options.host, name)
            return True
        return False

    def _reply(self, completion: Any, sent: Mapping[str, Any], attempts: int, waited: float) -> Reply:
        choices = getattr(completion, "choices", None)
        if not choices or getattr(choices[0], "message", None) is None:
            raise ValueError("the endpoint's answer holds no message")
        choice, usage = choices[0], completion.usage
        text = self.scrub(choice.message.content or "")
        tokens, alternatives = _logprobs(choice, text)
        counted = {"input": usage.prompt_tokens or 0, "output": usage.completion_tokens or 0} if usage else {}
        kind = sent.get("response_format", {}).get("type", "text")
        return Reply(
            text, self.scrub(getattr(choice.message, "refusal", None) or ""), choice.finish_reason or "", tokens,
            alternatives, completion.model or "", completion.system_fingerprint or "", counted,
            ", ".join([kind, *(k for k in ("logprobs", "seed", "temperature", "max_tokens") if k in sent)]),
            attempts, waited,
        )  # fmt: skip

    def _delay(self, attempt: int, asked: float | None, reason: str) -> float:
        """Seconds to wait: what the endpoint asks for, else exponential with full jitter."""
        if asked is None:
            return self._backoff.seconds(attempt - 1)
        if asked > self.options.max_wait:
            raise EndpointError(
                f"{self.options.host}: {reason}; it asks to wait {asked:.0f} s. Fix: call again then, or set max_wait="
            )
        return asked

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Stopped


class Limiter:
    """Space requests and tokens evenly over time; one for all threads.

    Parameters
    ----------
    requests, tokens
        Per minute; ``None`` for no limit.
    """

    def __init__(self, requests: float | None, tokens: float | None) -> None:
        self._requests, self._tokens = requests, tokens
        self._lock = threading.Lock()
        self._next = 0.0

    def acquire(self, tokens: int, wait: Callable[[float], None]) -> None:
        """Take the next free place and wait for it."""
        cost = 60 / self._requests if self._requests else 0.0
        if self._tokens:
            cost = max(cost, 60 * tokens / self._tokens)
        with self._lock:
            start = max(self._next, time.monotonic())
            self._next = start + cost
        wait(max(start - time.monotonic(), 0))

    def pause(self, seconds: float) -> None:
        """Hold all requests that have not started."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


def _logprobs(choice: Any, text: str) -> tuple[list[str], dict[str, dict[str, float]]]:
    """Tokens of the answer, and alternatives at those that may be labels; nothing if they do not make up the text."""
    content = getattr(getattr(choice, "logprobs", None), "content", None) or []
    tokens = [entry.token for entry in content]
    if not tokens or not "".join(tokens).startswith(text):
        return [], {}
    alternatives = {
        str(i): {entry.token: entry.logprob} | {other.token: other.logprob for other in entry.top_logprobs or []}
        for i, entry in enumerate(content)
        if holds_label(entry.token)
    }
    return tokens, alternatives


def _advice(status: int, quota: bool) -> str:
    if quota:
        return "the quota of this key is used up; add credit or use another endpoint."
    return {
        401: "check the key in the environment.",
        403: "this key may not use the model.",
        404: "check model= and base_url= (most endpoints want /v1 at its end).",
    }.get(status, "see the message; fewer cells per prompt or other settings may help.")
