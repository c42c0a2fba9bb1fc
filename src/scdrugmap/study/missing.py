"""What a run had to leave out, and why; the rest goes on."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

from scdrugmap._errors import ScDrugMapWarning
from scdrugmap._logging import get_logger


@dataclass
class Missing:
    """Names of what was left out, with the reason, in the order of the run."""

    reasons: dict[str, str] = field(default_factory=dict)

    def note(self, name: str, reason: str) -> None:
        """List something that was left out."""
        self.reasons[name] = reason
        warnings.warn(f"{name} is left out: {reason}", ScDrugMapWarning, stacklevel=3)

    @contextlib.contextmanager
    def leaves_the_rest(self, name: str) -> Iterator[None]:
        """Turn the error of one part into an entry of the list."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - one download or model must not cost the others days of work
            get_logger().info("%s failed", name, exc_info=True)
            text = " ".join(str(error).split()) or type(error).__name__
            self.note(name, text[:600])
