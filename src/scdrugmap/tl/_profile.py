"""``sd.tl.profile``: size, speed and memory of models on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scdrugmap import _anndata
from scdrugmap._device import Engine
from scdrugmap._errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from mudata import MuData

    from scdrugmap.models.base import Model, NetworkModel


def profile(
    adata: AnnData | MuData,
    models: str | Model | Sequence[str | Model],
    *,
    checkpoint: str | Path | None = None,
    n_cells: int = 32,
    training: bool = True,
    layer: str | None = None,
    device: str | None = None,
    precision: str | None = None,
    mod: str = "rna",
    rng: int = 0,
) -> pd.DataFrame:
    """Measure parameters, width, tokens per cell, cells per second and memory of models on this machine.

    Parameters
    ----------
    adata
        Cells to measure on; speed depends on how many genes they express.
    models
        Names or loaded models. A network model that is given by name without ``checkpoint`` gets its official size
        with random weights, whose speed is the same.
    checkpoint
        Official checkpoint, for a single model.
    n_cells
        Cells to embed, drawn with ``rng``.
    training
        Also measure training: of a network model one forward and backward pass with LoRA adapters, of a fitted
        model the fit.
    layer, device, precision, mod
        As in :func:`scdrugmap.tl.embed`.
    rng
        Seed of the choice of cells.

    Returns
    -------
    Data frame indexed by model name: ``architecture``, ``year``, ``n_parameters`` (weights that the embedding needs), ``dim``,
    ``tokens_per_cell``, ``cells_per_second`` (end to end), ``network_share`` (of the time), ``padding`` (share of
    positions), ``training_cells_per_second``, ``peak_memory_gb`` (largest resident size seen while embedding; on
    CUDA the memory allocated there), ``device`` and ``precision``. Speeds are cells per second: higher is better.

    Raises
    ------
    InputError
        For prompted models, no cells or models, or a checkpoint with several models.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_cells=100, n_genes=100, rng=0)
    >>> sd.tl.profile(adata, ["pca"], n_cells=100)["dim"].tolist()
    [50]
    """
    import pandas as pd

    from scdrugmap._random import seed_of
    from scdrugmap.embedding.source import CountSource

    cells = _anndata.resolve(adata, mod=mod)
    _anndata.refuse_empty(cells, genes=True)
    if n_cells < 1:
        raise InputError("n_cells", n_cells, "one or more", "the default is 32.")
    names = [models] if isinstance(models, str) or not isinstance(models, Sequence) else list(models)
    if not names:
        raise InputError("models", "an empty list", "one or more models", "sd.models.list() shows the names.")
    if checkpoint is not None and len(names) > 1:
        raise InputError("checkpoint", checkpoint, "a checkpoint of one model", "load the models and pass them.")
    rows = np.sort(np.random.default_rng(seed_of(rng)).permutation(cells.n_obs)[:n_cells])
    X = CountSource(_anndata.counts(cells, layer))[rows]
    genes = _anndata.gene_ids(cells)
    engine = Engine(device, precision, progress=False)
    records = [_one(model, checkpoint, X, genes, engine, training) for model in names]
    return pd.DataFrame(records).set_index("model")


def _one(model: str | Model, checkpoint: Any, X: Any, genes: Any, engine: Engine, training: bool) -> dict[str, Any]:
    from scdrugmap.models import registry
    from scdrugmap.models.base import FittedModel, NetworkModel

    cls = registry.get(model)
    if cls.card.kind == "prompt":
        raise InputError("models", cls.card.name, "models that give an embedding", "leave it out.")
    card = cls.card
    record: dict[str, Any] = {"model": card.name, "architecture": card.architecture, "year": card.year}
    if cls.card.kind == "fitted":
        fitted: Any = cls() if isinstance(model, str) else model
        assert isinstance(fitted, FittedModel)
        start = time.perf_counter()
        fitted.fit(X, genes)
        fitting = time.perf_counter() - start
        with PeakMemory() as memory:
            start = time.perf_counter()
            fitted.transform(X, genes)
            seconds = time.perf_counter() - start
        state = fitted.state().values()
        return record | {
            "n_parameters": int(sum(v.size for v in state if np.issubdtype(v.dtype, np.floating))),
            "dim": fitted.dim,
            "cells_per_second": X.shape[0] / seconds,
            "training_cells_per_second": X.shape[0] / fitting if training else np.nan,
            "peak_memory_gb": memory.peak / 1e9,
            "device": "cpu",
            "precision": "float32",
        }
    network: Any = model
    if isinstance(model, str):
        network = registry.load(model, checkpoint) if checkpoint else cls.random(genes, size="official")  # type: ignore[attr-defined]
    assert isinstance(network, NetworkModel)
    return record | _network(network, X, genes, engine, training)


def _network(model: NetworkModel, X: Any, genes: Any, engine: Engine, training: bool) -> dict[str, Any]:
    import torch

    from scdrugmap.embedding.embed import embed_counts
    from scdrugmap.embedding.source import CountSource
    from scdrugmap.models.base import GroupModel

    embed_counts(model, CountSource(X[:1]), genes, engine)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    memory = PeakMemory()
    with memory:
        result = embed_counts(model, CountSource(X), genes, engine)
    work = result.work
    on_gpu = result.device.startswith("cuda")
    return {
        "n_parameters": sum(p.numel() for p in model.network.parameters()),
        "dim": model.dim,
        "tokens_per_cell": np.nan if isinstance(model, GroupModel) else work.n_tokens / max(work.n_cells, 1),
        "cells_per_second": work.n_cells / work.seconds,
        "network_share": work.network_seconds / work.seconds,
        "padding": work.padding,
        "training_cells_per_second": _training_speed(model, X, genes) if training else np.nan,
        "peak_memory_gb": (torch.cuda.max_memory_allocated() if on_gpu else memory.peak) / 1e9,
        "device": result.device,
        "precision": result.precision,
    }


def _training_speed(model: NetworkModel, X: Any, genes: Any) -> float:
    """Cells per second of one forward and backward pass with LoRA adapters, float32."""
    import torch
    from peft import LoraConfig, get_peft_model

    from scdrugmap.models.kit.counts import Counts

    n = min(8, X.shape[0])
    alignment = model.align(genes)
    counts = Counts(alignment.apply(X[:n]), alignment.ids, alignment.genes, np.arange(n))
    batch = {k: v.to(model.device) for k, v in model.collate(model.tokenize(counts)).items()}
    config = LoraConfig(r=8, lora_alpha=8, target_modules=list(model.card.lora_targets), bias="none")
    adapted: Any = get_peft_model(model.network, config)
    try:
        adapted.train()
        start = time.perf_counter()
        adapted(batch).float().square().mean().backward()
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return n / (time.perf_counter() - start)
    finally:
        # The adapters go again, and with them every trace of the measurement.
        model.network = adapted.unload()
        model.network.zero_grad(set_to_none=True)
        model.network.requires_grad_(True)
        model.network.eval()


class PeakMemory:
    """Largest resident size of this process while the context lasts, sampled every few milliseconds."""

    def __init__(self, interval: float = 0.005) -> None:
        import threading

        import psutil

        self.interval, self.process = interval, psutil.Process()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.peak = 0

    def _watch(self) -> None:
        while not self.stop.is_set():
            self.peak = max(self.peak, self.process.memory_info().rss)
            self.stop.wait(self.interval)

    def __enter__(self) -> PeakMemory:
        self.peak = self.process.memory_info().rss
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop.set()
        self.thread.join()
