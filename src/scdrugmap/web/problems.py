"""What can go wrong between a browser and the server, as one kind of answer."""

from __future__ import annotations

import re
from typing import Any

from scdrugmap._errors import InputError, ScDrugMapError

#: An absolute path; only its last part may leave the server.
_PATH = re.compile(r"(?<![\w./:<-])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\'\",;:()\[\]<>]+)+[/\\]?")


class Problem(Exception):
    """An answer that is no success: status, code, message and what to do."""

    def __init__(self, status: int, code: str, message: str, fix: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.fix = status, code, message, fix
        self.headers = {k.replace("_", "-"): v for k, v in headers.items()}
        #: Facts beside the error, such as the offset at which an upload goes on.
        self.facts: dict[str, Any] = {}

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        return {"error": {"code": self.code, "message": self.message, "fix": self.fix}, **self.facts}


def not_found() -> Problem:
    """The one answer for what is unknown, somebody else's, deleted or expired."""
    return Problem(
        404, "not_found", "There is nothing under this address.", "Check the link; results are deleted after a while."
    )


def without_paths(text: str) -> str:
    """Leave only the last part of every absolute path."""
    return _PATH.sub(lambda m: re.split(r"[/\\]", m[0].rstrip("/\\"))[-1] or "folder", text)


def words_of(error: BaseException) -> str:
    """What a person may read of an error: the library's own text, never a path or a traceback."""
    if isinstance(error, ScDrugMapError):
        return without_paths(str(error))
    if isinstance(error, MemoryError):
        return "The run needs more memory than this machine has. Fix: send fewer cells or choose a smaller model."
    return f"The run failed inside the library ({type(error).__name__}). Fix: check the file and try again; tell the owner of the server when."


def problem_of(error: ScDrugMapError) -> Problem:
    """The library's error as an answer."""
    if isinstance(error, InputError):
        message = f"{error.argument}: found {error.found}; expected {error.expected}."
        return Problem(422, "unusable", without_paths(message)[:1000], without_paths(error.fix))
    return Problem(422, "unusable", without_paths(str(error)))
