"""Embedding on a cluster: the serial numbers, one load per process, and a worker that dies half-way."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import anndata as ad
import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import scdrugmap as sd
from scdrugmap._errors import CheckpointError, InputError, ScDrugMapWarning
from scdrugmap.models import distributed as engine
from scdrugmap.models.base import GroupModel
from scdrugmap.models.cellplm import CellPLM
from scdrugmap.models.tgpt import TGPT
from scdrugmap.testing.cells import example_cells

dask_distributed = pytest.importorskip("distributed")
da = pytest.importorskip("dask.array")

N = 60


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Every test computes: no embedding comes from the cache, no model from another test."""
    monkeypatch.setattr(sd.settings, "embedding_cache", False)
    monkeypatch.setattr(sd.settings, "device", "cpu")
    engine._LOADED.clear()


@pytest.fixture(scope="module")
def client():
    with (
        dask_distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
        ) as cluster,
        dask_distributed.Client(cluster) as client,
    ):
        yield client


def cells(chunk: int | tuple[int, ...] | None, slow=None) -> ad.AnnData:
    """The example cells, in memory or as a dask array of CSR chunks."""
    X, genes = example_cells(N)
    obs = pd.DataFrame({"sample": np.repeat(["a", "b", "c"], N // 3)}, index=[f"c{i}" for i in range(N)])
    adata = ad.AnnData(X, obs=obs, var=pd.DataFrame({"ensembl_id": genes.ensembl}, index=genes.symbols))
    if chunk is not None:
        lazy = da.from_array(X, chunks=(chunk, X.shape[1]), asarray=False)
        adata.X = lazy if slow is None else lazy.map_blocks(slow, dtype=X.dtype, meta=lazy._meta)
    return adata


def checkpoint_of(model: TGPT, folder: Path) -> Path:
    """Write a small model in the official layout."""
    own = model.network.state_dict()
    out = {"wte.weight": own["wte.weight"], "wpe.weight": own["wpe.weight"]}
    out |= {"ln_f.weight": own["norm.weight"], "ln_f.bias": own["norm.bias"]}
    for i in range(len(model.network.blocks)):
        old = f"blocks.{i}"
        for kind, turned in (("weight", torch.t), ("bias", torch.clone)):
            names = {"attn.c_proj": "attention.out_proj", "mlp.c_fc": "linear1", "mlp.c_proj": "linear2"}
            out[f"h.{i}.attn.c_attn.{kind}"] = turned(
                torch.cat([own[f"{old}.attention.{p}_proj.{kind}"] for p in "qkv"])
            ).contiguous()
            out |= {f"h.{i}.{new}.{kind}": turned(own[f"{old}.{name}.{kind}"]).contiguous() for new, name in names.items()}
            out |= {f"h.{i}.ln_{k}.{kind}": own[f"{old}.norm{k}.{kind}"] for k in (1, 2)}
    torch.save({f"transformer.{k}": v for k, v in out.items()}, folder / "pytorch_model.bin")
    return folder
