"""Slices of results: what the map, the tables and other programs read of a finished job."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query
from fastapi.responses import FileResponse, JSONResponse, Response

from scdrugmap.web import jobs
from scdrugmap.web.api import _ERRORS, Ours
from scdrugmap.web.problems import Problem, not_found

router = APIRouter(prefix="/api/v1/jobs/{job_id}", tags=["results"], responses=_ERRORS)
_ROWS = 1000
_BINARY: dict[int | str, dict[str, Any]] = {
    **_ERRORS, 200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}  # fmt: skip
#: A result never changes, and its address is its name.
_FOREVER = {"Cache-Control": "private, max-age=86400, immutable"}


def _result(server: Any, job_id: str, *parts: str) -> Path:
    """A file of a finished result."""
    job = jobs.find(server, job_id)
    if job.state != "done":
        raise Problem(409, "not_done", "The result is not there (yet).", "Ask for the state of the job.")
    path = jobs.folder(server, job_id).joinpath("result", *parts)
    if not path.is_file():
        raise not_found()
    return path


@router.get("/summary")
def summary(server: Ours, job_id: str) -> JSONResponse:
    """Tables, notes, versions and digests of a result."""
    return JSONResponse(json.loads(_result(server, job_id, "summary.json").read_text()))


@router.get("/map")
def map_description(server: Ours, job_id: str) -> FileResponse:
    """Layouts and fields by which the map can be coloured."""
    return FileResponse(_result(server, job_id, "slices", "map.json"), media_type="application/json")


@router.get("/layouts/{number}", response_class=Response, responses=_BINARY)
def layout(server: Ours, job_id: str, number: int) -> FileResponse:
    """Places of all cells: little-endian float32, x and y in turn."""
    return _bytes(_result(server, job_id, "slices", f"layout-{number}.bin"))


@router.get("/fields/{number}", response_class=Response, responses=_BINARY)
def values(server: Ours, job_id: str, number: int) -> FileResponse:
    """One column of all cells: float32, or uint16 numbers of categories with 65535 for missing."""
    return _bytes(_result(server, job_id, "slices", f"field-{number}.bin"))


@router.get("/genes")
def genes(server: Ours, job_id: str, search: Annotated[str, Query(max_length=50)] = "") -> list[str]:
    """Names of genes that begin with, or else contain, the text; at most 50."""
    names = _gene_names(_result(server, job_id, "slices", "genes.json"))
    wanted = search.upper()
    first = [n for n in names if n.upper().startswith(wanted)]
    return (first or [n for n in names if wanted in n.upper()])[:50]


@router.get("/genes/{gene}", response_class=Response, responses=_BINARY)
def gene(server: Ours, job_id: str, gene: str) -> Response:
    """Log-normalised counts of one gene in all cells: little-endian float32."""
    place = _result(server, job_id, "slices", "genes.json").parent
    names = [n.upper() for n in _gene_names(place / "genes.json")]
    if gene.upper() not in names:
        raise not_found()
    number = names.index(gene.upper())
    indptr, indices, data = (
        np.load(place / f"genes-{n}.npy", mmap_mode="r", allow_pickle=False) for n in ("indptr", "indices", "data")
    )
    part = slice(int(indptr[number]), int(indptr[number + 1]))
    out = np.zeros(_n_cells(place / "map.json"), "<f4")
    out[indices[part]] = data[part]
    return Response(out.tobytes(), media_type="application/octet-stream", headers=_FOREVER)


@router.get("/cells", responses={200: {"content": {"application/vnd.apache.arrow.stream": {}}}})
def cells(
    server: Ours,
    job_id: str,
    start: Annotated[int, Query(ge=0)] = 0,
    stop: Annotated[int | None, Query(ge=0)] = None,
    rows: Annotated[str | None, Query(max_length=8000, description="Numbers of cells, with commas.")] = None,
    format: Literal["json", "arrow"] = "json",
) -> Response:
    """Rows of the table of cells, at most 1,000 at once as JSON and 100,000 as Arrow."""
    import pyarrow as pa

    path = _result(server, job_id, "slices", "cells.arrow")
    most = _ROWS if format == "json" else 100 * _ROWS
    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
        if rows is not None:
            numbers = [int(n) for n in rows.split(",") if n.strip().isdigit()][:_ROWS]
            part = table.take([n for n in numbers if n < table.num_rows])
        else:
            begin = min(start, table.num_rows)
            end = min(begin + most, table.num_rows if stop is None else min(stop, table.num_rows))
            part = table.slice(begin, max(end - begin, 0))
        if format == "arrow":
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, part.schema) as writer:
                writer.write_table(part)
            return Response(sink.getvalue().to_pybytes(), media_type="application/vnd.apache.arrow.stream")
        from scdrugmap.web.shelf import clean

        return JSONResponse({"n_cells": table.num_rows, "rows": clean(part.to_pylist())})


def _bytes(path: Path) -> FileResponse:
    return FileResponse(path, media_type="application/octet-stream", headers=_FOREVER)


def _gene_names(path: Path) -> list[str]:
    return _load(str(path), path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _load(path: str, _: int) -> list[str]:
    names: list[str] = json.loads(Path(path).read_text())
    return names


def _n_cells(path: Path) -> int:
    return int(json.loads(path.read_text())["n_cells"])
