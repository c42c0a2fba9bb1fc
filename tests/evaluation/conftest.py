"""Small cohorts whose labels and leaks are known."""

from __future__ import annotations

from collections.abc import Callable

import anndata as ad
import numpy as np
import pandas as pd
import pytest


def make_cohort(
    n_samples: int = 16,
    cells: int = 12,
    n_studies: int = 4,
    *,
    signal: float = 1.0,
    sample_effect: float = 0.3,
    n_genes: int = 40,
    seed: int = 0,
) -> ad.AnnData:
    """Samples alternate between the classes; ``signal`` moves ten genes with the label, ``sample_effect`` all per sample."""
    rng = np.random.default_rng(seed)
    sample = np.repeat(np.arange(n_samples), cells)
    y = sample % 2
    effect = sample_effect * rng.normal(size=(n_samples, n_genes))
    shift = signal * np.r_[np.ones(10), np.zeros(n_genes - 10)]
    rate = np.exp(1 + effect[sample] + y[:, None] * shift)
    study = np.array([f"S{i}" for i in range(n_studies)])[sample * n_studies // n_samples]
    obs = pd.DataFrame(
        {
            "sample": [f"p{i}" for i in sample],
            "study": study,
            "response": np.where(y == 1, "sensitive", "resistant"),
            "tissue": np.where(study == f"S{n_studies - 1}", "marrow", "tumor"),
        },
        index=[f"cell{i}" for i in range(len(sample))],
    )
    counts = rng.poisson(rate).astype(np.float32)
    adata = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(n_genes)]))
    adata.obsm["X_log"] = np.log1p(counts)
    return adata


@pytest.fixture
def cohort() -> Callable[..., ad.AnnData]:
    return make_cohort
