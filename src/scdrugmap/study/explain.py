"""One run of all tools of interpretation: tables, figures and one page about what a predictor looks at."""

from __future__ import annotations

import base64
import html
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scdrugmap._errors import InputError, ScDrugMapWarning
from scdrugmap._files import write_bytes, write_text
from scdrugmap.datasets.files import write_frame
from scdrugmap.spec import ExplainSpec

#: Rows of a table on the page.
SHOWN = 20
#: What is written besides the verdict.
TABLES = ("biomarkers", "attribution", "perturbation", "perturbation_ranking", "pathways")


def explain(spec: ExplainSpec, cells: Any) -> tuple[Any, list[str]]:
    """Run the tools of interpretation one after the other and write what they found.

    Parameters
    ----------
    spec
        What to run.
    cells
        AnnData or MuData; annotated in memory, the file stays as it is.

    Returns
    -------
    The report of :func:`scdrugmap.tl.attribution_report`, and the names of the files in ``spec.output``.
    """
    import scdrugmap as sd
    from scdrugmap.predictor.predictor import load_predictor

    predictor = load_predictor(spec.predictor)
    notes: list[str] = []
    inner = cells.mod[spec.mod] if hasattr(cells, "mod") else cells
    labelled = spec.key in inner.obs and spec.by in inner.obs
    rng = {"rng": spec.seed, "mod": spec.mod}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ScDrugMapWarning)
        if labelled:
            sd.tl.biomarkers(cells, key=spec.key, groups=spec.by, layer=spec.layer, **rng)
        given = {k: v for k, v in spec.arguments(sd.tl.attribute).items() if k != "predictor"}
        sd.tl.attribute(cells, predictor, **given)
        if spec.genes:
            options = {"by": spec.by, "layer": spec.layer, "device": spec.device, **rng}
            sd.tl.perturb(cells, predictor, genes=spec.genes, n_null=spec.n_null, **options)
        try:
            of = "biomarkers" if labelled else "attribution"
            sd.tl.pathways(
                cells, source=spec.source, of=of, key=spec.key, groups=spec.by, layer=spec.layer, min_genes=2, **rng
            )
        except InputError as error:
            notes.append(f"No gene sets: {error}")
        report = sd.tl.attribution_report(
            cells, predictor, key=spec.key, by=spec.by, layer=spec.layer, device=spec.device, **rng
        )
    notes += [str(w.message) for w in caught if issubclass(w.category, ScDrugMapWarning)]
    return report, _write(spec, cells, inner, report, notes)


def _write(spec: ExplainSpec, cells: Any, inner: Any, report: Any, notes: list[str]) -> list[str]:
    """Write every table that is there, its figure, and the page; returns the names."""
    import scdrugmap as sd

    spec.output.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Callable[[], Any]] = {
        "biomarkers": lambda: sd.pl.biomarkers(cells, mod=spec.mod),
        "attribution": lambda: sd.pl.attribution(cells, mod=spec.mod),
        "perturbation": lambda: sd.pl.perturb(cells, mod=spec.mod),
        "pathways": lambda: sd.pl.pathways(cells, mod=spec.mod),
    }
    sections, written = [], []
    for name, draw in figures.items():
        if name not in inner.uns:
            continue
        write_frame(inner.uns[name], spec.output / f"{name}.csv", index=False)
        written.append(f"{name}.csv")
        try:
            picture = _picture(draw)
        except InputError as error:
            notes.append(f"No figure of {name}: {error}")
            picture = b""
        sections.append(section(name, inner.uns[name], picture))
    if "perturbation_ranking" in inner.uns:
        write_frame(inner.uns["perturbation_ranking"], spec.output / "perturbation_ranking.csv", index=False)
        written.append("perturbation_ranking.csv")
    write_frame(report.table, spec.output / "report.csv", index=False)
    write_text(spec.output / "report.txt", report.to_text() + "\n")
    write_bytes(spec.output / "explain.html", page(report, sections, notes).encode())
    write_text(spec.output / "run.yaml", spec.to_yaml())
    return [*written, "report.csv", "report.txt", "explain.html", "run.yaml"]


def read_explained(folder: Path) -> dict[str, Any]:
    """Tables and verdict of a folder that :func:`explain` wrote.

    Raises
    ------
    InputError
        If the folder holds none.
    """
    import pandas as pd

    names = [n for n in TABLES if (folder / f"{n}.csv").is_file()]
    if not names or not (folder / "report.txt").is_file():
        raise InputError(
            "explained", str(folder), "a folder that scdrugmap explain wrote", "run scdrugmap explain first."
        )
    tables = {n: pd.read_csv(folder / f"{n}.csv") for n in names}
    return tables | {"report": (folder / "report.txt").read_text(encoding="utf-8").rstrip()}


def _picture(draw: Callable[[], Any]) -> bytes:
    """A figure as PNG."""
    import matplotlib.pyplot as plt

    with plt.rc_context({"backend": "agg"}):
        figure = draw().get_figure(root=True)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=120)
        plt.close(figure)
    return out.getvalue()


def section(name: str, table: Any, picture: bytes) -> str:
    """Return one section of the page: figure and first rows."""
    image = ""
    if picture:
        image = f'<img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
    rows = table.head(SHOWN).to_html(index=False, border=0, float_format=lambda v: f"{v:.3g}")
    return f"<h2>{html.escape(name.capitalize())}</h2>{image}{rows}<p>{len(table)} rows in all.</p>"


def page(report: Any, sections: list[str], notes: list[str]) -> str:
    """Return the page: the verdict first, then what was found."""
    listed = "".join(f"<li>{html.escape(note)}</li>" for note in dict.fromkeys(notes))
    style = "body{font-family:sans-serif;max-width:60rem;margin:2rem auto}td,th{padding:.1rem .6rem;text-align:right}img{max-width:100%}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>scdrugmap explain</title><style>{style}</style>'
        f"<h1>What the predictor looks at</h1><pre>{html.escape(report.to_text())}</pre>"
        + (f"<ul>{listed}</ul>" if listed else "")
        + "".join(sections)
        + "</html>"
    )
