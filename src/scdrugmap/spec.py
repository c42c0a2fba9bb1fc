"""Run specifications: one description of a run for Python, the command line (flags, YAML) and the web server.

A field is one argument of a tool: its name, type, default, group and help stand here and nowhere else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from scdrugmap._errors import SpecError, UnknownNameError
from scdrugmap._logging import warn

Group = Literal["data", "model", "evaluation", "machine", "output"]
Setting = Literal["pooled", "cross"]
Preset = Literal["published", "published-code", "strict"]
Strategy = Literal["frozen", "lora", "prompt"]
Adapt = Literal["none", "study", "coral", "pathways"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
#: Arguments of tools that only Python can give.
PYTHON_ONLY = frozenset({"adata", "copy", "progress", "on_unit"})


def option(default: Any, group: Group, description: str, **extra: Any) -> Any:
    """Describe a field.

    Parameters
    ----------
    default
        Its value where none is given; ``...`` if one must be.
    group
        Where forms and help show it.
    description
        What it is, in one or two sentences.
    **extra
        ``flag`` (the flags of the command line), ``argument`` (the names that the tool may have for it),
        ``former`` (its name in earlier versions), ``reads`` (``"cells"``: the tool gets the content of the file), ``words``
        (``True``: names and values of pairs are taken as they are typed), and
        limits of :func:`pydantic.Field`.
    """
    kept: dict[str, Any] = {k: extra.pop(k) for k in ("flag", "argument", "former", "reads", "words") if k in extra}
    kept["group"] = group
    return Field(default, description=description, json_schema_extra=kept, **extra)


class Spec(BaseModel):
    """What every specification can: be built from YAML and values, and be written as YAML."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _tidy(cls, values: Any) -> Any:
        """Take fields by their former names, those among the options, and single values out of their list."""
        if not isinstance(values, dict):
            return values
        former = {extra_of(f)["former"]: n for n, f in cls.model_fields.items() if "former" in extra_of(f)}
        options = dict(values.get("options") or {})
        lifted = {n: options.pop(n) for n in list(options) if n in cls.model_fields or n in former}
        twice = sorted(lifted.keys() & values.keys())
        if twice:
            raise SpecError("options", twice[0], "a field or an option, not both", f"leave {twice[0]} in one place.")
        out = {**values, **lifted, **({"options": options} if lifted else {})}
        for old, new in former.items():
            if old in out:
                warn(f"{old} is called {new} now", FutureWarning)
                out.setdefault(new, out.pop(old))
        for name, value in out.items():
            if isinstance(value, list) and len(value) == 1 and name in cls.model_fields and _takes_one(cls, name):
                out[name] = value[0]
        return out

    @classmethod
    def build(cls, file: Path | None = None, **values: Any) -> Self:
        """Join a YAML file and explicit values; the latter win.

        Parameters
        ----------
        file
            YAML file with fields.
        **values
            Fields; ``None`` is not given.

        Raises
        ------
        SpecError
            On unreadable YAML, unknown fields or unusable values.
        """
        merged: dict[str, Any] = read_yaml(file) if file is not None else {}
        merged |= {k: v for k, v in values.items() if v is not None}
        try:
            return cls(**merged)
        except ValidationError as error:
            # a misspelt name explains the one that is missing
            first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
            if isinstance(first.get("ctx", {}).get("error"), SpecError):
                raise first["ctx"]["error"] from None
            name = str(first["loc"][0]) if first["loc"] else "specification"
            if first["type"] == "missing" and name in cls.model_fields:
                field = cls.model_fields[name]
                fix = f"pass {extra_of(field).get('flag', ['--' + name])[0] if name != 'input' else 'a file'}."
                raise SpecError(name, "nothing", (field.description or name).rstrip("."), fix) from None
            known = ", ".join(cls.model_fields)
            message = first["msg"].removeprefix("Value error, ")
            raise SpecError(name, first.get("input"), message, f"the fields are {known}.") from None

    def to_yaml(self) -> str:
        """Return the specification as YAML that :meth:`build` reads again."""
        import yaml

        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False)

    def arguments(self, function: Callable[..., Any]) -> dict[str, Any]:
        """Return the arguments for a tool: the fields that it knows, and the options.

        Parameters
        ----------
        function
            The tool.

        Raises
        ------
        UnknownNameError
            For an option that the tool does not know.
        """
        parameters = inspect.signature(function).parameters
        known = {n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD} - PYTHON_ONLY
        out, options = {}, getattr(self, "options", {})
        for name, field in type(self).model_fields.items():
            taken = next((n for n in extra_of(field).get("argument", [name]) if n in known), None)
            value = getattr(self, name)
            if taken is not None and value is not None:
                out[taken] = value
        if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
            for name in options:
                if name not in known:
                    raise UnknownNameError("options", name, sorted(known - out.keys() | type(self).model_fields.keys()))
        return out | options


class FileSpec(Spec):
    """What every command has that makes files of files."""

    #: Public function that is called, and endings of what it writes (a folder if there are none).
    tool: ClassVar[str] = ""
    endings: ClassVar[tuple[str, ...]] = ()

    input: Path = option(
        ..., "data", "AnnData (.h5ad) or MuData (.h5mu) file with raw counts, zarr store, or folder of .h5ad files."
    )
    output: Path = option(..., "output", "File or folder to write.", flag=["--output", "-o"])
    mod: str = option("rna", "data", "Modality of a MuData.")


class RunSpec(FileSpec):
    """What every run has beside its files: layer, machine and seed."""

    layer: str | None = option(None, "data", "Layer with the raw counts; X if not given.")
    device: str | None = option(None, "machine", "auto, cpu, cuda, cuda:1 or mps; by default that of the settings.")
    seed: int = option(0, "machine", "Seed of everything random in the run.", ge=0, argument=["rng"])
    options: dict[str, Any] = option(
        {}, "model", "Further argument of the tool or the model as name=value; repeat it.", flag=["--set"]
    )


class EmbedSpec(RunSpec):
    """Embed cells with one or several models."""

    tool: ClassVar[str] = "tl.embed"
    endings: ClassVar[tuple[str, ...]] = (".h5ad", ".h5mu", ".zarr")

    model: list[str] = option(..., "model", "Model; repeat it for several.", min_length=1, flag=["--model", "-m"])
    checkpoint: Path | None = option(None, "model", "Official checkpoint: folder, file or registry variant.")
    key_added: str | None = option(None, "output", "Name instead of the model's key.")
    overwrite: bool = option(False, "output", "Let the output replace the input.")
    context: str | None = option(
        None, "data", "Column of obs for models whose cells see each other: cells with one value form one group.",
        former="groups",
    )  # fmt: skip
    batch_size: int | None = option(None, "machine", "Most cells in one forward pass.", gt=0)
    precision: Precision | None = option(None, "machine", "auto, float32, bfloat16 or float16.")
    store: Path | None = option(None, "output", "Folder from which a killed run resumes.")


class _Trained(RunSpec):
    """What training and prediction share."""

    use_rep: str | list[str] | dict[str, Any] | None = option(
        None, "model", "Embedding in obsm instead of a model; repeat it for several."
    )
    label_key: str = option("response", "data", "Column of obs with the labels.")
    batch_size: int | None = option(None, "machine", "Most cells in one forward pass.", gt=0)
    precision: Precision | None = option(None, "machine", "auto, float32, bfloat16 or float16.")


class TrainSpec(_Trained):
    """Train a predictor on labelled cells and save it as a folder."""

    tool: ClassVar[str] = "tl.train"

    model: str | None = option(None, "model", "Model to embed with or to adapt.", flag=["--model", "-m"])
    strategy: Literal["frozen", "lora"] = option("frozen", "model", "frozen, or lora for adapters in the model.")
    checkpoint: Path | None = option(None, "model", "Official checkpoint: folder, file or registry variant.")
    groups: str | Literal[False] | None = option(
        None, "data", "Column of obs whose cells stay together; by default sample; false splits single cells."
    )
    context: str | None = option(None, "data", "Column of obs for models whose cells see each other.")
    head: str = option("mlp", "model", "mlp, published or logistic.")
    head_options: dict[str, Any] | None = option(None, "model", "Parameter of the head as name=value; repeat it.")
    lora_options: dict[str, Any] | None = option(None, "model", "Parameter of the adapters as name=value; repeat it.")
    adapt: Adapt = option(
        "none", "model", "How a new study is brought to the training: none, study, coral or pathways."
    )
    study_key: str = option("study", "data", "Column of obs with the study.")
    weight_key: str | None = option(None, "data", "Column of obs with the weight of each cell in training.")
    calibrate: Literal["sigmoid", "isotonic"] | None = option(
        None, "evaluation", "Calibrate the scores on held-out groups: sigmoid for few samples, isotonic for many."
    )
    conformal: bool | float = option(
        False, "evaluation", "Learn prediction sets with this coverage; true stands for 0.9."
    )
    conformal_by: str | None = option(None, "evaluation", "Column of obs within whose values the coverage is to hold.")
    ood: bool = option(False, "evaluation", "Learn a flag for cells that lie far from all training cells.")
    n_folds: int = option(5, "evaluation", "Folds of the cross-fitting behind calibration and sets.", ge=2)
    overwrite: bool = option(False, "output", "Replace an earlier predictor of this name.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.model is None) == (self.use_rep is None):
            raise ValueError("model or use_rep, one of the two")
        return self


class PredictSpec(_Trained):
    """Predict the response of each cell, with a saved predictor or after training on a reference."""

    tool: ClassVar[str] = "tl.predict_response"
    endings: ClassVar[tuple[str, ...]] = (".h5ad", ".h5mu", ".zarr", ".csv", ".parquet")

    overwrite: bool = option(False, "output", "Let the output replace the input.")
    predictor: Path | None = option(None, "model", "Folder of a saved predictor.", flag=["--predictor", "-p"])
    model: str | None = option(
        None, "model", "Without a predictor: model to train on the reference, or to prompt.", flag=["--model", "-m"]
    )
    reference: Path | None = option(
        None, "data", "File with labelled cells to train on, or to take examples from.", reads="cells"
    )
    strategy: Strategy = option("frozen", "model", "frozen, lora or prompt.")
    key_added: str = option("response", "output", "First part of the names that are written.")
    n_shots: int = option(0, "evaluation", "Labelled cells (or samples) per class of the input that join.", ge=0)
    shot_unit: Literal["cell", "sample"] = option("cell", "evaluation", "Whether shots are cells or whole samples.")
    shot_weight: float | None = option(
        1.0, "evaluation", "Weight of all shots together relative to all cells of the reference.", gt=0
    )
    adapt: Adapt = option(
        "none", "model", "How a new study is brought to the training: none, study, coral or pathways."
    )
    sample_key: str | None = option(None, "data", "Column of obs with samples: adds a call for each of them.")
    conformal: bool | float | None = option(
        None, "evaluation", "Write prediction sets: true for the predictor's coverage, or another one."
    )
    ood: bool | None = option(None, "evaluation", "Write the out-of-domain flag; by default if the predictor has it.")
    checkpoint: Path | None = option(
        None, "model", "Checkpoint of the model: where it lies here, if not where the predictor was trained."
    )
    abstain: float | Literal["set"] | None = option(
        None, "evaluation", "Call no cell below this probability; set: none whose prediction set is not one class."
    )
    on_shift: Literal["warn", "abstain", "ignore"] = option(
        "warn", "evaluation", "Where the query is unlike the training data: warn and flatten, call no cell, or ignore."
    )


class BenchmarkSpec(RunSpec):
    """Benchmark models without leaks: result/ (Parquet), results.csv, report.html and the specification."""

    tool: ClassVar[str] = "tl.benchmark"

    models: list[str] = option(..., "model", "Model or key of obsm; repeat it.", min_length=1, flag=["--model", "-m"])
    strategy: Strategy | list[Strategy] = option("frozen", "model", "frozen, lora or prompt; repeat it for several.")
    head: str | list[str] = option("mlp", "model", "mlp, published or logistic; repeat it for several.")
    head_options: dict[str, Any] | None = option(None, "model", "Parameter of the head as name=value; repeat it.")
    lora_options: dict[str, Any] | None = option(None, "model", "Parameter of the adapters as name=value; repeat it.")
    adapt: Adapt | list[Adapt] = option(
        "none", "model", "How a new study is brought to the training: none, study, coral or pathways; repeat it."
    )
    embed_options: dict[str, dict[str, Any]] | None = option(
        None, "model", "Arguments of embed per model, as name='{argument: value}'; repeat it."
    )
    setting: Setting | list[Setting] = option(
        "pooled", "evaluation", "pooled (folds) or cross (whole studies left out); repeat it for both."
    )
    by: list[str | None] | None = option(None, "evaluation", "Column of obs whose values are evaluated one by one.")
    split: str | list[str] = option(
        "auto", "evaluation", "What stays whole: auto, sample, study, patient, any column of obs, or cell."
    )
    label_key: str = option("response", "data", "Column of obs with the labels.")
    study_key: str = option("study", "data", "Column of obs with the study.")
    sample_key: str = option("sample", "data", "Column of obs with the sample.")
    patient_key: str = option("patient", "data", "Column of obs with the patient.")
    n_folds: int = option(10, "evaluation", "Folds of the pooled setting.", ge=2)
    test_size: float | None = option(
        None, "evaluation", "With cells divided at random: one division with this share of test cells.", gt=0, lt=1
    )
    cv: str | None = option(
        None, "evaluation", "Column of obs with the fold that tests each cell, instead of folds made here."
    )
    metrics: list[str] | None = option(None, "evaluation", "Metric; by default all; repeat it.", flag=["--metric"])
    levels: tuple[str, ...] = option(
        ("cell", "sample"), "evaluation", "cell, sample or patient; repeat it.", flag=["--level"]
    )
    baselines: list[str] | None = option(
        None, "evaluation", "Baseline; by default all that the data allow; repeat it.", flag=["--baseline"]
    )
    preset: str | None = option(None, "evaluation", "published, published-code or strict; what you give yourself wins.")
    duplicates: Literal["merge", "ignore"] = option(
        "merge", "evaluation", "merge keeps copies of a cell on one side of a split, ignore does not look for them."
    )
    group_context: Literal["refuse", "mark"] = option(
        "refuse", "evaluation", "For embeddings whose cells see each other across a split: refuse or mark."
    )
    batch_size: int | None = option(None, "machine", "Most cells in one forward pass.", gt=0)
    precision: Precision | None = option(None, "machine", "auto, float32, bfloat16 or float16.")
    n_jobs: int | None = option(None, "machine", "Parallel processes; -1 for all cores.")
    store: Path | None = option(
        None, "output", "Folder from which a killed run resumes; by default store/ in the output."
    )


class ExplainSpec(RunSpec):
    """Explain a predictor: genes that differ between samples, what it looks at, and whether that may be believed."""

    tool: ClassVar[str] = "tl.attribute"

    predictor: Path = option(..., "model", "Folder of a saved predictor.", flag=["--predictor", "-p"])
    method: Literal["auto", "linear", "ig", "gradient_x_input", "occlusion"] = option(
        "auto", "evaluation", "auto, linear, ig (integrated gradients), gradient_x_input or occlusion."
    )
    store: Literal["table", "cells"] = option(
        "table", "output", "table, or cells for the attributions of single cells, too."
    )
    max_cells_per_sample: int | None = option(200, "evaluation", "Cells explained in each sample.", gt=0)
    n_steps: int = option(20, "evaluation", "Steps of the paths to begin with.", ge=1, le=256)
    baseline: str = option("auto", "evaluation", "auto, empty, mean, sensitive, or the name of a cell.")
    by: str = option("sample", "evaluation", "Column of obs with the samples.")
    folder: Path | None = option(
        None, "output", "Folder that keeps finished blocks of the attribution: a killed command goes on there."
    )
    key: str = option("response", "data", "Column of obs with the labels, for what differs between samples.")
    genes: list[str] | None = option(None, "evaluation", "Gene to knock out in silico; repeat it.", flag=["--gene"])
    n_null: int = option(100, "evaluation", "Random genes that each knock-out is compared with.", ge=0)
    source: str = option(
        "resistance", "evaluation", "Gene sets: resistance, hallmark, progeny, collectri or a GMT file."
    )


class HarmonizeSpec(FileSpec):
    """Give genes their approved names, and the labels of a column the words resistant and sensitive."""

    tool: ClassVar[str] = "pp.harmonize_genes"
    endings: ClassVar[tuple[str, ...]] = (".h5ad", ".h5mu")

    table: list[str] | None = option(
        None, "data", "Gene table: a file, or hgnc, which is fetched; by default that set if it is here, else the "
        "packaged one; repeat it for several.",
    )  # fmt: skip
    column: str | None = option(None, "data", "Column of obs with the labels of the study.")
    mapping: dict[str, str | None] | None = option(
        None, "data", "What a value of the column means, as value=resistant, value=sensitive or value= for neither; "
        "repeat it.", flag=["--map"], words=True,
    )  # fmt: skip
    key_added: str = option("response", "output", "Column of obs to write the labels to.")


class ConcatSpec(FileSpec):
    """Put studies under one another into one file, and find cells that several of them share."""

    tool: ClassVar[str] = "pp.concat_studies"
    endings: ClassVar[tuple[str, ...]] = (".h5ad",)

    input: list[str] = option(  # type: ignore[assignment]
        ..., "data", "Files of the studies, each as name=file, or a file whose name is that of the study.", min_length=2,
        argument=["studies"],
    )  # fmt: skip
    output: Path = option(..., "output", "File to write.", flag=["--output", "-o"], argument=["path"])
    join: Literal["inner", "outer"] = option(
        "inner", "data", "inner keeps the genes that all studies have, outer all genes with zeros where one is absent."
    )
    layer: str | None = option(None, "data", "Layer with the raw counts; X if not given.")


#: Commands that prepare cells, by name.
PREPARE: dict[str, type[FileSpec]] = {"harmonize": HarmonizeSpec, "concat": ConcatSpec}
#: The tools that the command line and the web server offer, by name.
TOOLS: dict[str, type[RunSpec]] = {
    "embed": EmbedSpec,
    "train": TrainSpec,
    "predict": PredictSpec,
    "benchmark": BenchmarkSpec,
    "explain": ExplainSpec,
}


def kinds_of(annotation: Any) -> list[Any]:
    """Return the alternatives of a type, without ``None``."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return [p for p in parts if p is not type(None)]


def _takes_one(spec: type[Spec], name: str) -> bool:
    """Whether a field holds one value or a list of them."""
    lists = [get_origin(kind) is list for kind in kinds_of(spec.model_fields[name].annotation)]
    return any(lists) and not all(lists)


def extra_of(field: Any) -> dict[str, Any]:
    """Return what :func:`option` keeps beside a field."""
    extra: dict[str, Any] = field.json_schema_extra
    return extra


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a mapping from a YAML file."""
    import yaml

    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise SpecError("spec", f"{file}: {error}", "a readable YAML file", "check the path and the syntax.") from None
    if not isinstance(values, dict):
        raise SpecError(
            "spec", f"{file}: {type(values).__name__}", "a mapping of fields", "write 'field: value' lines."
        )
    return values
