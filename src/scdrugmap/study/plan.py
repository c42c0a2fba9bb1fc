"""What a run would fetch, how long it would take and what it would cost, before anything is opened."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from scdrugmap import download
from scdrugmap._errors import ScDrugMapError
from scdrugmap._logging import get_logger
from scdrugmap.download.catalog import Entry, licence_line
from scdrugmap.study.answers import variants
from scdrugmap.study.chosen import Chosen, choose, short_list
from scdrugmap.study.spec import ReproduceSpec

#: Seconds that may go into measuring; models that are left are estimated from those that were measured.
MEASURE_SECONDS = 45.0
#: Passes of a training step: forward, forward again for the sake of memory, and backward, which is two.
STEP_COST = 4
#: Genes of the simulated cells that are measured; more than the package knows by heart would need a download.
MEASURED_GENES = 2000
#: Tokens of one cell in a prompt of ten, from the published template: instruction, data source, ten genes, answer.
TOKENS_IN, TOKENS_OUT = 75, 12
SHOT_TOKENS = 60


@dataclass(frozen=True, eq=False)
class Plan:
    """The plan of a run; ``print(plan)`` reads well.

    Parameters
    ----------
    spec
        What was asked for.
    studies
        One row per data set: source, bytes (missing: unknown), on this machine or not, cells, licence.
    checkpoints
        One row per model with weights.
    accept
        Licences that have to be accepted: key and text.
    hours
        One row per step and model; NaN where nothing is known.
    prompts
        Cells, tokens and money of the prompted models.
    unlabelled
        Data sets that take no part for want of labels.
    """

    spec: ReproduceSpec
    studies: pd.DataFrame = field(repr=False)
    checkpoints: pd.DataFrame = field(repr=False)
    accept: dict[str, str] = field(repr=False)
    hours: pd.DataFrame = field(repr=False)
    prompts: dict[str, Any] = field(repr=False)
    unlabelled: list[str] = field(default_factory=list, repr=False)

    @property
    def known_bytes(self) -> int:
        """Bytes to fetch, as far as the registry knows them."""
        return int(sum(t.loc[t["to_fetch"], "bytes"].fillna(0).sum() for t in (self.studies, self.checkpoints)))

    @property
    def n_unknown(self) -> int:
        """Entries to fetch whose size nobody has published."""
        return int(sum(t.loc[t["to_fetch"], "bytes"].isna().sum() for t in (self.studies, self.checkpoints)))

    @property
    def total_hours(self) -> float:
        """Hours of all steps whose length is known."""
        return float(self.hours["hours"].sum()) if len(self.hours) else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "studies": _records(self.studies), "checkpoints": _records(self.checkpoints), "accept": dict(self.accept),
            "download_gb": self.known_bytes / 1e9, "unknown_sizes": self.n_unknown, "hours": _records(self.hours),
            "hours_known": self.total_hours, "prompts": self.prompts, "unlabelled": list(self.unlabelled),
        }  # fmt: skip

    def __str__(self) -> str:
        return "\n".join([*self._what(), *self._licences(), *self._machine(), *self._money()])

    def _what(self) -> list[str]:
        lines = [f"Plan: figures {', '.join(self.spec.figures)}, written to {self.spec.store}"]
        for name, table in (("data set", self.studies), ("checkpoint", self.checkpoints)):
            got = int(table["here"].sum()) if len(table) else 0
            gone = table.loc[~table["reachable"], "name"].tolist() if len(table) else []
            lines.append(
                f"{len(table)} {name}{'s' * (len(table) != 1)}, {got} of them on this machine"
                + (f": {_names(table)}" if len(table) else "")
            )
            if gone:
                lines.append(f"  no address that a program can fetch: {short_list(gone)}; register them by hand")
        if self.unlabelled:
            n = len(self.unlabelled)
            lines.append(
                f"{n} data set{'s' * (n != 1)} without labels that a program can read, not fetched: "
                f"{short_list(self.unlabelled)}; give them with --labels"
            )
        gb, unknown = self.known_bytes / 1e9, self.n_unknown
        sizes = f" and {unknown} file{'s' * (unknown != 1)} or sets of files of unknown size" if unknown else ""
        return [*lines, f"Download: {gb:.2f} GB of known size{sizes}"]

    def _licences(self) -> list[str]:
        if not self.accept:
            return ["Licences to accept: none"]
        return ["Licences to accept:", *(f"  {key}: {text}" for key, text in self.accept.items())]

    def _machine(self) -> list[str]:
        lines = [f"Hours on this machine: {_round(self.total_hours)} as far as they are known"]
        for row in self.hours.itertuples():
            known = "unknown" if np.isnan(row.hours) else f"{_round(row.hours)} h"
            lines.append(f"  {row.step}, {row.model}: {known}{f' ({row.basis})' if row.basis else ''}")
        return lines

    def _money(self) -> list[str]:
        p = self.prompts
        if not p.get("cells"):
            return ["Money: nothing is asked of a chat model"]
        cost = "unknown, for no prices were given" if p["cost"] is None else f"about {p['cost']:.3g}"
        limit = "" if self.spec.budget is None else f", at most {self.spec.budget:g} are spent"
        return [
            f"Money: {cost}{limit} ({p['cells']:,} cells asked about, {p['tokens_in'] / 1e6:.2f} million tokens in, "
            f"{p['tokens_out'] / 1e6:.2f} out, right to about a third)"
        ]


def make_plan(spec: ReproduceSpec) -> Plan:
    """Plan a run: no connection is opened, nothing is written.

    Parameters
    ----------
    spec
        The run.

    Raises
    ------
    UnknownNameError
        For an unknown study or model.
    """
    chosen = choose(spec)
    studies = _study_table(chosen)
    checkpoints = _checkpoint_table(chosen)
    cells = int(studies["n_cells"].sum()) if len(studies) else 0
    accept = {}
    for kind, table in (("datasets", studies), ("checkpoints", checkpoints)):
        for key in table.loc[table["to_fetch"] & (table["accept"] != ""), "entry"] if len(table) else ():
            accept[key] = licence_line(download.entries(kind)[key])
    hours = _hours(spec, chosen, cells) if cells and len(chosen.networks) else pd.DataFrame(columns=HOURS)
    return Plan(spec, studies, checkpoints, accept, hours, _prompts(spec, chosen, studies), chosen.unlabelled)


FACTS = ["name", "entry", "bytes", "here", "to_fetch", "reachable", "licence", "accept"]
HOURS = ["step", "model", "hours", "basis"]
SPEEDS = ["model", "cells_per_second", "training_cells_per_second", "n_parameters", "basis"]


def _study_table(chosen: Chosen) -> pd.DataFrame:
    rows = []
    for key, row in chosen.table.iterrows():
        entry = download.entries("datasets").get(row["entry"])
        n = row["n_cells"]
        rows.append(_facts(str(key), entry) | {"n_cells": 0 if pd.isna(n) else int(n), "counted": not pd.isna(n)})
    table = pd.DataFrame(rows, columns=[*FACTS, "n_cells", "counted"])
    # Several data sets of a series can come from one entry, which is fetched once.
    table.loc[table["entry"].duplicated() & (table["entry"] != ""), "to_fetch"] = False
    return table


def _checkpoint_table(chosen: Chosen) -> pd.DataFrame:
    entries = download.entries("checkpoints")
    rows = [_facts(c.name, entries.get(c.checkpoints[0]) if c.checkpoints else None) for c in chosen.networks]
    return pd.DataFrame(rows, columns=FACTS)


def _facts(name: str, entry: Entry | None) -> dict[str, Any]:
    """What the registry knows of an entry, and whether it is here."""
    from scdrugmap.settings import settings

    if entry is None:
        return dict(zip(FACTS, (name, "", np.nan, False, False, False, "", ""), strict=True))
    here = download.where(entry.kind, entry.key) is not None
    reachable = here or bool(settings.mirror) or all(f.urls for f in entry.files if f.required)
    size = np.nan if entry.size is None else float(entry.size)
    accept = licence_line(entry) if entry.needs_acceptance and not here else ""
    values = (name, entry.key, size, here, not here and reachable, reachable, entry.licence, accept)
    return dict(zip(FACTS, values, strict=True))


def _hours(spec: ReproduceSpec, chosen: Chosen, cells: int) -> pd.DataFrame:
    """Hours to embed all cells once with each model, and to fine-tune and apply it in every fold."""
    tuned = {c.name for c in _tuned(spec, chosen)}
    speeds = speed_table(chosen, spec.device, tuned) if spec.measure else pd.DataFrame(columns=SPEEDS)
    rows = []
    # A cell trains in all folds but one and is tested in that; 3 epochs, and once more to predict.
    passes = sum({"published": spec.n_folds, "published-code": 1, "strict": spec.n_folds}[p] for p in spec.presets)
    for card in chosen.networks:
        found = speeds[speeds["model"] == card.name]
        speed = float(found["cells_per_second"].iloc[0]) if len(found) else np.nan
        training = float(found["training_cells_per_second"].iloc[0]) if len(found) else np.nan
        basis = str(found["basis"].iloc[0]) if len(found) else "not measured"
        rows.append(("embed every cell once", card.name, cells / speed / 3600, basis))
        if card.name in tuned:
            epochs = (spec.lora_options or {}).get("epochs", 3)
            work = cells * passes * len(spec.lora_by or spec.by) * (epochs / training + 1 / speed) / 3600
            rows.append(("fine-tune in every fold", card.name, work, basis))
    return pd.DataFrame(rows, columns=HOURS)


def _tuned(spec: ReproduceSpec, chosen: Chosen) -> list[Any]:
    """Models that are fine-tuned."""
    from scdrugmap.study.grids import tuned

    return tuned(spec, chosen) if "lora" in spec.strategy and {"2", "3"} & set(spec.figures) else []


def speed_table(chosen: Chosen, device: str | None, tuned: Collection[str]) -> pd.DataFrame:
    """Measure models of official size on simulated cells, quick ones first, until the time is over; estimate the rest.

    Parameters
    ----------
    chosen
        The models.
    device
        Where they run.
    tuned
        Names of those that are fine-tuned as well.
    """
    import psutil

    from scdrugmap import datasets, tl

    cells = datasets.simulate(n_studies=1, n_cells=60, n_genes=MEASURED_GENES, rng=0)
    n_genes = cells.X.nnz / cells.n_obs
    start, rows = time.perf_counter(), []
    left: list[tuple[Any, str]] = []
    for card in sorted(chosen.networks, key=lambda c: _work(c, n_genes)):
        need, spent = (card.n_parameters or 0) * 8, time.perf_counter() - start
        if spent > MEASURE_SECONDS or need > psutil.virtual_memory().available:
            left.append((card, "time" if spent > MEASURE_SECONDS else "memory"))
            continue
        try:
            steps = card.name in tuned and spent < MEASURE_SECONDS / 3
            found = tl.profile(cells, card.name, n_cells=2, training=steps, device=device).iloc[0]
        except (ScDrugMapError, RuntimeError, MemoryError) as error:
            get_logger().info("%s could not be measured: %s", card.name, error)
            left.append((card, "a machine that can run it"))
            continue
        speed = found["cells_per_second"]
        training = found["training_cells_per_second"] if steps else speed / STEP_COST
        basis = f"measured on {found['device']}" + ("" if steps or card.name not in tuned else ", without training")
        rows.append(dict(zip(SPEEDS, (card.name, speed, training, found["n_parameters"], basis), strict=True)))
    for card, why in left:
        rows.append(_scaled(card, {c.name: _work(c, n_genes) for c in chosen.networks}, rows, why))
    return pd.DataFrame(rows, columns=SPEEDS)


def _round(hours: float) -> str:
    """Two digits that count, without an exponent."""
    return f"{float(f'{hours:.2g}'):,g}" if hours < 10 else f"{int(float(f'{hours:.2g}')):,}"


def _work(card: Any, n_genes: float) -> float:
    """What a cell costs a network at most, about: its parameters times the tokens that they meet."""
    tokens = 1.0 if card.context == "group" else card.max_length or n_genes
    return (card.n_parameters or 0) * tokens


def _scaled(card: Any, work: Mapping[str, float], rows: list[dict[str, Any]], why: str) -> dict[str, Any]:
    """Speed in proportion to the work, at the median rate of the models that were measured."""
    known = [r for r in rows if r["basis"].startswith("measured") and work[r["model"]]]
    out = {"model": card.name, "cells_per_second": np.nan, "training_cells_per_second": np.nan, "basis": "not measured"}
    if known and work[card.name]:
        for speed in ("cells_per_second", "training_cells_per_second"):
            out[speed] = float(np.median([r[speed] * work[r["model"]] for r in known])) / work[card.name]
        out["basis"] = f"not measured for want of {why}: by parameters and tokens from {len(known)} that were"
    return out


def _prompts(spec: ReproduceSpec, chosen: Chosen, studies: pd.DataFrame) -> dict[str, Any]:
    """Cells, tokens and money of the prompted models."""
    if not chosen.prompted or not len(studies):
        return {"cells": 0, "tokens_in": 0, "tokens_out": 0, "cost": 0.0}
    cells = studies["n_cells"].clip(upper=spec.prompt_cells or np.inf).sum() * len(chosen.prompted)
    ways = variants(spec)
    n_in = sum(cells * (TOKENS_IN + way.shots * 2 * SHOT_TOKENS / 10) for way in ways)
    n_out = cells * TOKENS_OUT * len(ways)
    cost = None if spec.prices is None else float(n_in * spec.prices[0] + n_out * spec.prices[1]) / 1e6
    asked = int(cells * len(ways))
    return {"cells": asked, "tokens_in": int(n_in), "tokens_out": int(n_out), "cost": cost}


def _names(table: pd.DataFrame) -> str:
    return short_list(table["name"].tolist())


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    plain = table.astype(object).where(table.notna(), None)
    return [{k: v.item() if hasattr(v, "item") else v for k, v in row.items()} for row in plain.to_dict("records")]
