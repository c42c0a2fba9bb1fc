"""The commands; those that run a tool get their flags from its run specification."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scdrugmap.cli import _cache, _datasets, _models, _results, _serve
from scdrugmap.cli._exit import REFUSED, Commands
from scdrugmap.cli._flags import command
from scdrugmap.cli._help import App
from scdrugmap.spec import PREPARE, TOOLS, FileSpec
from scdrugmap.study.spec import ReproduceSpec

#: One command per tool that runs as it stands on the files that `scdrugmap demo` leaves.
EXAMPLES = {
    "embed": "scdrugmap embed cells.h5ad --model pca -o embedded.h5ad",
    "train": "scdrugmap train cells.h5ad --model pca --groups sample -o predictor",
    "predict": "scdrugmap predict cells.h5ad --predictor predictor -o calls.csv",
    "harmonize": "scdrugmap harmonize cells.h5ad --column response -o harmonized.h5ad",
    "concat": "scdrugmap concat first=a.h5ad second=b.h5ad -o studies.h5ad",
    "benchmark": "scdrugmap benchmark cells.h5ad --model pca --setting cross -o results",
    "explain": "scdrugmap explain cells.h5ad --predictor predictor -o explained",
}

#: What the short help of a command shows beside input, output and --spec; all of it where a command is not named.
COMMON: dict[str, tuple[str, ...]] = {
    "embed": ("layer", "model", "checkpoint", "device", "batch_size", "store", "overwrite"),
    "train": ("label_key", "groups", "model", "use_rep", "strategy", "head", "adapt", "calibrate", "conformal", "device"),
    "predict": ("reference", "sample_key", "predictor", "model", "strategy", "n_shots", "abstain", "on_shift", "device"),
    "benchmark": (
        "label_key", "study_key", "models", "strategy", "head", "setting", "by", "split", "n_folds", "preset", "n_jobs",
    ),
    "explain": ("key", "predictor", "method", "by", "genes", "source", "device", "json"),
    "reproduce": ("studies", "models", "strategy", "figures", "presets", "setting", "n_jobs", "device", "plan", "store", "yes"),
}  # fmt: skip
#: Groups of commands in the help.
CELLS, ASK, COMPARE, MORE = "Prepare cells", "Predict", "Compare models", "Models, studies, files"
PANELS = {"harmonize": CELLS, "concat": CELLS, "embed": CELLS, "benchmark": COMPARE}

app = App(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Predict and benchmark single-cell drug response. -h explains any command.\n\nExample: scdrugmap demo",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 input refused, 4 partly done.",
)
app.add_typer(
    _models.app,
    name="models",
    help="List, describe, fetch and verify models and their checkpoints.",
    rich_help_panel=MORE,
)
app.add_typer(
    _datasets.app, name="datasets", help="List, describe, fetch and verify curated studies.", rich_help_panel=MORE
)
app.add_typer(
    _results.app,
    name="results",
    help="Join the results of several labs; export them as a site.",
    rich_help_panel=COMPARE,
)
app.add_typer(_cache.app, name="cache", help="List, measure and clear what is kept to be reused.", rich_help_panel=MORE)


def _version(show: bool) -> None:
    if show:
        from scdrugmap import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Entry of every command."""


@app.command(rich_help_panel="Start")
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("scdrugmap_demo"),
    seed: Annotated[int, typer.Option(help="Seed of the simulated studies.")] = 0,
) -> None:
    """Run the main job on simulated studies: embed, train, predict, benchmark, report. No download.

    Example: scdrugmap demo
    """
    from scdrugmap.cli._demo import run_demo

    run_demo(output, seed)


@app.command(rich_help_panel=CELLS)
def check(
    input: Annotated[Path, typer.Argument(help="Cells: .h5ad, .h5mu, .zarr, or a folder of .h5ad files.")],
    layer: Annotated[str | None, typer.Option(help="Layer with raw counts (default: X).")] = None,
    mod: Annotated[str, typer.Option(help="Modality of a MuData.")] = "rna",
    label_key: Annotated[str, typer.Option(help="Column of obs with the labels.")] = "response",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say whether a file is fit for use: counts, genes, species, labels. Exit code 3 if it is not.

    Example: scdrugmap check cells.h5ad
    """
    import scdrugmap as sd
    from scdrugmap.cli._console import print_json
    from scdrugmap.datasets.files import open_cells

    report = sd.pp.check(open_cells(input), layer=layer, label_key=label_key, mod=mod)
    if json:
        print_json(**report.to_dict())
    else:
        typer.echo(str(report))
    if not report.ok:
        raise typer.Exit(REFUSED)


def _run(spec: FileSpec, as_json: bool) -> None:
    from scdrugmap.cli import _prepare, _runs
    from scdrugmap.spec import RunSpec

    if isinstance(spec, RunSpec):
        _runs.run(spec, as_json)
    else:
        _prepare.run(spec, as_json)


for _name, _spec in (PREPARE | TOOLS).items():
    app.command(_name, rich_help_panel=PANELS.get(_name, ASK))(command(_spec, _run, EXAMPLES[_name], COMMON.get(_name)))


@app.command(rich_help_panel=COMPARE)
def recommend(
    input: Annotated[Path, typer.Argument(help="Cells: .h5ad or .h5mu.")],
    model: Annotated[list[str] | None, typer.Option("--model", "-m", help="Model; repeat it; all by default.")] = None,
    commercial: Annotated[
        bool, typer.Option(rich_help_panel="Model", help="Only weights that may be used commercially.")
    ] = False,
    label_key: Annotated[str, typer.Option(help="Column of obs with the labels.")] = "response",
    sample_key: Annotated[str, typer.Option(help="Column of obs with the samples.")] = "sample",
    study_key: Annotated[str, typer.Option(help="Column of obs with the study.")] = "study",
    seconds: Annotated[
        float,
        typer.Option(rich_help_panel="Evaluation", help="Seconds to measure the speed of a model for; 0 for none."),
    ] = 2.0,
    probe: Annotated[
        bool, typer.Option(rich_help_panel="Evaluation", help="Compare models on the labels, whole samples left out.")
    ] = True,
    layer: Annotated[str | None, typer.Option(help="Layer with raw counts (default: X).")] = None,
    mod: Annotated[str, typer.Option(help="Modality of a MuData.")] = "rna",
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of cells and folds.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write the table (.csv, .parquet).")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what each model can do with these cells on this machine, and which is best where one is. No download.

    Example: scdrugmap recommend cells.h5ad
    """
    from scdrugmap.cli._choose import run_recommend

    run_recommend(
        input, output, as_json=json, models=model or "all", commercial=commercial, label_key=label_key,
        sample_key=sample_key, study_key=study_key, seconds=seconds, probe=probe, layer=layer, mod=mod, device=device,
        rng=seed,
    )  # fmt: skip


@app.command(rich_help_panel=MORE)
def bench(
    more: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="Further models.")] = None,
    models: Annotated[
        list[str] | None, typer.Option("--models", "-m", help="Models; all but Llama by default.")
    ] = None,
    cells: Annotated[int, typer.Option(help="Most cells of a pass.")] = 32,
    seconds: Annotated[float, typer.Option(help="Time for the passes of one model.")] = 30.0,
    size: Annotated[str, typer.Option(help="official, or tiny to see that everything runs.")] = "official",
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write the table (.csv, .parquet).")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure how fast this machine embeds at the official sizes, with random weights. No download.

    Example: scdrugmap bench --models scgpt tgpt --cells 8
    """
    from scdrugmap.cli._bench import run_bench

    run_bench(output, as_json=json, models=[*(models or []), *(more or [])], cells=cells, seconds=seconds, size=size, device=device,
              precision=precision)  # fmt: skip


def _reproduce(spec: ReproduceSpec, as_json: bool) -> None:
    from scdrugmap.cli._reproduce import run_reproduce

    run_reproduce(spec, as_json)


app.command("reproduce", rich_help_panel=COMPARE)(
    command(ReproduceSpec, _reproduce, "scdrugmap reproduce --plan --no-measure", COMMON["reproduce"])
)


@app.command(rich_help_panel=COMPARE)
def report(
    results: Annotated[Path, typer.Argument(help="Folder that a benchmark wrote, or a run store.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")] = Path("report.html"),
    explained: Annotated[
        Path | None, typer.Option("--explained", help="Folder that scdrugmap explain wrote, for a section Why.")
    ] = None,
) -> None:
    """Write the one-page HTML report of a finished benchmark.

    Example: scdrugmap report results -o report.html
    """
    from scdrugmap.cli._runs import run_report

    run_report(results, output, explained)


app.command("serve", rich_help_panel=MORE)(_serve.serve)
