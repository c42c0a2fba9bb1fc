"""From a run specification to files."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from scdrugmap._errors import InputError, UnknownNameError
from scdrugmap.cli._console import console
from scdrugmap.cli._io import check_kind, check_writable, read_cells, write_cells
from scdrugmap.spec import BenchmarkSpec, EmbedSpec, PredictSpec, RunSpec, TrainSpec

RUN = "scdrugmap_run"


def run_embed(spec: EmbedSpec) -> None:
    """Embed and write the cells."""
    import scdrugmap as sd

    check_writable(spec.output, ".h5ad", ".h5mu")
    cells = read_cells(spec.input)
    check_kind(cells, spec.output)
    call(
        sd.tl.embed, spec.options, cells, spec.model if len(spec.model) > 1 else spec.model[0], checkpoint=spec.checkpoint, layer=spec.layer,
        key_added=spec.key_added, batch_size=spec.batch_size, device=spec.device, precision=spec.precision,
        groups=spec.groups, rng=spec.seed, store=spec.store, mod=spec.mod,
    )  # fmt: skip
    _write(cells, spec)
    slots = spec.key_added or ", ".join(f"X_{sd.models.info(m).key}" for m in spec.model)
    console.print(f"wrote {spec.output} with obsm {slots} for {cells.n_obs:,} cells")


def run_train(spec: TrainSpec) -> None:
    """Train and save a predictor."""
    import scdrugmap as sd

    check_writable(spec.output)
    if not spec.overwrite and spec.output.is_dir() and any(spec.output.iterdir()):
        raise InputError("output", str(spec.output), "an empty or new folder", "pass --overwrite or another name.")
    cells = read_cells(spec.input)
    predictor = call(
        sd.tl.train, spec.options, cells, **_given(model=spec.model, use_rep=spec.use_rep, checkpoint=spec.checkpoint, layer=spec.layer),
        strategy=spec.strategy, label_key=spec.label_key, groups=spec.groups, head=spec.head, device=spec.device,
        rng=spec.seed, mod=spec.mod,
    )  # fmt: skip
    predictor.save(spec.output, overwrite=True)
    (spec.output / "run.yaml").write_text(spec.to_yaml())
    console.print(f"saved {spec.output}/ (card: {spec.output / 'README.md'})")
    console.print(f"next: scdrugmap predict query.h5ad --predictor {spec.output} -o predicted.h5ad")


def run_predict(spec: PredictSpec) -> None:
    """Predict and write cells or a table."""
    import scdrugmap as sd

    check_writable(spec.output, ".h5ad", ".h5mu", ".csv", ".parquet")
    if not spec.predictor.is_dir():
        raise InputError("predictor", str(spec.predictor), "the folder of a saved predictor", "train one first.")
    cells = read_cells(spec.input)
    check_kind(cells, spec.output)
    predictor = sd.load_predictor(spec.predictor, checkpoint=spec.checkpoint)
    call(
        sd.tl.predict_response, spec.options, cells, predictor, key_added=spec.key_added, layer=spec.layer, device=spec.device, rng=spec.seed,
        mod=spec.mod,
    )  # fmt: skip
    spec.output.parent.mkdir(parents=True, exist_ok=True)
    obs = (cells.mod[spec.mod] if hasattr(cells, "mod") else cells).obs
    columns = [c for c in obs if str(c).startswith(f"{spec.key_added}_")]
    if spec.output.suffix == ".csv":
        obs[columns].to_csv(spec.output, index_label="cell")
        spec.output.with_suffix(".run.yaml").write_text(spec.to_yaml())
    elif spec.output.suffix == ".parquet":
        obs[columns].rename_axis("cell").to_parquet(spec.output)
        spec.output.with_suffix(".run.yaml").write_text(spec.to_yaml())
    else:
        _write(cells, spec)
    counts = obs[f"{spec.key_added}_pred"].value_counts(dropna=False)
    console.print(f"wrote {spec.output}: " + ", ".join(f"{n:,} {name}" for name, n in counts.items()))


def run_benchmark(spec: BenchmarkSpec) -> None:
    """Benchmark and write table, report and specification into a folder."""
    import scdrugmap as sd
    from scdrugmap.cli._live import LiveScores

    check_writable(spec.output)
    cells = read_cells(spec.input)
    if spec.device is not None:
        sd.settings.device = spec.device
    with LiveScores() as live:
        result = call(
            sd.tl.benchmark, spec.options, cells, models=spec.models, strategy=spec.strategy, setting=spec.setting,
            by=spec.by, split=spec.split, label_key=spec.label_key, study_key=spec.study_key,
            sample_key=spec.sample_key, n_folds=spec.n_folds, store=spec.store or spec.output / "store",
            rng=spec.seed, mod=spec.mod, on_unit=live.update, progress=False if console.is_terminal else None,
            **_given(preset=spec.preset, n_jobs=spec.n_jobs, layer=spec.layer,
                     head=None if spec.preset else spec.head),
        )  # fmt: skip
    result.to_parquet(spec.output / "result")
    result.table.to_csv(spec.output / "results.csv", index=False)
    result.report(spec.output / "report.html")
    (spec.output / "run.yaml").write_text(spec.to_yaml())
    print_summary(result, f"{spec.setting}, split by {spec.split} [95 % interval over samples or studies]")
    console.print(f"wrote {spec.output}/: result/ (Parquet), results.csv, report.html, run.yaml")


def run_report(results: Path, output: Path) -> None:
    """Write the report of saved results."""
    from scdrugmap.evaluation import BenchmarkResult

    check_writable(output, ".html")
    file = results / "result" if (results / "result").is_dir() else results
    if not file.exists():
        raise InputError("results", str(results), "results that a benchmark wrote", "run scdrugmap benchmark first.")
    result = BenchmarkResult.from_parquet(file)
    output.parent.mkdir(parents=True, exist_ok=True)
    result.report(output)
    console.print(f"wrote {output}")


def print_table(frame: Any, title: str, limit: int = 40) -> None:
    """Print a data frame; long ones are cut with a word about it."""
    table = Table(title=title, title_justify="left")
    for column in frame.columns:
        table.add_column(str(column), overflow="fold")
    for row in frame.head(limit).itertuples(index=False):
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row))
    console.print(table)
    if len(frame) > limit:
        console.print(f"... and {len(frame) - limit} more rows")


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


def _write(cells: Any, spec: RunSpec) -> None:
    cells.uns[RUN] = spec.to_yaml()
    write_cells(cells, spec.output)


def call(function: Callable[..., Any], options: Mapping[str, Any], *cells: Any, **given: Any) -> Any:
    """Call a tool with the fields of the specification and its further options."""
    known = inspect.signature(function).parameters
    for name in options:
        if name in given:
            raise InputError(
                "options", name, "options that have no field of their own", f"set the field {name} instead."
            )
        if name not in known and all(p.kind is not p.VAR_KEYWORD for p in known.values()):
            raise UnknownNameError("options", name, [n for n in known if n not in given])
    return function(*cells, **given, **options)


def _given(**values: Any) -> dict[str, Any]:
    return {k: v for k, v in values.items() if v is not None}
