"""Train a head and everything that says how far to trust it, on the training cells alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from scdrugmap._errors import InputError, UnknownNameError
from scdrugmap._keys import CLASSES
from scdrugmap._metrics import evaluate
from scdrugmap.heads.crossfit import grouped_folds, held_out_margins, margins
from scdrugmap.heads.fit import fit_with
from scdrugmap.heads.mlp import MLPHead
from scdrugmap.trust.calibration import METHODS, Calibrator
from scdrugmap.trust.conformal import ConformalSets
from scdrugmap.trust.domain import OutOfDomain

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
        Folds of the cross-fitting behind the first two.
    """

    calibrate: str | None = None
    coverage: float | None = None
    ood: bool = False
    n_folds: int = 5

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
class Trained:
    """A fitted head and what was learnt beside it."""

    head: Any
    calibration: Calibrator | None
    conformal: ConformalSets | None
    ood: OutOfDomain | None
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
    margin = None
    if trust.held_out:
        folds = grouped_folds(y, groups, trust.n_folds, seed)
        margin = _held_out(head, X, names, folds, groups, refit, weight)
        summary["held_out"] = {"folds": len(folds), **held_out_metrics(margin, y)}
    return Trained(fitted, *learn_trust(X, margin, y, trust, groups, category, seed), summary)


def learn_trust(
    X: np.ndarray,
    margin: np.ndarray | None,
    y: np.ndarray,
    trust: Trust,
    groups: np.ndarray | None,
    category: np.ndarray | None,
    seed: int,
) -> tuple[Calibrator | None, ConformalSets | None, OutOfDomain | None]:
    """Learn calibration and sets from held-out log-odds, and the out-of-domain flag from features.

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

    Returns
    -------
    Calibration, conformal sets and flag, ``None`` where ``trust`` leaves it out.
    """
    calibration = conformal = ood = None
    if margin is not None and trust.calibrate is not None:
        calibration = Calibrator.fit(margin, y, trust.calibrate)
    if margin is not None and trust.coverage is not None:
        conformal = ConformalSets.fit(margin, y, coverage=trust.coverage, category=category)
    if trust.ood:
        ood = OutOfDomain.fit(X, groups=groups, rng=seed)
    return calibration, conformal, ood


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
