"""What ``sd.pp.check`` says about labels, and how they are spread over studies and samples."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdrugmap._cohort import encode
from scdrugmap._errors import InputError
from scdrugmap._keys import CLASSES, KEYS
from scdrugmap.pp._report import Finding, Level

if TYPE_CHECKING:
    from anndata import AnnData


def check_labels(
    data: AnnData, label_key: str, sample_key: str, study_key: str, findings: list[Finding], facts: dict[str, Any]
) -> pd.DataFrame:
    """Classes, and how they are spread over studies and samples."""
    slot = f'obs["{label_key}"]'
    for key, argument, why in (
        (sample_key, "sample_key", "cells of one sample cannot be kept together when data is split"),
        (study_key, "study_key", "all cells count as one study; cross-study evaluation is not possible"),
    ):
        if key not in data.obs:
            findings.append(Finding("info", f'obs["{key}"]', f"missing: {why}", f"add it, or pass {argument}=."))
    if label_key not in data.obs:
        columns = {str(c).lower(): str(c) for c in data.obs.columns}
        near = [columns[name] for name in difflib.get_close_matches(label_key.lower(), columns, n=1, cutoff=0.8)]
        # A name that the user chose is a mistake; the default may be absent on purpose.
        level: Level = "error" if label_key != KEYS.response else "warning" if near else "info"
        fix = f"pass label_key={near[0]!r}." if near else "sd.pp.harmonize_response(adata, column)."
        findings.append(Finding(level, slot, "missing: fine for prediction, not for training", fix))
        return pd.DataFrame()
    column = data.obs[label_key]
    raw = column.astype(object).where(column.notna(), "").astype(str)
    listing = ", ".join(f"{k or 'missing'}: {v:,}" for k, v in list(raw.value_counts().items())[:8])
    try:
        codes = encode(column)
    except InputError as error:
        facts["labels"] = {str(k): int(v) for k, v in raw.value_counts().items()}
        findings.append(Finding("error", slot, f"labels that no tool reads ({listing})", error.fix))
        return pd.DataFrame()
    label = pd.Series(np.array([*CLASSES, ""], dtype=object)[codes], index=data.obs.index)
    facts["labels"] = tally = {str(k): int(v) for k, v in label.value_counts().items()}
    findings.append(Finding("info", slot, listing))
    if "" in tally:
        findings.append(Finding("info", slot, f"{tally['']:,} cells without a label; training leaves them out"))
    present = [c for c in CLASSES if c in tally]
    if len(present) == 1:
        findings.append(
            Finding("warning", slot, f"only {present[0]} cells: nothing to learn", "add cells of the other label.")
        )
    known = label.isin(CLASSES).to_numpy()
    groups = [key for key in (study_key, sample_key) if key in data.obs]
    if not groups or not known.any():
        return pd.DataFrame()
    frame = pd.DataFrame({key: data.obs[key].astype(str).to_numpy() for key in groups} | {label_key: label.to_numpy()})[
        known
    ]
    table = frame.groupby([*groups, label_key], sort=False).size().unstack(fill_value=0)
    table = table.reindex(columns=list(CLASSES), fill_value=0)
    if len(present) == 2:
        _check_spread(table, study_key, sample_key, findings)
    return table.reset_index().rename_axis(columns=None)


def _check_spread(table: pd.DataFrame, study_key: str, sample_key: str, findings: list[Finding]) -> None:
    """Labels within samples and studies."""
    if sample_key in table.index.names:
        samples = table.groupby(level=sample_key).sum()
        mixed = (samples > 0).all(axis=1)
        slot = f'obs["{sample_key}"]'
        if mixed.any():
            message = f"{int(mixed.sum())} of {len(samples)} samples hold both labels, so labels are not per sample"
            findings.append(Finding("info", slot, message))
        else:
            findings.append(Finding("info", slot, f"{len(samples)} samples, each with one label: split by sample"))
        each = (samples > 0).sum()
        if not mixed.any() and (each < 2).any():
            few = ", ".join(f"{n} {c}" for c, n in each.items())
            findings.append(
                Finding(
                    "warning",
                    slot,
                    f"too few samples ({few}): response cannot be told from the sample",
                    "add samples; results by random cells recognise the sample.",
                )
            )
    if study_key in table.index.names:
        studies = table.groupby(level=study_key).sum()
        single = studies.index[(studies == 0).any(axis=1)].tolist()
        if single and len(studies) > 1:
            findings.append(
                Finding(
                    "warning",
                    f'obs["{study_key}"]',
                    f"studies with one label only: {', '.join(map(str, single[:8]))}",
                    "there response cannot be told from the study.",
                )
            )
