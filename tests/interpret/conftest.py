"""Simulated cells whose driver genes are known, and predictors on them."""

from __future__ import annotations

import numpy as np
import pytest

import scdrugmap as sd


@pytest.fixture(scope="session")
def planted():
    """Four resistant and four sensitive samples; the genes that resistance moves are known."""
    return sd.datasets.simulate(
        n_studies=1, n_patients=8, n_samples_per_patient=1, n_cells=800, n_genes=400, rng=0
    )  # fmt: skip


@pytest.fixture(scope="session")
def small():
    return sd.datasets.simulate(n_studies=1, n_patients=2, n_cells=60, n_genes=80, rng=0)


@pytest.fixture(scope="session")
def linear(planted):
    return sd.tl.train(planted, "pca", head="logistic", rng=0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
