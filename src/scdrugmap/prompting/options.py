"""How the endpoint is reached: settings, the key from the environment, and what can go wrong for good."""

from __future__ import annotations

import ipaddress
import os
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scdrugmap._errors import InputError, ScDrugMapError

OPENAI_URL = "https://api.openai.com/v1"


class EndpointError(ScDrugMapError, ConnectionError):
    """The endpoint refuses, or keeps failing; answers that came before are in the cache."""


class ClientOptions(BaseModel):
    """Settings of the client; every field is an argument of :func:`scdrugmap.prompting.predict`.

    Examples
    --------
    >>> ClientOptions(model="llama3", base_url="http://localhost:11434/v1").host
    'localhost:11434/v1'
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str = Field("gpt-4o-mini", min_length=1, description="Name of the model, or of the Azure deployment.")
    base_url: str | None = Field(
        None, description="Address of an OpenAI-compatible endpoint; by default OPENAI_BASE_URL, else OpenAI."
    )
    api_version: str | None = Field(None, description="For Azure: version of the interface; base_url is the resource.")
    api_key_env: str | None = Field(
        None, description="Environment variable with the key; by default OPENAI_API_KEY or AZURE_OPENAI_API_KEY."
    )
    temperature: float | Literal["template"] | None = Field("template", description="None leaves it to the server.")
    sampling_seed: int | Literal["template"] | None = Field("template", description="Seed sent to the server.")
    structured: bool = Field(True, description="Ask for answers under the template's JSON schema, where it has one.")
    logprobs: bool = Field(True, description="Ask for log-probabilities.")
    max_tokens: int | None = Field(None, ge=1, description="Limit of an answer's length; None for the server's.")
    timeout: float = Field(60.0, gt=0, description="Seconds to wait for an answer.")
    max_retries: int = Field(6, ge=0, description="Further attempts after a passing failure.")
    backoff: float = Field(1.0, ge=0, description="Seconds before the first further attempt; doubles, with jitter.")
    max_wait: float = Field(120.0, ge=0, description="Longest wait in seconds, also where the endpoint asks for more.")
    max_failures: int = Field(5, ge=1, description="Give up after this many failed requests in a row.")
    requests_per_minute: float | None = Field(None, gt=0, description="Rate limit.")
    tokens_per_minute: float | None = Field(None, gt=0, description="Rate limit, on estimated tokens.")
    concurrency: int = Field(4, ge=1, le=256, description="Requests at the same time.")

    @property
    def url(self) -> str:
        """Address in use."""
        return (self.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL).rstrip("/")

    @property
    def host(self) -> str:
        """Address without scheme, user and query: what may be stored."""
        parts = urlsplit(self.url)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.hostname or ''}{port}{parts.path}"

    @property
    def is_local(self) -> bool:
        """Whether the endpoint is this machine."""
        name = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return name == "localhost" or name.endswith(".localhost")

    def api_key(self) -> str:
        """Read the key from the environment; it is kept nowhere else.

        Raises
        ------
        InputError
            If there is none and the endpoint is another machine.
        """
        name = self.api_key_env or ("AZURE_OPENAI_API_KEY" if self.api_version else "OPENAI_API_KEY")
        key = os.environ.get(name, "")
        if not key and not self.is_local:
            raise InputError(
                "api_key_env", f"no environment variable {name}", "a key", f"set {name}, or name another variable."
            )
        return key or "none"


def client_options(values: dict[str, Any]) -> ClientOptions:
    """Check settings.

    Raises
    ------
    InputError
        For an unknown setting or a value out of range.

    Examples
    --------
    >>> client_options({"concurrency": 8}).concurrency
    8
    """
    try:
        options = ClientOptions(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "options"
        known = ", ".join(ClientOptions.model_fields)
        expected = f"one of the settings {known}" if first["type"] == "extra_forbidden" else first["msg"]
        raise InputError(name, repr(values.get(name)), expected, "correct or leave out this argument.") from None
    try:
        parts = urlsplit(options.url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid:
        raise InputError("base_url", "an address of another form", "http(s)://host[:port]/path", "add the scheme.")
    return options
