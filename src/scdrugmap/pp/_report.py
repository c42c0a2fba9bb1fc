"""What ``sd.pp.check`` returns: findings for people and for programs."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

Level = Literal["error", "warning", "info"]
_ORDER: dict[str, int] = {"error": 0, "warning": 1, "info": 2}
_COLOURS = {"error": "#b3261e", "warning": "#9a6700", "info": "#57606a"}


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Parameters
    ----------
    level
        ``"error"`` stops embedding or training, ``"warning"`` spoils results, ``"info"`` is good to know.
    slot
        Where: ``"X"``, ``"var_names"``, ``'obs["response"]'`` ...
    message
        What was found.
    fix
        What to do, ``""`` if nothing.
    """

    level: Level
    slot: str
    message: str
    fix: str = ""


@dataclass(frozen=True, repr=False)
class CheckReport:
    """Result of :func:`scdrugmap.pp.check`.

    Parameters
    ----------
    n_cells, n_genes
        Size of the data.
    findings
        What was found, the gravest first.
    facts
        Numbers by name: median counts and genes per cell, kind and species of the identifiers, empty and duplicated
        cells, ...
    labels
        Cells per label in each study and sample; empty without labels.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> report = sd.pp.check(sd.datasets.simulate(n_cells=100, n_genes=100, rng=0))
    >>> report.ok
    True
    """

    n_cells: int
    n_genes: int
    findings: tuple[Finding, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    labels: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.errors

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stop embedding or training."""
        return tuple(f for f in self.findings if f.level == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that spoil results."""
        return tuple(f for f in self.findings if f.level == "warning")

    def to_frame(self) -> pd.DataFrame:
        """Return the findings as a data frame: ``level``, ``slot``, ``message``, ``fix``."""
        rows = [(f.level, f.slot, f.message, f.fix) for f in self.findings]
        return pd.DataFrame(rows, columns=["level", "slot", "message", "fix"])

    def to_dict(self) -> dict[str, Any]:
        """Return everything in plain types, ready for JSON."""
        return {
            "ok": self.ok,
            "n_cells": self.n_cells,
            "n_genes": self.n_genes,
            "findings": self.to_frame().to_dict("records"),
            "facts": dict(self.facts),
            "labels": self.labels.to_dict("records"),
        }

    def __str__(self) -> str:
        lines = [self._title()]
        for f in self.findings:
            lines.append(f"  {f.level:<7}  {f.slot}: {f.message}")
            if f.fix:
                lines.append(f"{'':11}-> {f.fix}")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><td style="color:{_COLOURS[f.level]};font-weight:600">{f.level}</td>'
            f"<td><code>{html.escape(f.slot)}</code></td><td style='text-align:left'>{html.escape(f.message)}</td>"
            f"<td style='text-align:left'>{html.escape(f.fix)}</td></tr>"
            for f in self.findings
        )
        head = "<tr><th>level</th><th>slot</th><th>found</th><th>what to do</th></tr>"
        return f"<p><b>{html.escape(self._title())}</b></p><table>{head}{rows}</table>"

    def _title(self) -> str:
        n_errors, n_warnings = len(self.errors), len(self.warnings)
        verdict = "not ready" if n_errors else "usable, but see the warnings" if n_warnings else "ready"
        tally = f"{n_errors} error{'s' * (n_errors != 1)}, {n_warnings} warning{'s' * (n_warnings != 1)}"
        return f"{self.n_cells:,} cells x {self.n_genes:,} genes: {verdict} ({tally})"


def sort_findings(findings: list[Finding]) -> tuple[Finding, ...]:
    """The gravest first, otherwise in the order of the checks."""
    return tuple(sorted(findings, key=lambda f: _ORDER[f.level]))
