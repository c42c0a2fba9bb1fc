"""The exceptions: each names the argument, the value found, what was expected and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class ScDrugMapError(Exception):
    """Base of every error that scdrugmap raises on purpose."""


class ScDrugMapWarning(UserWarning):
    """Base of every warning that scdrugmap gives."""


class InputError(ScDrugMapError, ValueError):
    """An argument cannot be used.

    Parameters
    ----------
    argument
        Name of the argument, as the caller wrote it.
    found
        What it held, short enough to print.
    expected
        What would have been accepted.
    fix
        The next thing to type or do.
    """

    def __init__(self, argument: str, found: Any, expected: str, fix: str) -> None:
        self.argument, self.found, self.expected, self.fix = argument, found, expected, fix
        super().__init__(argument, found, expected, fix)

    def __str__(self) -> str:
        return f"{self.argument}: found {_short(self.found)}; expected {self.expected}. Fix: {self.fix}"


class InputTypeError(InputError, TypeError):
    """An argument has the wrong type."""


class MissingKeyError(InputError, KeyError):
    """A slot (``obs`` column, ``obsm`` key, layer, modality ...) that was asked for is not there."""


class UnknownNameError(InputError, KeyError):
    """A name (model, metric, study ...) is not known; the message suggests the nearest ones."""

    def __init__(self, argument: str, name: Any, known: Iterable[str], see: str = "") -> None:
        known = list(known)
        near = difflib.get_close_matches(str(name).lower(), [k.lower() for k in known], n=3, cutoff=0.4)
        near = [next(k for k in known if k.lower() == match) for match in near]
        fix = f"did you mean {' or '.join(map(repr, near))}?" if near else "use one of the known names."
        expected = "one of " + ", ".join(known[:30]) + (" ..." if len(known) > 30 else "")
        super().__init__(argument, repr(name), expected, f"{fix} {see}".strip())
        self._made_of = (argument, name, known, see)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._made_of


class OutputError(InputError, OSError):
    """A result cannot be written where it was asked for."""

    def __init__(self, argument: str, path: Any, error: OSError) -> None:
        reason = f" ({error.strerror})" if error.strerror else ""
        super().__init__(argument, f"{path}{reason}", "a place that can be written", "choose another folder.")


class SpecError(InputError):
    """A run specification, or a flag of the command line, cannot be used."""


class CheckpointError(InputError):
    """A checkpoint is missing, short, corrupt or of another layout."""


class DownloadError(ScDrugMapError, OSError):
    """A file could not be fetched; the message says what to do instead."""


class OfflineError(DownloadError):
    """A file is not in the cache and offline mode forbids fetching it."""


class IntegrityError(DownloadError):
    """A fetched or local file has another size or digest than the registry says."""


class LicenceError(ScDrugMapError, PermissionError):
    """A licence has to be accepted, or access to be requested, before the first byte is fetched."""


class MissingDependencyError(ScDrugMapError, ImportError):
    """An optional package is needed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{package} is needed for {purpose}. Fix: pip install 'scdrugmap[{extra}]'")
        self._made_of = (package, extra, purpose)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._made_of


def _short(value: Any, limit: int = 200) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
