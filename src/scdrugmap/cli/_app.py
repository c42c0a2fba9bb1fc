"""The commands and their flags; each hands a run specification to a function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scdrugmap.cli import _datasets, _models, _serve

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Predict and benchmark single-cell drug response with foundation models.",
)
app.add_typer(_models.app, name="models", help="List, describe and fetch models and their checkpoints.")
app.add_typer(_datasets.app, name="datasets", help="List, describe and fetch curated studies.")
app.command("serve")(_serve.serve)

Input = Annotated[Path | None, typer.Argument(help="Cells: .h5ad or .h5mu, raw counts.", show_default=False)]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Where to write.", show_default=False)]
Spec = Annotated[Path | None, typer.Option("--spec", help="YAML run specification; flags override it.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.")]
Layer = Annotated[str | None, typer.Option(help="Layer with raw counts (default: X).")]
Mod = Annotated[str | None, typer.Option(help="Modality of a MuData.")]
Checkpoint = Annotated[Path | None, typer.Option(help="Official checkpoint: folder, file or registry variant.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Further option as name=value; may be repeated.")]


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


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("scdrugmap_demo"),
    seed: Annotated[int, typer.Option(help="Seed of the simulated studies.")] = 0,
) -> None:
    """Run the main job on simulated studies: embed, train, predict, benchmark, report. No download."""
    from scdrugmap.cli._demo import run_demo

    run_demo(output, seed)


@app.command()
def check(
    input: Annotated[Path, typer.Argument(help="Cells: .h5ad or .h5mu.")],
    layer: Layer = None,
    mod: Annotated[str, typer.Option(help="Modality of a MuData.")] = "rna",
    label_key: Annotated[str, typer.Option(help="Column of obs with the labels.")] = "response",
) -> None:
    """Say whether a file is fit for use: counts, genes, species, labels. Exit code 1 if it is not."""
    import scdrugmap as sd
    from scdrugmap.cli._io import read_cells

    report = sd.pp.check(read_cells(input), layer=layer, label_key=label_key, mod=mod)
    typer.echo(str(report))
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def embed(
    input: Input = None,
    output: Output = None,
    model: Annotated[list[str] | None, typer.Option("--model", "-m", help="Model; may be repeated.")] = None,
    checkpoint: Checkpoint = None,
    key_added: Annotated[str | None, typer.Option(help="Name instead of the model's key.")] = None,
    groups: Annotated[str | None, typer.Option(help="Column of obs for models whose cells see each other.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Most cells in one forward pass.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    store: Annotated[Path | None, typer.Option(help="Folder from which a killed run resumes.")] = None,
    layer: Layer = None,
    mod: Mod = None,
    device: Device = None,
    seed: Seed = None,
    set_: Set = None,
    spec: Spec = None,
) -> None:
    """Embed cells and write them with obsm["X_<model>"]."""
    from scdrugmap.cli._runs import run_embed
    from scdrugmap.spec import EmbedSpec

    run_embed(
        EmbedSpec.build(
            spec, input=input, output=output, model=model or None, checkpoint=checkpoint, key_added=key_added,
            groups=groups, batch_size=batch_size, precision=precision, store=store, layer=layer, mod=mod,
            device=device, seed=seed, options=_options(set_),
        )
    )  # fmt: skip


@app.command()
def train(
    input: Input = None,
    output: Output = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model to embed or adapt.")] = None,
    use_rep: Annotated[str | None, typer.Option(help="Embedding in obsm instead of a model.")] = None,
    strategy: Annotated[str | None, typer.Option(help="frozen or lora.")] = None,
    checkpoint: Checkpoint = None,
    label_key: Annotated[str | None, typer.Option(help="Column of obs with the labels.")] = None,
    groups: Annotated[str | None, typer.Option(help="Column of obs whose cells stay together.")] = None,
    head: Annotated[str | None, typer.Option(help="mlp or logistic.")] = None,
    overwrite: Annotated[bool | None, typer.Option("--overwrite", help="Replace an earlier predictor.")] = None,
    layer: Layer = None,
    mod: Mod = None,
    device: Device = None,
    seed: Seed = None,
    set_: Set = None,
    spec: Spec = None,
) -> None:
    """Train a predictor on labelled cells and save it as a folder."""
    from scdrugmap.cli._runs import run_train
    from scdrugmap.spec import TrainSpec

    run_train(
        TrainSpec.build(
            spec, input=input, output=output, model=model, use_rep=use_rep, strategy=strategy, checkpoint=checkpoint,
            label_key=label_key, groups=groups, head=head, overwrite=overwrite, layer=layer, mod=mod, device=device,
            seed=seed, options=_options(set_),
        )
    )  # fmt: skip


@app.command()
def predict(
    input: Input = None,
    output: Output = None,
    predictor: Annotated[Path | None, typer.Option("--predictor", "-p", help="Folder of a saved predictor.")] = None,
    key_added: Annotated[str | None, typer.Option(help="Prefix of the written columns.")] = None,
    layer: Layer = None,
    mod: Mod = None,
    device: Device = None,
    seed: Seed = None,
    set_: Set = None,
    spec: Spec = None,
) -> None:
    """Predict the response of each cell; writes .h5ad, .h5mu, .csv or .parquet by the name of the output."""
    from scdrugmap.cli._runs import run_predict
    from scdrugmap.spec import PredictSpec

    run_predict(
        PredictSpec.build(
            spec, input=input, output=output, predictor=predictor, key_added=key_added, layer=layer, mod=mod,
            device=device, seed=seed, options=_options(set_),
        )
    )  # fmt: skip


@app.command()
def benchmark(
    input: Annotated[
        Path | None, typer.Argument(help="Cells (.h5ad, .h5mu), or a YAML run specification.", show_default=False)
    ] = None,
    output: Output = None,
    model: Annotated[list[str] | None, typer.Option("--model", "-m", help="Model or obsm key; repeat it.")] = None,
    strategy: Annotated[str | None, typer.Option(help="frozen, lora or prompt.")] = None,
    setting: Annotated[str | None, typer.Option(help="pooled or cross.")] = None,
    by: Annotated[list[str] | None, typer.Option(help="Column of obs with categories; repeat it.")] = None,
    split: Annotated[str | None, typer.Option(help="auto, sample, study or cell.")] = None,
    label_key: Annotated[str | None, typer.Option(help="Column of obs with the labels.")] = None,
    study_key: Annotated[str | None, typer.Option(help="Column of obs with the study.")] = None,
    sample_key: Annotated[str | None, typer.Option(help="Column of obs with the sample.")] = None,
    n_folds: Annotated[int | None, typer.Option(help="Folds of the pooled setting.")] = None,
    head: Annotated[str | None, typer.Option(help="mlp or logistic.")] = None,
    preset: Annotated[str | None, typer.Option(help="published or strict.")] = None,
    n_jobs: Annotated[int | None, typer.Option(help="Parallel processes.")] = None,
    store: Annotated[Path | None, typer.Option(help="Folder from which a killed run resumes.")] = None,
    layer: Layer = None,
    mod: Mod = None,
    device: Device = None,
    seed: Seed = None,
    set_: Set = None,
    spec: Spec = None,
) -> None:
    """Benchmark models without leaks; writes result/ (Parquet), results.csv, report.html and the specification."""
    from scdrugmap.cli._runs import run_benchmark
    from scdrugmap.spec import BenchmarkSpec

    if input is not None and input.suffix in (".yaml", ".yml") and spec is None:
        input, spec = None, input
    run_benchmark(
        BenchmarkSpec.build(
            spec, input=input, output=output, models=model or None, strategy=strategy, setting=setting, by=by or None,
            split=split, label_key=label_key, study_key=study_key, sample_key=sample_key, n_folds=n_folds, head=head,
            preset=preset, n_jobs=n_jobs, store=store, layer=layer, mod=mod, device=device, seed=seed,
            options=_options(set_),
        )
    )  # fmt: skip


@app.command()
def report(
    results: Annotated[Path, typer.Argument(help="Folder that a benchmark wrote, or a run store.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")] = Path("report.html"),
) -> None:
    """Write the one-page HTML report of a finished benchmark."""
    from scdrugmap.cli._runs import run_report

    run_report(results, output)


def _options(pairs: list[str] | None) -> dict[str, Any] | None:
    """Read ``name=value`` pairs; values are YAML scalars or lists."""
    import yaml

    from scdrugmap._errors import InputError

    if not pairs:
        return None
    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InputError("--set", pair, "name=value", "write for example --set max_length=64.")
        try:
            options[name.strip().replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError("--set", pair, "a YAML value", "quote it, as in --set name='[1, 2]'.") from None
    return options
