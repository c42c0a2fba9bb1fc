"""Train a head and everything that says how far to trust it, on the training cells alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from scdrugmap._errors import InputError, ScDrugMapWarning, UnknownNameError
from scdrugmap._keys import CLASSES
from scdrugmap._metrics import evaluate
from scdrugmap.heads.crossfit import grouped_folds, held_out_margins, margins
from scdrugmap.heads.fit import fit_with
from scdrugmap.heads.mlp import MLPHead
from scdrugmap.trust.calibration import METHODS, Calibrator
from scdrugmap.trust.conformal import ConformalSets
from scdrugmap.trust.domain import OutOfDomain
from scdrugmap.trust.samples import SampleErrors
from scdrugmap.trust.worth import crossed, statement, worth_of

#: Features of all cells under a representation that was fitted on some rows of them.
Refit = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Trust:
    """Which statements about its own doubt a predictor learns.

    Parameters
    ----------
    calibrate
        ``"sigmoid"``, ``"isotonic"`` or ``None``.
    coverage
        Of conformal sets; ``None`` for no sets.
    ood
        Whether the out-of-domain flag is learnt.
    n_folds
        Folds of the cross-fitting behind the first two and behind the worth.
    worth
        Whether the worth is measured, where there are groups; with either of the first two it always is.
    """

    calibrate: str | None = None
    coverage: float | None = None
    ood: bool = False
    n_folds: int = 5
    worth: bool = True

    def __post_init__(self) -> None:
        if self.calibrate is not None and self.calibrate not in METHODS:
            raise UnknownNameError("calibrate", self.calibrate, METHODS)
        if self.coverage is not None and not 0 < self.coverage < 1:
            raise InputError("conformal", self.coverage, "True, or a coverage between 0 and 1", "pass 0.9.")
        if self.n_folds < 2:
            raise InputError("n_folds", self.n_folds, "2 or more", "pass 5.")

    @property
    def held_out(self) -> bool:
        """Whether scores of held-out cells are needed."""
        return self.calibrate is not None or self.coverage is not None


@dataclass(frozen=True, eq=False)
class Doubt:
    """What was learnt about how far to trust a head; ``None`` where it was not asked for or could not be.

    Parameters
    ----------
    calibration, conformal, ood
        Calibrated probabilities, prediction sets and the out-of-domain flag.
    errors
        How far the calls of held-out groups were off.
    worth
        What :func:`~scdrugmap.trust.worth.worth_of` found, or the ``reason`` why nothing was.
    """

    calibration: Calibrator | None = None
    conformal: ConformalSets | None = None
    ood: OutOfDomain | None = None
    errors: SampleErrors | None = None
    worth: dict[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Trained:
    """A fitted head, what was learnt beside it, and a summary of both."""

    head: Any
    doubt: Doubt
    summary: dict[str, Any]


def train_head(
    X: np.ndarray,
    y: np.ndarray,
    head: Any,
    trust: Trust,
    *,
    groups: np.ndarray | None = None,
    category: np.ndarray | None = None,
    refit: Refit | None = None,
    seed: int = 0,
    weight: np.ndarray | None = None,
) -> Trained:
    """Fit ``head`` on all cells, and calibration and conformal sets on scores of held-out groups.

    Parameters
    ----------
    X
        Cells x features, finite.
    y
        0 resistant, 1 sensitive.
    head
        An unfitted classifier.
    trust
        What else to learn.
    groups
        Group of each cell; groups stay whole in every split.
    category
        Mondrian category of each cell.
    refit
        For a representation that is itself fitted: gives the features of all cells as a representation fitted on some
        rows sees them, so that held-out cells have no part in it.
    seed
        Seed of the splits and of the draw of anchors.
    weight
        Weight of each cell in training.

    Returns
    -------
    The fitted head and what was learnt beside it.
    """
    names = np.asarray(CLASSES)[y]
    fitted = fit_with(head, X, names, groups, weight)
    summary: dict[str, Any] = {"n_features": int(X.shape[1])}
    if isinstance(fitted, MLPHead):
        summary |= {"epochs_kept": int(fitted.n_iter_), "training_loss": float(fitted.loss_curve_[fitted.n_iter_ - 1])}
    folds, why = _folds(y, groups, trust, seed)
    margin = None
    if folds:
        try:
            margin = _held_out(head, X, names, folds, groups, refit, weight)
            summary["held_out"] = {"folds": len(folds), **held_out_metrics(margin, y)}
        except InputError as error:  # an inner split of the head may find fewer groups in a fold than it needs
            if trust.held_out:
                raise
            why = str(error)
    doubt = learn_trust(X, margin, y, trust, groups, category, seed, folds=folds, why=why)
    return Trained(fitted, doubt, summary | {"worth": doubt.worth})


def learn_trust(
    X: np.ndarray,
    margin: np.ndarray | None,
    y: np.ndarray,
    trust: Trust,
    groups: np.ndarray | None,
    category: np.ndarray | None,
    seed: int,
    *,
    held_groups: np.ndarray | None = None,
    folds: list[tuple[np.ndarray, np.ndarray]] | None = None,
    why: str = "",
) -> Doubt:
    """Learn calibration, sets and worth from held-out log-odds, and the out-of-domain flag from features.

    Parameters
    ----------
    X
        Features of the cells for the flag.
    margin, y, category
        Log-odds of held-out cells, their class and their category.
    trust
        What to learn.
    groups
        Group of each row of ``X``.
    seed
        Seed of the draw of anchors.
    held_groups
        Group of each held-out cell where these are not the rows of ``X``.
    folds
        How calibration and sets are fitted and tested in turn on the held-out cells.
    why
        Why there are no held-out log-odds.

    Warns
    -----
    ScDrugMapWarning
        If calibration is no better than a constant and is left out, or the predictor is no better than none.
    """
    calibration = conformal = ood = errors = None
    worth: dict[str, Any] = {"reason": why or "no groups were held out"}
    held = groups if held_groups is None else held_groups
    if margin is not None and trust.calibrate is not None:
        calibration = Calibrator.fit(margin, y, trust.calibrate)
    if margin is not None and folds:
        coverage = trust.coverage or 0.9
        score, sizes = crossed(margin, y, folds, trust.calibrate, coverage)
        left_out = {}
        if calibration is not None and (refused := _no_better(score, y)):
            message = f"calibrate={trust.calibrate!r} is not applied: {refused}"
            warnings.warn(message, ScDrugMapWarning, stacklevel=4)
            calibration, left_out = None, {"calibration_left_out": refused}
            score, sizes = crossed(margin, y, folds, None, coverage)
        if held is not None:
            worth = worth_of(margin, y, held, score, sizes) | {"coverage": coverage}
            errors = SampleErrors.fit(score, y, held)
            if worth["below_floor"]:
                warnings.warn(statement(worth) + ".", ScDrugMapWarning, stacklevel=4)
        worth |= left_out
    if margin is not None and trust.coverage is not None:
        conformal = ConformalSets.fit(margin, y, coverage=trust.coverage, category=category)
    if trust.ood:
        ood = OutOfDomain.fit(X, groups=groups, rng=seed)
    return Doubt(calibration, conformal, ood, errors, worth)


def _folds(
    y: np.ndarray, groups: np.ndarray | None, trust: Trust, seed: int
) -> tuple[list[tuple[np.ndarray, np.ndarray]], str]:
    """Folds of whole groups to hold out, or why there are none; what was asked for must be possible."""
    if not trust.worth and not trust.held_out:
        return [], "a model that learns by gradients would learn anew in each fold: calibrate= or conformal= do that"
    if groups is None and not trust.held_out:
        return [], "there is neither groups= nor obs['sample']: single cells would be on both sides"
    try:
        return grouped_folds(y, groups, trust.n_folds, seed), ""
    except InputError as error:
        if trust.held_out:
            raise
        return [], f"{error.found}: nothing can be held out"


def _no_better(score: np.ndarray, y: np.ndarray) -> str:
    """Say so if held-out calibrated probabilities are no better than the share of the class."""
    brier, constant = float(np.mean((score - y) ** 2)), float(np.mean(y) * (1 - np.mean(y)))
    if brier < constant:
        return ""
    return f"its Brier score on held-out groups, {brier:.3f}, is no better than a constant's, {constant:.3f}"


def held_out_metrics(margin: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """AUROC and F1 of held-out cells.

    Parameters
    ----------
    margin
        Log-odds.
    y
        0 or 1.

    Returns
    -------
    ``auroc`` and ``f1`` of the sensitive class; where one is undefined it is NaN, and ``undefined`` says why.
    """
    found = evaluate(y, margin, margin > 0, ["auroc", "f1"])
    reasons = "; ".join(f"{name}: {why}" for name, (_, why) in found.items() if why)
    return {name: value for name, (value, _) in found.items()} | ({"undefined": reasons} if reasons else {})


def _held_out(
    head: Any,
    X: np.ndarray,
    names: np.ndarray,
    folds: list[tuple[np.ndarray, np.ndarray]],
    groups: np.ndarray | None,
    refit: Refit | None,
    weight: np.ndarray | None,
) -> np.ndarray:
    """Log-odds of every cell from a head, and a representation, that have not seen it."""
    if refit is None:
        return held_out_margins(head, X, names, folds, groups, weight)
    out = np.empty(len(names))
    for train, test in folds:
        features = refit(train)  # (cells, features), all cells under a representation fitted on ``train``
        own = [None if v is None else v[train] for v in (groups, weight)]
        model = fit_with(head, features[train], names[train], *own)
        out[test] = margins(model, features[test])
    return out
