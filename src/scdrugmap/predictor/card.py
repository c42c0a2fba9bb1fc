"""The card of a predictor in Markdown."""

from __future__ import annotations

from typing import Any

from scdrugmap import __version__


def markdown(predictor: Any) -> str:
    """Describe a predictor.

    Parameters
    ----------
    predictor
        A :class:`~scdrugmap.response.ResponsePredictor`.

    Returns
    -------
    Markdown with the metadata block that model hubs read.
    """
    t, rep = predictor.training, predictor.representation
    lines = [
        "---",
        "library_name: scdrugmap",
        "tags: [single-cell, drug-response, anndata]",
        "---",
        "",
        f"# Drug response predictor on {rep.label}",
        "",
        "Predicts for every cell whether it is *resistant* or *sensitive*; the score is P(sensitive). "
        f"Made by scdrugmap {t.get('scdrugmap', __version__)}.",
        "",
        "```python",
        "import scdrugmap as sd",
        'predictor = sd.load_predictor("path/of/this/folder")',
        "sd.tl.predict_response(adata, predictor)",
        "```",
        "",
        "## Training data",
        "",
        _table(
            {
                "cells": f"{t.get('n_cells', 0):,} ({t.get('n_resistant', 0):,} resistant, {t.get('n_sensitive', 0):,} sensitive)",
                "unlabelled cells, not used": f"{t.get('n_unlabelled', 0):,}",
                "cells without embedding, not used": f"{t.get('n_unusable', 0):,}",
                f"groups ({t.get('groups') or 'none'})": t.get("n_groups", ""),
                **{name: ", ".join(values) for name, values in t.get("columns", {}).items()},
            }
        ),
        "",
        "## Training",
        "",
        _table({k: t[k] for k in ("strategy", "head", "seed", "epochs_kept", "training_loss") if k in t}),
    ]
    lines += _base_model(rep)
    if "lora" in t:
        lines += ["", "## Adapters", "", _table(t["lora"])]
    lines += ["", "## Worth", "", *_worth(predictor.worth)]
    lines += ["", "## Trust", "", _table(_trust(predictor))]
    if "leave_study_out" in t:
        lines += ["", "## On studies left out", "", _table(t["leave_study_out"])]
    if "not_for" in t:
        lines += ["", "## Not for", "", *(f"- {use}" for use in t["not_for"])]
    lines += [
        "",
        "## Limits",
        "",
        "Labels of single cells are mostly those of their sample, so that a predictor can learn what tells samples apart "
        "instead of what tells resistant from sensitive cells. Judge it on samples, patients and studies that it has not "
        "seen. Not for clinical use.",
        "",
    ]
    return "\n".join(lines)


def _base_model(rep: Any) -> list[str]:
    """Section about the foundation model."""
    if rep.kind != "network":
        return []
    from scdrugmap.models import registry

    card = registry.get(rep.model or rep.name).card
    digests = {f"sha256 of {name}": f"`{value}`" for name, value in rep.digests.items()}
    about = {"model": card.name, "citation": card.citation, "licence of the weights": card.weights_licence}
    return ["", "## Base model", "", "Referenced, not contained:", "", _table({**about, **digests})]


def _worth(worth: dict[str, Any]) -> list[str]:
    """Section about what it reached on groups that it had not seen."""
    if "auroc" not in worth:
        return [f"Not known: {worth['reason']}."]
    interval = f"no interval: {worth['n_groups']} groups of a class are too few"
    if "auroc_low" in worth:
        interval = f"{worth['level']:.0%} interval over groups {worth['auroc_low']:.2f} to {worth['auroc_high']:.2f}"
    warning = [f"**Not shown to be better than no predictor:** {worth['below_floor']}.", ""]
    rows = {
        "AUROC on held-out groups": f"{worth['auroc']:.2f} ({interval})",
        "Brier score on held-out groups": f"{worth['brier']:.3f} (a constant: {worth['brier_constant']:.3f})",
        f"classes per prediction set at coverage {worth['coverage']:g}": f"{worth['set_size']:.2f} of 2",
    }
    if "calibration_left_out" in worth:
        rows["calibration left out"] = worth["calibration_left_out"]
    return [*(warning if worth["below_floor"] else []), _table(rows)]


def _shift(reference: Any) -> str:
    """How a query is judged."""
    if reference is None:
        return "cannot tell: no counts of the training data were kept"
    return (
        f"by the coherence of {len(reference.genes)} genes that go along with the score, and by "
        f"{len(reference.profiles)} expression profiles over {len(reference.profile_genes)} genes"
    )


def _trust(predictor: Any) -> dict[str, Any]:
    """What the predictor knows about its own doubt."""
    sets, ood = predictor.conformal, predictor.ood
    method = predictor.calibration and predictor.calibration.method
    held_out = {k.replace("_", " "): v for k, v in predictor.training.get("held_out", {}).items()}
    return {
        "calibrated probabilities": method or "no",
        "conformal sets": f"coverage {sets.coverage:g} of each class"
        + (f" per {predictor.conformal_by}" if sets.mondrian else "")
        if sets
        else "no",
        "out-of-domain flag": f"mean distance to {ood.n_neighbors} nearest training cells above {ood.threshold:.4g}"
        if ood
        else "no",
        "verdict on a query": _shift(predictor.shift),
        **held_out,
    }


def _table(rows: dict[str, Any]) -> str:
    """A two-column Markdown table."""
    body = [f"| {k} | {f'{v:.4g}' if isinstance(v, float) else v} |".replace("\n", " ") for k, v in rows.items()]
    return "\n".join(["| | |", "| --- | --- |", *body])
