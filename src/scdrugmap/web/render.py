"""Templates: everything that is put into a page is escaped."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from scdrugmap import __version__

_HERE = Path(__file__).parent


@cache
def environment() -> jinja2.Environment:
    """The templates of this package."""
    out = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    out.filters["percent"] = lambda v: "n/a" if v is None else f"{100 * v:.0f} %"
    out.filters["number"] = lambda v: "n/a" if v is None else f"{v:,}" if isinstance(v, int) else f"{v:.3g}"
    out.filters["size"] = size
    out.filters["duration"] = duration
    out.filters["card"] = card
    out.globals["version"] = __version__
    return out


def render(name: str, **values: Any) -> str:
    """Fill a template."""
    return environment().get_template(name).render(**values)


def static_report(summary: dict[str, Any], figure: Path) -> str:
    """The one-page report of a prediction, complete without this server."""
    svg = figure.read_text()
    return render("report.html", summary=summary, figure=Markup(svg[svg.index("<svg") :]))  # noqa: S704 - matplotlib's


def size(n_bytes: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"


def duration(seconds: float) -> str:
    """Seconds for people."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            n = seconds / length
            text = f"{n:.0f}" if abs(n - round(n)) < 0.05 else f"{n:.1f}"
            return f"{text} {unit}{'' if text == '1' else 's'}"
    return f"{seconds:.0f} seconds"


def card(markdown: str) -> Markup:
    """The few marks that a predictor's card uses, as HTML; everything else is text."""
    out: list[str] = []
    table = fence = False
    body = re.sub(r"\A---\n.*?\n---\n", "", markdown, flags=re.DOTALL)
    for line in body.splitlines():
        if line.startswith("```"):
            out.append("</pre>" if fence else "<pre>")
            fence = not fence
            continue
        row = line.startswith("|")
        if row != table:
            out.append("<table>" if row else "</table>")
            table = row
        if fence:
            out.append(str(escape(line)))
        elif row:
            cells = [c.strip() for c in line.strip("|").split("|")]
            if any(c.strip("- ") for c in cells):
                out.append("<tr>" + "".join(f"<td>{_inline(c)}</td>" for c in cells) + "</tr>")
        elif line.startswith("#"):
            out.append(f"<h4>{_inline(line.lstrip('# '))}</h4>")
        elif line.strip():
            out.append(f"<p>{_inline(line)}</p>")
    return Markup("\n".join([*out, "</table>" if table else ""]))  # noqa: S704 - every part was escaped


def _inline(text: str) -> str:
    safe = str(escape(text))
    safe = re.sub(r"\*([^*]+)\*", r"<em>\1</em>", safe)
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
