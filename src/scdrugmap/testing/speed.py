"""``sd.testing.bench``: speed of the models at their official sizes on this machine, so that any lab can send figures."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from scdrugmap._errors import InputError, UnknownNameError

if TYPE_CHECKING:
    import pandas as pd

    from scdrugmap.genes.identifiers import Genes
    from scdrugmap.models.base import NetworkModel

#: Models that are measured by default: Llama's weights alone take 16 GB.
MODELS = ("scgpt", "geneformer", "tgpt", "scbert", "celllm", "scfoundation", "uce", "cellplm")
SIZES = ("official", "tiny")
N_GENES = 19_264
#: Cells that are tokenised for the rate at which a network can be fed.
FED = 512
REPEATS = 3


def encoder(n: np.ndarray, d: int, hidden: int, layers: int) -> np.ndarray:
    """Floating-point operations of softmax-attention encoder layers over sequences of length ``n``."""
    return layers * (8 * n * d**2 + 4 * n * d * hidden + 4 * n.astype(float) ** 2 * d)


def performer(n: np.ndarray, d: int, inner: int, hidden: int, layers: int, features: int, heads: int) -> np.ndarray:
    """Floating-point operations of FAVOR+ layers: projections, features of queries and keys, products with them."""
    head = inner // heads
    return layers * n * (8 * d * inner + 4 * d * hidden + heads * features * head * (2 * 2 + 2 * 2))


#: Work of the whole encoder over real tokens, by the lengths of the cells: 2 x multiply-adds of linear layers and attention.
FLOPS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "scgpt": lambda n: encoder(n, 512, 512, 12),
    "geneformer": lambda n: encoder(n, 256, 512, 6),
    "tgpt": lambda n: 8 * (8 * n * 1024**2 + 16 * n * 1024**2 + 2 * n.astype(float) ** 2 * 1024),
    "scbert": lambda n: performer(n, 200, 640, 800, 6, 266, 10),
    "celllm": lambda n: performer(n, 512, 1024, 2048, 10, 266, 16),
    "scfoundation": lambda n: encoder(n, 768, 3072, 12),
    "uce": lambda n: encoder(n, 1280, 5120, 4),
    "cellplm": lambda n: n * 2 * (1024**2 + 4 * (4 * 1024**2 + 4 * 1024**2) + 4 * 2 * 1024 * 128 + 512 * 1040 + 512 * 512),
}  # fmt: skip


def bench(
    models: str | Sequence[str] | None = None,
    *,
    cells: int = 32,
    seconds: float = 30.0,
    size: Literal["official", "tiny"] = "official",
    device: str | None = None,
    precision: str | None = None,
    show: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Measure how fast this machine embeds, at the official sizes, with random weights and made cells. No download.

    Each model runs in a process of its own. Its weights are built (which takes up to a minute for the largest), one cell tells
    how many fit the time, and the median of up to three passes counts.

    Parameters
    ----------
    models
        Names of network models; by default all but Llama.
    cells
        Most cells of a pass; CellPLM, whose cells are positions, gets sixteen times as many. About 2,000 of 19,264 genes are
        expressed in each.
    seconds
        Time for the passes of one model; a slow model gets fewer cells.
    size
        ``"tiny"`` measures toy networks, to see that everything runs.
    device, precision
        As in :func:`scdrugmap.tl.embed`.
    show
        Called with the name of each model before it is measured.

    Returns
    -------
    Data frame with a row per model: ``model``, ``cells`` (of a pass), ``tokens`` (mean per cell), ``cells_per_second``,
    ``gflops`` (useful operations of the whole encoder per second in the network, over real tokens), ``matmul_gflops``
    (a large matrix product on this device in this precision, in the same minute), ``ratio`` (of the two; work that the
    embedding lets us skip counts as done, so it can exceed 1), ``network_share`` and ``waiting_share`` (of the time: in the
    network, and with the network waiting for its next batch), ``padding`` (share of positions),
    ``feed_per_second`` (cells that reading, tokenising and collating can deliver ahead of a network that takes no time),
    ``memory_gb`` (peak over the weights), ``weights_gb`` (size of the process with weights; on CUDA both are those
    on the card), ``device``, ``precision`` and ``note`` (why a model was not measured).

    Raises
    ------
    InputError
        For numbers that measure nothing, or models without a network.
    UnknownNameError
        For a model that does not exist.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> sd.testing.bench("tgpt", cells=2, seconds=1, size="tiny")["cells"].tolist()  # doctest: +SKIP
    [2]
    """
    import pandas as pd

    from scdrugmap._device import pick_device, pick_precision

    keys = _keys(models)
    if cells < 1 or not seconds > 0:
        name, value = ("cells", cells) if cells < 1 else ("seconds", seconds)
        raise InputError(name, value, "more than none", "the defaults are 32 cells and 30 seconds.")
    if size not in SIZES:
        raise UnknownNameError("size", size, SIZES)
    pick_precision(precision, pick_device(device))
    rows = []
    for key in keys:
        if show is not None:
            show(key)
        asked = {"key": key, "cells": cells, "seconds": seconds, "size": size, "device": device, "precision": precision}
        rows.append({"model": key} | _elsewhere(asked))
    columns = ["model", "cells", "tokens", "cells_per_second", "gflops", "matmul_gflops", "ratio", "network_share",
               "waiting_share", "padding", "feed_per_second", "memory_gb", "weights_gb", "device", "precision", "note"]  # fmt: skip
    return pd.DataFrame(rows).reindex(columns=columns)


def _keys(models: str | Sequence[str] | None) -> list[str]:
    """Keys of the models, checked before any of them takes its time."""
    from scdrugmap.models import registry
    from scdrugmap.models.base import NetworkModel

    asked = MODELS if models is None else [models] if isinstance(models, str) else list(models)
    classes = [registry.get(name) for name in asked]
    for cls in classes:
        if not issubclass(cls, NetworkModel):
            raise InputError("models", cls.card.name, "models with a network", f"choose among {', '.join(MODELS)}.")
    return [cls.card.key for cls in classes]


def _elsewhere(asked: dict[str, Any]) -> dict[str, Any]:
    """Measure one model in a process of its own; one that fails says why."""
    command = [sys.executable, "-m", "scdrugmap.testing.speed", json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603  our own module
    if done.returncode == 0 and done.stdout.strip():
        return json.loads(done.stdout.strip().splitlines()[-1])
    last = done.stderr.strip().splitlines()[-1:] or [f"ended with code {done.returncode}, probably for want of memory"]
    return {"note": last[0]}


def measure(
    key: str,
    cells: int,
    seconds: float,
    size: Any = "official",
    device: str | None = None,
    precision: str | None = None,
) -> dict[str, Any]:
    """Measure one model in this process.

    Parameters
    ----------
    key, cells, seconds, size, device, precision
        As in :func:`bench`.

    Returns
    -------
    A row of its table.
    """
    import torch

    from scdrugmap._device import Engine
    from scdrugmap.embedding.embed import embed_counts
    from scdrugmap.embedding.source import CountSource
    from scdrugmap.models import registry
    from scdrugmap.models.base import GroupModel
    from scdrugmap.tl._profile import PeakMemory

    genes = bench_genes()
    X = bench_cells(max(cells * 16, FED) if size == "official" else cells)
    cls: Any = registry.get(key)
    model: NetworkModel = cls.random(genes, size=size)
    group, engine = isinstance(model, GroupModel), Engine(device, precision, progress=False)

    def run(n: int) -> Any:
        return embed_counts(model, CountSource(X[:n]), genes, engine)

    n = min(cells * (16 if group else 1), X.shape[0])
    run(1)
    n = _fitting(lambda k: run(k).work.seconds, n, seconds / REPEATS)
    result, weights = run(1), _resident(model)
    before = matmul_rate(result.device, result.precision)
    works: list[Any] = []
    start = time.perf_counter()
    with PeakMemory() as memory:
        while len(works) < REPEATS and (not works or time.perf_counter() - start < seconds):
            works.append(run(n).work)
    rate = (before + matmul_rate(result.device, result.precision)) / 2
    work = sorted(works, key=lambda w: w.seconds)[len(works) // 2]
    lengths = _lengths(model, X[:n], genes)
    useful = float(FLOPS[key](lengths).sum()) if key in FLOPS and size == "official" else np.nan
    on_card = result.device.startswith("cuda")
    return {
        "cells": n,
        "tokens": float(lengths.mean()),
        "cells_per_second": n / work.seconds,
        "gflops": useful / work.network_seconds / 1e9,
        "matmul_gflops": rate / 1e9,
        "ratio": useful / work.network_seconds / rate,
        "network_share": work.network_seconds / work.seconds,
        "waiting_share": work.waiting_seconds / work.seconds,
        "padding": np.nan if group else work.padding,
        "feed_per_second": feed_rate(model, X[:FED], genes, engine),
        "memory_gb": ((torch.cuda.max_memory_allocated() if on_card else memory.peak) - weights) / 1e9,
        "weights_gb": weights / 1e9,
        "device": torch.cuda.get_device_name(result.device) if on_card else result.device,
        "precision": result.precision,
        "note": "",
    }


def _fitting(time_of: Callable[[int], float], most: int, seconds: float) -> int:
    """The number of cells, up to ``most``, that takes about so many seconds; tried with few first."""
    n = 1
    while n < most:
        each = time_of(n) / n
        fits = int(seconds / max(each, 1e-9))
        if fits <= 2 * n:
            return max(min(fits, most), 1)
        n = min(4 * n, fits, most)
    return most


def _resident(model: NetworkModel) -> int:
    """Bytes of this process, or on the card, with the weights in place."""
    import psutil
    import torch

    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    return int(psutil.Process().memory_info().rss)


def _lengths(model: NetworkModel, X: sparse.csr_matrix, genes: Genes) -> np.ndarray:
    """Positions of the cells in the network."""
    from scdrugmap.models.kit.counts import Counts

    alignment = model.align(genes)
    counts = Counts(alignment.apply(X), alignment.ids, alignment.genes, np.arange(X.shape[0]))
    return model.costs(model.tokenize(counts))


def feed_rate(model: NetworkModel, X: sparse.csr_matrix, genes: Genes, engine: Any) -> float:
    """Cells per second of everything but the network, which takes no time here: a network that is slower never waits.

    Parameters
    ----------
    model
        The model; it is as it was afterwards.
    X, genes
        Cells.
    engine
        How to compute.
    """
    import torch

    from scdrugmap.embedding.embed import embed_counts
    from scdrugmap.embedding.source import CountSource
    from scdrugmap.models.base import GroupModel

    if isinstance(model, GroupModel):
        start = time.perf_counter()
        _lengths(model, X, genes)
        return X.shape[0] / (time.perf_counter() - start)
    width = model.dim
    # An attribute of the instance goes before the method of its class.
    model.network.forward = lambda batch: torch.zeros(1, 1).expand(len(next(iter(batch.values()))), width)
    try:
        work = embed_counts(model, CountSource(X), genes, engine).work
    finally:
        del model.network.forward
    return X.shape[0] / work.seconds


def matmul_rate(device: str = "cpu", precision: str = "float32", seconds: float = 0.5) -> float:
    """Floating-point operations per second of a large matrix product on this machine.

    Parameters
    ----------
    device, precision
        Where, and in which arithmetic.
    seconds
        Time to measure for, after one product to warm up.

    Examples
    --------
    >>> matmul_rate(seconds=0.01) > 0
    True
    """
    import torch

    size = 8192 if device.startswith("cuda") else 2048
    a, b = (torch.randn(size, size, device=device, dtype=getattr(torch, precision)) for _ in range(2))
    (a @ b)[0, 0].item()
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        for _ in range(10 if device.startswith("cuda") else 1):
            c = a @ b
            done += 1
        c[0, 0].item()
    return 2 * size**3 * done / (time.perf_counter() - start)


def bench_cells(n: int, n_genes: int = N_GENES, rng: int = 5) -> sparse.csr_matrix:
    """Counts with libraries of 1,500 to 16,000 and about 500 to 5,000 expressed genes.

    Parameters
    ----------
    n, n_genes
        Size.
    rng
        Seed.

    Examples
    --------
    >>> bench_cells(2).shape
    (2, 19264)
    """
    generator = np.random.default_rng(rng)
    library = np.clip(generator.lognormal(np.log(3900), 0.55, n), 1_500, 16_000).astype(int)
    expression = generator.lognormal(0, 2.0, n_genes)
    expression /= expression.sum()
    return sparse.vstack(
        [sparse.csr_matrix(generator.multinomial(size, expression).astype(np.float32)) for size in library],
        format="csr",
    )


def bench_genes(n: int = N_GENES) -> Genes:
    """Real identifiers, and placeholders beyond the packaged table.

    Parameters
    ----------
    n
        Number of genes.

    Examples
    --------
    >>> len(bench_genes(3))
    3
    """
    import pandas as pd

    from scdrugmap.genes.identifiers import Genes
    from scdrugmap.genes.table import packaged_table

    table = packaged_table().drop_duplicates("symbol").iloc[:n]
    more = n - len(table)
    symbols = pd.concat([table["symbol"], pd.Series([f"PLACE{i}" for i in range(more)])])
    ensembl = pd.concat([table["ensembl_id"], pd.Series([f"ENSG7{i:010d}" for i in range(more)])])
    return Genes.from_names(symbols.tolist(), ensembl=ensembl.tolist())


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
