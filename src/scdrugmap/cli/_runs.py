"""From a run specification to files: check, read, call the tool, write what it returned."""

from __future__ import annotations

import contextlib
import inspect
from pathlib import Path
from typing import Any

import typer

from scdrugmap._errors import InputError, SpecError
from scdrugmap._files import write_text
from scdrugmap.cli._console import console, print_json, print_table, progress
from scdrugmap.cli._exit import PARTLY
from scdrugmap.cli._overwrite import refuse_own_input
from scdrugmap.datasets.files import CELLS, check_kind, check_writable, open_cells, read_cells, write_cells, write_frame
from scdrugmap.spec import BenchmarkSpec, ExplainSpec, PredictSpec, RunSpec, TrainSpec, extra_of

RUN = "scdrugmap_run"


def run(spec: RunSpec, as_json: bool = False) -> None:
    """Run the tool of a specification and write its result.

    Parameters
    ----------
    spec
        What to run.
    as_json
        Print what was written as JSON.
    """
    _check(spec)
    cells = read_cells(spec.input) if isinstance(spec, ExplainSpec) else open_cells(spec.input)
    check_kind(cells, spec.output)
    if isinstance(spec, ExplainSpec):
        from scdrugmap.study.explain import explain

        return _tell_explained(spec, *explain(spec, cells), as_json)
    spec, result = _call(spec, cells, quiet=as_json)
    if result is None:
        _write_annotated(spec, cells, as_json)
    elif isinstance(spec, TrainSpec):
        _write_predictor(spec, result, as_json)
    else:
        _write_benchmark(spec, result, as_json)


def _tell_explained(spec: ExplainSpec, report: Any, written: list[str], as_json: bool) -> None:
    """Print the verdict of an explanation and what was written."""
    if as_json:
        return print_json(output=str(spec.output), ok=report.ok, reasons=report.reasons, files=written)
    console.print(f"wrote {spec.output}/: {', '.join(written)}")
    console.print(report.to_text(), markup=False)


def _check(spec: RunSpec) -> None:
    """Refuse what cannot be written or found, before anything is read."""
    check_writable(spec.output, *spec.endings)
    refuse_own_input(spec)
    if isinstance(spec, TrainSpec) and not spec.overwrite and spec.output.is_dir() and any(spec.output.iterdir()):
        raise SpecError("output", str(spec.output), "an empty or new folder", "pass --overwrite or another name.")
    if isinstance(spec, PredictSpec | ExplainSpec) and spec.predictor is not None and not spec.predictor.is_dir():
        raise SpecError("predictor", str(spec.predictor), "the folder of a saved predictor", "train one first.")


def _call(spec: RunSpec, cells: Any, *, quiet: bool) -> tuple[RunSpec, Any]:
    """Call the tool; return what ran, and what the tool returned."""
    import scdrugmap as sd

    room, name = spec.tool.split(".")
    function = getattr(getattr(sd, room), name)
    if isinstance(spec, BenchmarkSpec):
        spec = _effective(spec)
    given = spec.arguments(function)
    for field, about in type(spec).model_fields.items():
        if extra_of(about).get("reads") == "cells" and field in given:
            given[field] = open_cells(given[field])
    with contextlib.ExitStack() as stack:
        if "on_unit" in inspect.signature(function).parameters and not quiet:
            from scdrugmap.cli._live import LiveScores

            live = stack.enter_context(LiveScores())
            given |= {"on_unit": live.update, "progress": False if progress.is_terminal else None}
        try:
            return spec, function(cells, **given)
        except InputError as error:
            if type(error) is InputError and error.argument in spec.options:
                raise SpecError(error.argument, error.found, error.expected, error.fix) from error
            raise


def _effective(spec: BenchmarkSpec) -> BenchmarkSpec:
    """Fill in what a preset and the output decide, so that the record says what ran."""
    from scdrugmap.tl._benchmark import PRESETS

    fields = type(spec).model_fields
    changes = PRESETS.get(spec.preset or "", {})
    left_out = {n: v for n, v in changes.items() if getattr(spec, n) == fields[n].default}
    store = spec.store or spec.output / "store"
    return type(spec).model_validate(spec.model_dump() | left_out | {"store": store})


def _write_annotated(spec: RunSpec, cells: Any, as_json: bool) -> None:
    """Write cells that a tool has annotated, or the table of its columns."""
    obs = (cells.mod[spec.mod] if hasattr(cells, "mod") else cells).obs
    said: dict[str, Any] = {"output": str(spec.output), "cells": int(cells.n_obs)}
    if isinstance(spec, PredictSpec):
        said["calls"] = {str(k): int(n) for k, n in obs[f"{spec.key_added}_pred"].value_counts(dropna=False).items()}
        said |= _trust_of(spec, cells)
        if spec.output.suffix in (".csv", ".parquet"):
            said |= _write_tables(spec, cells, obs)
    if spec.output.suffix in CELLS:
        cells.uns[RUN] = spec.to_yaml()
        write_cells(cells, spec.output)
    if as_json:
        return print_json(**said)
    calls = ", ".join(f"{n:,} {name}" for name, n in said.get("calls", {}).items())
    slots = "" if calls else f" with obsm {_slots(spec)} for {cells.n_obs:,} cells"
    console.print(f"wrote {spec.output}{slots}" + (f": {calls}" if calls else ""))
    for line in ("query", "worth"):
        if line in said:
            console.print(said[line])
    if "samples" in said:
        console.print(f"wrote {said['samples']} with a call for each sample")


def _trust_of(spec: PredictSpec, cells: Any) -> dict[str, str]:
    """What the verdict on the query and the worth of the predictor say, in a line each."""
    from scdrugmap.trust.worth import statement

    record = (cells.mod[spec.mod] if hasattr(cells, "mod") else cells).uns[spec.key_added]
    if "shift" not in record:  # a prompted model has no training data
        return {}
    shift = record["shift"]
    return {"query": f"query: {shift['verdict']} ({shift['reason']})", "worth": statement(record["worth"])}


def _write_tables(spec: PredictSpec, cells: Any, obs: Any) -> dict[str, str]:
    """Write the columns of the prediction and, where samples were named, their table beside them."""
    columns = [c for c in obs if str(c).startswith(f"{spec.key_added}_")]
    write_frame(obs[columns].rename_axis("cell"), spec.output)
    write_text(spec.output.with_suffix(".run.yaml"), spec.to_yaml())
    record = (cells.mod[spec.mod] if hasattr(cells, "mod") else cells).uns[spec.key_added]
    if "samples" not in record:
        return {}
    target = spec.output.with_name(f"{spec.output.stem}.samples{spec.output.suffix}")
    write_frame(record["samples"], target)
    return {"samples": str(target)}


def _slots(spec: Any) -> str:
    import scdrugmap as sd
    from scdrugmap._keys import KEYS

    stems = [spec.key_added] if spec.key_added else [sd.models.info(m).stem for m in spec.model]
    return ", ".join(map(KEYS.embedding, stems))


def _write_predictor(spec: RunSpec, predictor: Any, as_json: bool) -> None:
    from scdrugmap.trust.worth import statement

    predictor.save(spec.output, overwrite=True)
    write_text(spec.output / "run.yaml", spec.to_yaml())
    if as_json:
        return print_json(output=str(spec.output), card=str(spec.output / "README.md"), worth=predictor.worth)
    console.print(statement(predictor.worth))
    console.print(f"saved {spec.output}/ (card: {spec.output / 'README.md'})")
    console.print(f"next: scdrugmap predict query.h5ad --predictor {spec.output} -o predicted.h5ad")


def _write_benchmark(spec: RunSpec, result: Any, as_json: bool) -> None:
    """Write tables, report and specification; a category that could not be evaluated makes it partly done."""
    result.to_parquet(spec.output / "result")
    write_frame(result.table, spec.output / "results.csv", index=False)
    result.report(spec.output / "report.html")
    write_text(spec.output / "run.yaml", spec.to_yaml())
    missing = sorted({f"{p.category or 'all cells'}: {p.reason}" for p in result.partitions if p.reason})
    if as_json:
        print_table(result.summary(), "", as_json=True)
    else:
        print_summary(result, f"{ways_of(result)} [95 % interval over samples, patients or studies]")
        console.print(f"wrote {spec.output}/: result/ (Parquet), results.csv, report.html, run.yaml")
    rows = result.table[result.table["reason"].str.startswith("failed:")]
    failed = [f"{model}: {reason}" for model, reason in rows[["model", "reason"]].drop_duplicates().to_numpy()]
    if missing:
        typer.echo("not evaluated: " + "; ".join(missing), err=True)
    if failed:
        typer.echo("\n".join(failed), err=True)
    if missing or failed:
        raise typer.Exit(PARTLY)


def ways_of(result: Any) -> str:
    """Say how the cells were divided; a random split says what that means, wherever it is named."""
    from scdrugmap._keys import SAME_SAMPLE

    scores = result.table[result.table["setting"] != "probe"]
    ways = scores[["setting", "split"]].drop_duplicates().itertuples(index=False, name=None)
    return " and ".join(
        f"{setting}, split by {split}" + (f" (random): {SAME_SAMPLE}" if split == "cell" else "")
        for setting, split in ways
    )


def remarks_on(table: Any) -> list[str]:
    """What a reader of a summary has to know: why values or intervals are missing, and where they are wide."""
    from scdrugmap.evaluation.result.statistics import FEW_GROUPS

    out = []
    for reason, rows in table[table["reason"] != ""].groupby("reason", sort=False):
        names = ", ".join(dict.fromkeys(rows["model"]))
        out.append(f"{names}: {reason}" if rows["value"].isna().all() else str(reason))
    shown = table[table["ci_low"].notna() & (table["n_groups"] < FEW_GROUPS)]
    if len(shown):
        out.append(f"intervals rest on {shown['n_groups'].min()} samples or studies only")
    kept = ("without an answer", "folds:", "from calls")
    for model, notes in table.groupby("model", sort=False)["note"]:
        said = dict.fromkeys(part for note in notes for part in note.split("; ") if any(k in part for k in kept))
        out += [f"{model}: {part}" for part in said]
    return list(dict.fromkeys(out))


def run_report(results: Path, output: Path, explained: Path | None = None) -> None:
    """Write the report of saved results, with what ``scdrugmap explain`` found where there is such a folder."""
    from scdrugmap.evaluation import BenchmarkResult
    from scdrugmap.study.explain import read_explained

    check_writable(output, ".html")
    file = results / "result" if (results / "result").is_dir() else results
    if not file.exists():
        raise InputError("results", str(results), "results that a benchmark wrote", "run scdrugmap benchmark first.")
    result = BenchmarkResult.from_parquet(file)
    output.parent.mkdir(parents=True, exist_ok=True)
    result.report(output, explain=None if explained is None else read_explained(explained))
    console.print(f"wrote {output}")


def print_summary(result: Any, title: str) -> None:
    """Print a benchmark with one row per model and category, and one column per metric."""
    import numpy as np

    table = result.summary()
    labels = result.contenders.set_index(["model", "strategy", "head"])["label"]
    table["model"] = [labels[key] for key in zip(table["model"], table["strategy"], table["head"], strict=True)]
    table["cell"] = [
        "n/a" if np.isnan(v) else f"{v:.2f}" + ("" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]")
        for v, low, high in zip(table["value"], table["ci_low"], table["ci_high"], strict=True)
    ]
    places = [c for c in ("setting", "split", "by", "category") if table[c].nunique() > 1]
    wide = table.pivot(index=[*places, "model"], columns="metric", values="cell")
    wide = wide[list(dict.fromkeys(table["metric"]))].reindex(
        list(dict.fromkeys(table[[*places, "model"]].itertuples(index=False, name=None))) if places
        else list(dict.fromkeys(table["model"]))
    )  # fmt: skip
    print_table(wide.reset_index(), title)
    for remark in remarks_on(table):
        console.print(remark)
