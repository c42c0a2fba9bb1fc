"""The first words of a report are right, also where there is nothing to praise."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd

from scdrugmap.evaluation.result.headline import headlines

MODELS = pd.DataFrame(
    {
        "model": ["scGPT", "UCE", "hvg", "all_sensitive"],
        "strategy": ["frozen", "frozen", "baseline", "baseline"],
        "head": ["mlp", "mlp", "logistic", ""],
        "label": ["scGPT", "UCE", "hvg", "all_sensitive"],
    }
)


def say(values, low, *, metric="f1_macro", floor=0.33, split="sample", p=None, models=MODELS):
    rows = models.assign(
        setting="pooled",
        split=split,
        by="",
        category="",
        metric=metric,
        value=values,
        ci_low=low,
        ci_high=0.95,
        floor=floor,
    )
    compared = pd.DataFrame()
    if p is not None:
        compared = pd.DataFrame(
            {
                "model": ["scGPT"],
                "baseline": ["hvg"],
                "split": [f"pooled, by {split}"],
                "difference": [0.1],
                "p (Holm)": [p],
            }
        )
    result = SimpleNamespace(contenders=models, metrics={})
    return headlines(result, rows, compared)[0]


def test_names_best_model_floor_and_best_simple_baseline():
    told = say([0.8, 0.7, 0.6, 0.33], 0.5, p=0.01)
    assert "scGPT is the best model: macro-F1 0.80 [0.50, 0.95]" in told["text"]
    assert "call all sensitive 0.33" in told["text"] and "hvg, 0.60" in told["text"]
    assert "better than the simple baseline hvg (p < 0.05, Holm) in 1 of 1" in told["verdict"] and not told["warn"]


def test_does_not_praise_what_is_not_shown():
    assert "not shown to be better" in say([0.8, 0.7, 0.6, 0.33], 0.5, p=0.3)["verdict"]
    assert "do not use" in say([0.3, 0.2, 0.1, 0.33], 0.1)["verdict"]
    assert "reaches down to the floor" in say([0.5, 0.2, 0.1, 0.33], 0.2)["verdict"]
    assert "too few groups" in say([0.8, 0.7, 0.6, 0.33], np.nan)["verdict"]
    assert "no simple baseline" in say([0.8, 0.7, 0.33], 0.5, models=MODELS[MODELS["model"] != "hvg"])["verdict"]


def test_random_cells_are_a_warning_whatever_the_score():
    told = say([0.99, 0.7, 0.6, 0.33], 0.9, split="cell", p=0.001)
    assert told["warn"] and told["verdict"].startswith("Cells of one sample on both sides")


def test_a_ranking_is_not_compared_with_calling_all_sensitive():
    told = say([0.8, 0.7, 0.6, 0.5], 0.7, metric="auroc", floor=0.5, p=0.01)
    assert "one score for all cells 0.50" in told["text"] and "sensitive" not in told["text"]


def test_without_a_value_it_says_so():
    assert say([np.nan, np.nan, 0.5, 0.33], np.nan)["text"] == "No model could be evaluated."
