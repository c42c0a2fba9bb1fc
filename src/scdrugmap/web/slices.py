"""Columns of a result, one file each, so that neither server nor browser ever holds the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from scdrugmap._files import atomic_path, write_json

_COLUMNS = 40
_CATEGORIES = 1000
_MISSING = 65535
#: Cells whose places are computed; the others go between their nearest neighbours among these.
_SKETCH = 4000


def write_slices(
    folder: Path, data: Any, predicted: list[Any], clusters: pd.Series, features: np.ndarray
) -> list[dict[str, Any]]:
    """Write layouts, fields, rows and genes.

    Parameters
    ----------
    folder
        New folder.
    data
        The cells.
    predicted
        Columns of ``obs`` with predictions; they come first.
    clusters
        A cluster of every cell.
    features
        What the predictor saw of every cell.

    Returns
    -------
    The layouts, with ``title`` and ``xy``.
    """
    folder.mkdir()
    layouts = _layouts(data, features)
    for i, layout in enumerate(layouts):
        layout["xy"].astype("<f4").tofile(folder / f"layout-{i}.bin")
    frame = data.obs[[*predicted, *[c for c in data.obs if c not in predicted][:_COLUMNS]]].copy()
    frame.columns = [str(c) for c in frame.columns]
    if clusters.name not in frame:
        frame[str(clusters.name)] = clusters.to_numpy()
    fields = [_field(folder, i, str(c), frame[c], c in predicted) for i, c in enumerate(frame.columns)]
    _rows(folder, frame)
    genes = _genes(folder, data)
    write_json(
        folder / "map.json",
        {
            "n_cells": data.n_obs,
            "layouts": [{"name": x["name"], "title": x["title"]} for x in layouts],
            "fields": [f for f in fields if f is not None],
            "n_genes": genes,
        },
        indent=None,
    )
    return layouts


def _layouts(data: Any, features: np.ndarray) -> list[dict[str, Any]]:
    """Maps that the file brought, then our own."""
    out = []
    for key in ("X_umap", "X_tsne", "X_draw_graph_fa"):
        if key in data.obsm and np.asarray(data.obsm[key]).shape[1] >= 2:
            out.append({"name": key, "title": key.removeprefix("X_"), "xy": np.asarray(data.obsm[key])[:, :2]})
    known = np.isfinite(features).all(axis=1)
    if known.sum() >= 10:
        out.append({"name": "tsne", "title": "t-SNE of what the predictor sees", "xy": _tsne(features, known)})
        out.append({"name": "pca", "title": "principal components", "xy": _placed(_pca(features[known], 2), known)})
    if not out:
        out.append({"name": "none", "title": "no map", "xy": np.zeros((data.n_obs, 2))})
    return out


def _pca(x: np.ndarray, n: int) -> np.ndarray:
    from sklearn.decomposition import PCA

    return PCA(min(n, *x.shape), random_state=0).fit_transform(x)


def _placed(xy: np.ndarray, known: np.ndarray) -> np.ndarray:
    out = np.full((len(known), 2), np.nan)
    out[known, : xy.shape[1]] = xy
    return out


def _tsne(features: np.ndarray, known: np.ndarray) -> np.ndarray:
    """t-SNE of a sketch; the other cells between their nearest neighbours of it."""
    from sklearn.manifold import TSNE
    from sklearn.neighbors import NearestNeighbors

    x = _pca(features[known], 30)
    chosen = np.sort(np.random.default_rng(0).permutation(len(x))[:_SKETCH])
    perplexity = float(min(30, (len(chosen) - 1) / 3))
    rough = TSNE(2, perplexity=perplexity, init="pca", random_state=0, max_iter=500, n_jobs=1).fit_transform(x[chosen])
    if len(chosen) == len(x):
        return _placed(rough, known)
    out = np.empty((len(x), 2))
    finder = NearestNeighbors(n_neighbors=5).fit(x[chosen])
    for start in range(0, len(x), 20_000):
        rows = slice(start, start + 20_000)
        distance, near = finder.kneighbors(x[rows])
        weight = 1 / (distance + 1e-6)
        weight /= weight.sum(axis=1, keepdims=True)
        out[rows] = (rough[near] * weight[..., None]).sum(axis=1)
    out[chosen] = rough
    return _placed(out, known)


def _field(folder: Path, number: int, name: str, values: pd.Series, predicted: bool) -> dict[str, Any] | None:
    """One column as numbers that the browser colours by."""
    about: dict[str, Any] = {"id": number, "name": name, "group": "prediction" if predicted else "your columns"}
    path = folder / f"field-{number}.bin"
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        numbers = values.to_numpy(dtype=np.float32, na_value=np.nan)
        finite = numbers[np.isfinite(numbers)]
        numbers.astype("<f4").tofile(path)
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        return {**about, "kind": "number", "low": low, "high": high}
    category = pd.Categorical(values.astype(object).where(values.notna(), None))
    if len(category.categories) > _CATEGORIES:
        return None
    codes = category.codes.astype(np.int32)
    np.where(codes < 0, _MISSING, codes).astype("<u2").tofile(path)
    return {**about, "kind": "category", "categories": [str(c)[:200] for c in category.categories]}


def _rows(folder: Path, frame: pd.DataFrame) -> None:
    """The table of cells in Arrow, read by slices."""
    import pyarrow as pa
    from pyarrow import feather

    plain = frame.copy()
    for c in plain.columns:
        if not pd.api.types.is_numeric_dtype(plain[c]):
            plain[c] = plain[c].astype(object).where(plain[c].notna(), None).map(lambda v: v if v is None else str(v))
    plain.insert(0, "cell", frame.index.astype(str).to_numpy()) if "cell" not in plain else None
    table = pa.Table.from_pandas(plain, preserve_index=False)
    with atomic_path(folder / "cells.arrow") as path:
        feather.write_feather(table, str(path), compression="uncompressed", chunksize=10_000)


def _genes(folder: Path, data: Any) -> int:
    """Log-normalised counts, gene by gene."""
    from scdrugmap import _anndata

    counts = sparse.csr_matrix(_anndata.counts(data, None), dtype=np.float32)
    total = np.asarray(counts.sum(axis=1)).ravel()
    scale = np.divide(1e4, total, out=np.zeros_like(total), where=total > 0)
    counts.data = np.log1p(np.maximum(counts.data * np.repeat(scale, np.diff(counts.indptr)), 0))
    by_gene = counts.tocsc()
    for name, array in (("indptr", by_gene.indptr.astype(np.int64)), ("indices", by_gene.indices.astype(np.int32)),
                        ("data", by_gene.data.astype(np.float32))):  # fmt: skip
        np.save(folder / f"genes-{name}.npy", array, allow_pickle=False)
    ids = _anndata.gene_ids(data)
    names = [str(s or v) for s, v in zip(ids.symbols, data.var_names, strict=True)]
    write_json(folder / "genes.json", names, indent=None)
    return len(names)
