"""Commands that prepare cells: harmonised names and labels, several studies in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scdrugmap._errors import SpecError
from scdrugmap.cli._console import console, print_json
from scdrugmap.cli._runs import RUN
from scdrugmap.datasets.files import check_kind, check_writable, read_cells, write_cells
from scdrugmap.spec import ConcatSpec, FileSpec, HarmonizeSpec


def run(spec: FileSpec, as_json: bool = False) -> None:
    """Prepare cells and write them.

    Parameters
    ----------
    spec
        What to do.
    as_json
        Print what was written as JSON.
    """
    check_writable(spec.output, *spec.endings)
    if isinstance(spec, HarmonizeSpec):
        said = _harmonize(spec)
    else:
        assert isinstance(spec, ConcatSpec)
        said = _concat(spec)
    if as_json:
        return print_json(output=str(spec.output), **said)
    console.print(f"wrote {spec.output}: " + ", ".join(f"{v:,} {k}" for k, v in said.items()))


def _harmonize(spec: HarmonizeSpec) -> dict[str, int]:
    import scdrugmap as sd

    if spec.mapping and spec.column is None:
        raise SpecError("--map", dict(spec.mapping), "a column to map", "pass --column <column of obs>.")
    cells = read_cells(spec.input)
    check_kind(cells, spec.output)
    # Labels first: they are what a user has to decide on, and cost nothing.
    if spec.column is not None:
        sd.pp.harmonize_response(cells, **spec.arguments(sd.pp.harmonize_response))
    sd.pp.harmonize_genes(cells, **spec.arguments(sd.pp.harmonize_genes))
    cells.uns[RUN] = spec.to_yaml()
    write_cells(cells, spec.output)
    part = cells.mod[spec.mod] if hasattr(cells, "mod") else cells
    said = {"cells": int(part.n_obs), "genes": int(part.n_vars)}
    if spec.column is not None:
        said |= {str(k): int(n) for k, n in part.obs[spec.key_added].value_counts().items()}
    return said


def _concat(spec: ConcatSpec) -> dict[str, int]:
    import scdrugmap as sd

    studies: dict[str, Any] = {}
    for text in spec.input:
        name, equals, file = text.rpartition("=")
        path = Path(file)
        name = name if equals else path.stem
        if name in studies:
            raise SpecError("input", f"{name!r} twice", "a name for each study", f"write other={file}.")
        if path.resolve() == spec.output.resolve():
            raise SpecError("output", str(spec.output), "a file that is not read", "choose another name.")
        # A file of one modality is read block by block, and never whole.
        studies[name] = read_cells(path) if path.suffix != ".h5ad" or not path.exists() else path
    out = sd.pp.concat_studies(**{**spec.arguments(sd.pp.concat_studies), "studies": studies})
    said = {"studies": len(studies), "cells": int(out.n_obs), "genes": int(out.n_vars)}
    out.file.close()
    return said
