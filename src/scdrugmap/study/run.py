"""``sd.reproduce``: the whole study, from the plan to the tables and figures."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import pandas as pd

from scdrugmap._errors import SpecError
from scdrugmap._files import atomic_path, write_json, write_text
from scdrugmap.datasets import categories
from scdrugmap.evaluation.result.result import BenchmarkResult
from scdrugmap.study import figures, grids, tables
from scdrugmap.study.answers import ask, coverage
from scdrugmap.study.cells import digests, embed_studies, fetch_checkpoints, prepare_studies
from scdrugmap.study.chosen import Chosen, choose
from scdrugmap.study.joined import join
from scdrugmap.study.missing import Missing
from scdrugmap.study.plan import Plan, make_plan
from scdrugmap.study.shelf import pack
from scdrugmap.study.spec import ReproduceSpec


@dataclass(eq=False)
class Reproduction:
    """What :func:`scdrugmap.reproduce` returns.

    Parameters
    ----------
    store
        Folder of the run.
    tables
        By name; ``scores`` holds every number beside its floor and what the paper reports.
    figures
        Names of the files.
    missing
        What was left out, and why.
    plan
        The plan that was accepted.
    """

    store: Path
    tables: dict[str, pd.DataFrame] = field(default_factory=dict, repr=False)
    figures: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    plan: Plan | None = field(default=None, repr=False)

    def __str__(self) -> str:
        lines = [f"wrote {self.store}: {len(self.tables)} tables, {len(self.figures)} figures, run.yaml"]
        lines += [f"left out: {name}: {why}" for name, why in self.missing.items()]
        return "\n".join(lines)


def reproduce(spec: ReproduceSpec) -> Reproduction | Plan:
    """Run the published study: every table and figure, beside the version without leaks.

    Parameters
    ----------
    spec
        What to run. ``plan=True`` returns the plan alone; otherwise ``yes=True`` says that the plan, and the licences in it,
        are accepted. On a terminal the question is asked.

    Returns
    -------
    Reproduction
        Tables, names of figures, and what was left out; with ``plan=True`` the plan, which opens no connection.

        Written into ``spec.store``: ``tables/*.csv``, ``figures/*.png``, ``run.yaml`` (the specification with the digests of
        all inputs, which can be run again), ``missing.json``; and what a killed run resumes from: ``studies``,
        ``embeddings``, ``answers``, and ``grid``, whose folders are run stores that ``scdrugmap results merge`` joins.

    Raises
    ------
    UnknownNameError
        For an unknown study or model.
    SpecError
        If the plan was not accepted.

    Notes
    -----
    Downloads go through ``sd.settings.mirror`` and ``sd.settings.cache_dir``; a study, model or figure that fails is
    listed and leaves the others.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> spec = sd.ReproduceSpec(figures=["2"], studies=["GSE140440"], models=["scGPT"], plan=True, measure=False)
    >>> sd.reproduce(spec).studies["name"].tolist()
    ['GSE140440']
    """
    plan = make_plan(spec)
    if spec.plan:
        return plan
    if not spec.yes:
        print(plan)
        if not sys.stdin.isatty() or input("Go on, and accept the licences above? [y/N] ").lower() not in ("y", "yes"):
            raise SpecError("yes", False, "an accepted plan", "look at the plan and pass yes=True.")
    return run_plan(plan)


def run_plan(plan: Plan) -> Reproduction:
    """Run a plan that was accepted.

    Parameters
    ----------
    plan
        From :func:`make_plan`.
    """
    spec, chosen, missing = plan.spec, choose(plan.spec), Missing()
    done = Reproduction(spec.store, plan=plan)
    write_json(_made(spec.store) / "plan.json", plan.to_dict())
    studies = prepare_studies(spec, chosen, missing) if chosen.collections else {}
    # Nothing but the size and speed of models can be done without cells.
    checkpoints = fetch_checkpoints(chosen, missing) if studies or "7" in spec.figures else {}
    embed_studies(spec, studies, checkpoints, missing)
    write_text(spec.store / "run.yaml", _record(spec, digests(spec, studies, checkpoints), missing))
    pages = figures.Pages(spec, missing)
    results: dict[grids.Job, BenchmarkResult] = {}
    sample: ad.AnnData | None = None
    if chosen.unlabelled:
        missing.note(f"data sets {', '.join(chosen.unlabelled)}", "no labels that a program can read: pass --labels")
    for collection in chosen.collections:
        cells = join(spec, chosen, studies, collection)
        if cells is None:
            missing.note(f"{collection} collection", "none of its studies could be had")
            continue
        sample = cells if sample is None else sample
        results |= _collection(spec, chosen, collection, cells, checkpoints, done, missing)
        if collection == "primary":
            if "5" in spec.figures:
                figures.figure_5a(pages, cells)
            if "4" in spec.figures:
                figures.figure_4(pages, chosen, cells)
            if spec.predictors:
                done.tables["predictors"] = pack(spec, chosen, cells, checkpoints, missing)
    _draw(spec, chosen, results, pages)
    _tabulate(spec, results, done)
    if "7" in spec.figures:
        with missing.leaves_the_rest("figure 7"):
            found = figures.measured(spec, sample, checkpoints, missing)
            done.tables["figure7"] = tables.speeds(found)
            from scdrugmap import pl

            pages.draw("figure7", pl.profile, found)
    for number in spec.figures:
        pages.account_for(number, "none of the benchmarks that it shows could be run")
    done.figures, done.missing = pages.names, missing.reasons
    for name, table in done.tables.items():
        with atomic_path(_made(spec.store / "tables") / f"{name}.csv") as scratch:
            table.to_csv(scratch, index=False)
    write_json(spec.store / "missing.json", done.missing)
    return done


def _made(folder: Path) -> Path:
    from scdrugmap._errors import OutputError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError("store", folder, error) from None
    return folder


def _record(spec: ReproduceSpec, found: dict[str, Any], missing: Missing) -> str:
    """The specification with the digests of its inputs; inputs of another run that differ are listed."""
    for kind in ("studies", "checkpoints"):
        for name, digest in ((spec.inputs or {}).get(kind) or {}).items():
            if name in found[kind] and found[kind][name] != digest:
                missing.note(f"input {name}", "its digest is not the one of the specification")
    return spec.model_copy(update={"inputs": found}).to_yaml()


def _collection(
    spec: ReproduceSpec, chosen: Chosen, collection: str, cells: ad.AnnData, checkpoints: Mapping[str, Path],
    done: Reproduction, missing: Missing,
) -> dict[grids.Job, BenchmarkResult]:  # fmt: skip
    """Every benchmark of one collection, and its few-shot curves."""
    results = {}
    prompted = collection == "primary" and bool(chosen.prompted)
    answers = ask(spec, chosen, cells, missing) if prompted else {}
    if answers:
        done.tables["prompt_coverage"] = coverage(answers, cells)
    with grids.workers(spec.dask):
        for job in grids.jobs(spec, chosen, collection):
            with missing.leaves_the_rest(f"benchmark {job.name}"), warnings.catch_warnings():
                # Ten epochs are what the published head is.
                warnings.filterwarnings("ignore", message=".*had not converged after")
                result = grids.run_job(job, spec, chosen, cells, checkpoints, answers)
                if result is not None:
                    results[job] = result
    if spec.shots and "3" in spec.figures and collection == "primary":
        curves = grids.few_shot(spec, chosen, cells, missing)
        if len(curves):
            done.tables["few_shot"] = curves
    return results


def _draw(
    spec: ReproduceSpec, chosen: Chosen, results: Mapping[grids.Job, BenchmarkResult], pages: figures.Pages
) -> None:
    """Figures 1 to 3, 5 and 6."""
    prompts = {j: r for j, r in results.items() if j.strategy == "prompt"}
    primary = {j: r for j, r in results.items() if j.collection == "primary" and j.strategy != "prompt"}
    external = {j: r for j, r in results.items() if j.collection == "external"}
    if "1" in spec.figures:
        figures.figure_1(pages, chosen)
    if "2" in spec.figures:
        figures.bars(pages, "2", {j: r for j, r in primary.items() if j.setting == "pooled"})
    if "3" in spec.figures:
        figures.circles(pages, "3", {j: r for j, r in primary.items() if j.setting == "cross"}, ("f1",))
    if "5" in spec.figures:
        figures.circles(pages, "5", prompts, ("f1",))
    if "6" in spec.figures:
        figures.circles(pages, "6", external, ("f1", "auroc"))


def _tabulate(spec: ReproduceSpec, results: Mapping[grids.Job, BenchmarkResult], done: Reproduction) -> None:
    """The table of everything, those of the figures, and the size of the leak."""
    if "1" in spec.figures:
        done.tables["figure1"] = categories().drop(columns="keys")
    if not results:
        return
    table = tables.scores(results)
    done.tables["scores"] = table
    done.tables["published"] = tables.published_beside(table)
    for figure in ("2", "3", "5", "6"):
        if figure in spec.figures:
            done.tables[f"figure{figure}"] = tables.figure_table(table, figure)
    if len(leak := tables.leak(table)):
        done.tables["leak"] = leak
