"""The specification of the whole published study."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Self, get_origin

from pydantic import model_validator

from scdrugmap._errors import SpecError
from scdrugmap.spec import Preset, Setting, Spec, Strategy, kinds_of, option

Figure = Literal["1", "2", "3", "4", "5", "6", "7"]
Category = Literal["tissue", "drug_type", "cancer_type", "regimen"]


class ReproduceSpec(Spec):
    """Run the published study: every table and figure, beside the version without leaks. Lists may be comma-separated."""

    figures: list[Figure] = option(list("1234567"), "evaluation", "Figures to make, 1 to 7.", min_length=1)
    models: list[str] | None = option(None, "model", "Models; by default the ten of the paper.")
    studies: list[str] | None = option(
        None, "data", "Data sets of the catalogue by key, number or accession; by default all that the figures show."
    )
    store: Path = option(Path("scdrugmap_reproduce"), "output", "Folder of the run; a killed run resumes from it.")
    presets: list[Preset] = option(
        ["published", "published-code", "strict"], "evaluation",
        "published (10 folds over random cells), published-code (one 80/20 division), strict (whole samples, studies).",
        min_length=1,
    )  # fmt: skip
    setting: list[Setting] = option(["pooled", "cross"], "evaluation", "pooled, cross or both.", min_length=1)
    strategy: list[Strategy] = option(["frozen", "lora", "prompt"], "model", "frozen, lora, prompt.", min_length=1)
    by: list[Category] = option(
        ["tissue", "drug_type", "cancer_type", "regimen"], "evaluation", "Columns whose values are the categories.",
        min_length=1,
    )  # fmt: skip
    n_folds: int = option(10, "evaluation", "Folds of the pooled setting.", ge=2)
    embed_options: dict[str, dict[str, Any]] | None = option(
        None, "model", "Options of a model, as name='{option: value}'; repeat it."
    )
    lora_models: list[str] | None = option(None, "model", "Models to fine-tune; by default all that can be.")
    lora_by: list[Category] | None = option(
        None, "evaluation", "Columns of the fine-tuned runs; by default those of by."
    )
    lora_options: dict[str, Any] | None = option(None, "model", "Parameter of the adapters as name=value; repeat it.")
    shots: list[int] = option(
        [0, 1, 4, 16], "evaluation", "Labelled cells per class of the left-out study that join; empty for no curve."
    )
    prompt_shots: list[int] = option([0, 2], "model", "Examples per class in a prompt; 0 is zero-shot.")
    prompt_cells: int | None = option(None, "model", "Most cells of a study that a chat model is asked about.", gt=0)
    prompt_options: dict[str, Any] | None = option(None, "model", "Argument of the prompt as name=value; repeat it.")
    prices: list[float] | None = option(
        None, "model", "Price of a million tokens in, and of a million out.", min_length=2, max_length=2
    )
    budget: float | None = option(None, "model", "Most money for prompted models; prices have to be given.", ge=0)
    baselines: list[str] = option(
        ["all_sensitive", "majority", "random", "depth", "hvg", "pca", "sample_probe"], "evaluation", "Baselines."
    )
    predictors: bool = option(False, "output", "Also pack one calibrated predictor per drug class and tissue.")
    push_to: str | None = option(None, "output", "Owner on the Hugging Face hub that packed predictors go to.")
    labels: Path | None = option(
        None, "data", "CSV for studies whose source has no labels: dataset, response, and cell, sample or neither."
    )
    source: Literal["auto", "published", "drmref", "geo"] = option("auto", "data", "Where studies come from.")
    dask: str | None = option(None, "machine", "Address of a Dask scheduler that the grids run on.")
    n_jobs: int | None = option(None, "machine", "Parallel processes; -1 for all cores.")
    device: str | None = option(None, "machine", "auto, cpu, cuda, cuda:1 or mps; by default that of the settings.")
    batch_size: int | None = option(None, "machine", "Most cells in one forward pass.", gt=0)
    measure: bool = option(True, "machine", "Measure the speed of the models for the hours of the plan.")
    seed: int = option(0, "machine", "Seed of everything random in the run.", ge=0)
    inputs: dict[str, Any] | None = option(
        None, "data", "Digests of the inputs, as run.yaml holds them; an input that differs is listed."
    )
    plan: bool = option(False, "output", "Show the plan and end.")
    yes: bool = option(False, "output", "Accept the plan, and the licences in it, without a question.")

    @model_validator(mode="before")
    @classmethod
    def _split(cls, values: Any) -> Any:
        """Take comma-separated lists apart."""
        if not isinstance(values, dict):
            return values
        out = dict(values)
        for name, value in values.items():
            lists = name in cls.model_fields and any(
                get_origin(kind) is list for kind in kinds_of(cls.model_fields[name].annotation)
            )
            if lists and value is not None:
                given = list(value) if isinstance(value, list | tuple | set) else [value]
                parts = [p.strip() if isinstance(p, str) else p for v in given for p in str(v).split(",")]
                if name == "figures":  # 1b-d is drawn with the rest of figure 1
                    parts = [re.sub(r"(?<=\d)[a-e](-[a-e])?$", "", str(p)) for p in parts]
                parts = [p for p in parts if p != ""]
                out[name] = parts if name == "prices" else list(dict.fromkeys(parts))
        return out

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if self.budget is not None and self.prices is None and "prompt" in self.strategy:
            raise SpecError("budget", self.budget, "prices to hold it against", "pass --prices 0.15,0.60 as well.")
        return self
