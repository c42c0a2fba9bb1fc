"""Run specifications: one description of a run for Python, the command line (YAML) and the web server."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scdrugmap._errors import InputError

Label = str | int | float


class RunSpec(BaseModel):
    """What every run has: where it reads, where it writes, and the seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: Path = Field(description="AnnData (.h5ad) or MuData (.h5mu) file.")
    output: Path = Field(description="File or folder to write.")
    mod: str = Field("rna", description="Modality of a MuData.")
    layer: str | None = Field(None, description="Layer with the raw counts; X if not given.")
    device: str | None = Field(None, description="auto, cpu, cuda, mps.")
    seed: int = Field(0, ge=0, description="Seed of everything random in the run.")

    @classmethod
    def build(cls, file: Path | None = None, **values: Any) -> Self:
        """Join a YAML file and explicit values; the latter win.

        Raises
        ------
        InputError
            On unreadable YAML, unknown fields or unusable values.
        """
        merged: dict[str, Any] = read_yaml(file) if file is not None else {}
        merged |= {k: v for k, v in values.items() if v is not None}
        try:
            return cls(**merged)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"])) or "specification"
            known = ", ".join(cls.model_fields)
            raise InputError(name, first.get("input"), first["msg"], f"the fields are {known}.") from None

    def to_yaml(self) -> str:
        """Return the specification as YAML that :meth:`build` reads again."""
        import yaml

        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False)


class EmbedSpec(RunSpec):
    """``scdrugmap embed``."""

    model: list[str] = Field(min_length=1)
    checkpoint: Path | None = None
    key_added: str | None = None
    groups: str | None = None
    batch_size: int | None = Field(None, gt=0)
    precision: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    store: Path | None = None
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the model.")


class TrainSpec(RunSpec):
    """``scdrugmap train``."""

    model: str | None = None
    use_rep: str | None = None
    strategy: Literal["frozen", "lora"] = "frozen"
    checkpoint: Path | None = None
    label_key: str = "response"
    groups: str | None = None
    head: str = "mlp"
    overwrite: bool = Field(False, description="Replace an earlier predictor of this name.")
    options: dict[str, Any] = Field(default_factory=dict, description="Further arguments of sd.tl.train.")


class PredictSpec(RunSpec):
    """``scdrugmap predict``."""

    predictor: Path
    checkpoint: Path | None = Field(
        None, description="Where the checkpoint of the predictor lies now, if it was moved."
    )
    key_added: str = "response"
    options: dict[str, Any] = Field(default_factory=dict, description="Further arguments of sd.tl.predict_response.")


class BenchmarkSpec(RunSpec):
    """``scdrugmap benchmark``."""

    models: list[str] = Field(min_length=1)
    strategy: str = "frozen"
    setting: Literal["pooled", "cross"] = "pooled"
    by: list[str] | None = None
    split: Literal["auto", "sample", "study", "cell"] = "auto"
    label_key: str = "response"
    study_key: str = "study"
    sample_key: str = "sample"
    n_folds: int = Field(10, ge=2)
    head: str = "mlp"
    preset: str | None = None
    n_jobs: int | None = None
    store: Path | None = None
    options: dict[str, Any] = Field(default_factory=dict, description="Further arguments of sd.tl.benchmark.")


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a mapping from a YAML file."""
    import yaml

    try:
        values = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError("spec", f"{file}: {error}", "a readable YAML file", "check the path and the syntax.") from None
    if not isinstance(values, dict):
        raise InputError(
            "spec", f"{file}: {type(values).__name__}", "a mapping of fields", "write 'field: value' lines."
        )
    return values
