"""The pages: rendered here, brought to life by one small script that uses the API."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response

from scdrugmap.web import demo, forms, jobs, kinds, shelf, uploads
from scdrugmap.web.api import Ours
from scdrugmap.web.guards import CSP
from scdrugmap.web.render import render

router = APIRouter(include_in_schema=False)


def _page(name: str, server: Any, *, evaluates: bool = False, **values: Any) -> HTMLResponse:
    page = HTMLResponse(render(name, settings=server.settings, **values))
    # The charts' WebGL layer builds its shaders' callers as text, and no page of strangers' words needs less.
    page.headers["Content-Security-Policy"] = CSP.format(eval=" 'unsafe-eval'" if evaluates else "")
    page.headers["Cache-Control"] = "no-store"
    return page


@router.get("/", response_class=HTMLResponse)
def landing(server: Ours) -> HTMLResponse:
    """Demo results, limits, and the way in."""
    return _page("landing.html", server, demos=demo.listed(server))


@router.get("/uploads/{upload_id}", response_class=HTMLResponse)
def check(server: Ours, upload_id: str) -> HTMLResponse:
    """What the check found, and what can be asked."""
    upload = uploads.find(server, upload_id)
    return _page("check.html", server, upload=uploads.describe(upload), kinds=kinds.all_kinds().values())


@router.get("/uploads/{upload_id}/ask/{kind}", response_class=HTMLResponse)
def ask(server: Ours, upload_id: str, kind: str) -> HTMLResponse:
    """The form of one kind of job."""
    upload = uploads.find(server, upload_id)
    found = kinds.find(kind)
    check = upload.check or {}
    predictors = shelf.predictors(server) if found.needs_predictor else []
    studies = shelf.datasets() if "reference" in found.roles else []
    return _page(
        "ask.html", server, upload=uploads.describe(upload), kind=found, fields=forms.fields(found, check),
        predictors=predictors, studies=studies,
    )  # fmt: skip


@router.get("/jobs/{job_id}", response_class=HTMLResponse)
def job_page(server: Ours, job_id: str) -> Response:
    """Progress, and the result once it is there."""
    job = jobs.find(server, job_id)
    state = jobs.describe(server, job)
    if job.state != "done":
        return _page("job.html", server, job=state)
    result = jobs.folder(server, job_id) / "result"
    summary = json.loads((result / "summary.json").read_text())
    template = {"prediction": "result.html", "benchmark": "benchmark.html"}.get(summary["kind"], "tables.html")
    return _page(template, server, evaluates=True, job=state, summary=summary)


@router.get("/results/{job_id}", response_class=HTMLResponse)
def result_page(job_id: str) -> Response:
    """The same page under the name that people look for."""
    return RedirectResponse(f"/jobs/{job_id}" if job_id.replace("-", "").replace("_", "").isalnum() else "/")


@router.get("/browse", response_class=HTMLResponse)
def browse(server: Ours) -> HTMLResponse:
    """Studies, models, predictors and published numbers."""
    return _page(
        "browse.html", server, studies=shelf.datasets(), models=shelf.models(), predictors=shelf.predictors(server),
        published=shelf.published(),
    )  # fmt: skip


@router.get("/api/v1/docs", response_class=HTMLResponse)
def api_docs(server: Ours) -> HTMLResponse:
    """The API for people, with a script of our own server."""
    return _page("docs.html", server)


@router.get("/privacy", response_class=HTMLResponse)
def privacy(server: Ours) -> HTMLResponse:
    """What happens to the data."""
    return _page("privacy.html", server)


@router.get("/vendor/plotly.min.js")
def plotly_script(request: Request) -> Response:
    """The charts' script, out of the package that brings it."""
    from pathlib import Path

    import plotly

    path = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    headers = {"Cache-Control": "public, max-age=604800"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
        return FileResponse(_packed(path), media_type="text/javascript", headers=headers)
    return FileResponse(path, media_type="text/javascript", headers=headers)


def _packed(path: Any) -> Any:
    """The script compressed once for this installation."""
    import gzip

    import plotly

    from scdrugmap._files import write_bytes
    from scdrugmap.settings import settings

    packed = settings.cache_dir / "web" / f"plotly-{plotly.__version__}.js.gz"
    if not packed.exists():
        write_bytes(packed, gzip.compress(path.read_bytes(), 6, mtime=0))
    return packed
