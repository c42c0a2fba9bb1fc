"""``sd.tl.attribute``: what a predictor looks at."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scdrugmap import __version__, _anndata
from scdrugmap._errors import InputError, ScDrugMapWarning, UnknownNameError
from scdrugmap._keys import KEYS
from scdrugmap._logging import progress

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from scdrugmap.predictor.predictor import ResponsePredictor

STORES = ("table", "cells")


def attribute(
    adata: AnnData | MuData,
    predictor: ResponsePredictor | str | Path,
    *,
    method: Literal["auto", "linear", "ig", "gradient_x_input", "occlusion"] = "auto",
    store: Literal["table", "cells"] = "table",
    max_cells_per_sample: int | None = 200,
    n_steps: int = 20,
    baseline: Any = "auto",
    by: str = "sample",
    folder: str | Path | None = None,
    layer: str | None = None,
    device: str | None = None,
    mod: str = "rna",
    rng: int | np.random.Generator | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    """Attribute what a predictor says of each cell to the cell's genes.

    This is about the predictor, not about biology: :func:`biomarkers` asks the data, and :func:`attribution_report`
    tells whether an attribution deserves belief.

    Parameters
    ----------
    adata
        Cells with raw counts.
    predictor
        A predictor that embeds counts itself (trained with ``model=``), or its folder.
    method
        ``"linear"``: exact, for linear heads on ``hvg`` and ``pca``. ``"ig"``: integrated gradients, through the token
        embeddings of a network (frozen or with adapters), or through a fitted encoder. ``"gradient_x_input"``: the same in
        one step, a first look. ``"occlusion"``: one gene at a time is taken away; for every head, and slow.
        ``"auto"``: the first of ``linear``, ``ig`` and ``occlusion`` that is possible.
    store
        ``"cells"`` also writes the attributions of single cells.
    max_cells_per_sample
        Cells drawn from each sample; ``None`` for all.
    n_steps
        Steps of the path to begin with; cells whose attributions do not add up within 5 % get twice as many, up to 256.
    baseline
        Where the path begins: ``"empty"`` (padding instead of every gene, or no expression), ``"mean"`` of all cells,
        ``"sensitive"``: the mean of the sensitive cells, the name of a cell, or the counts of one. ``"auto"``: the empty
        cell for networks that read tokens; else the sensitive cells where labels are known, else the mean.
    by
        Column of ``obs`` with the samples; without such a column all cells are one sample.
    folder
        Folder in which each block of cells is kept once it is finished: a call that was killed goes on there when it is
        repeated, with the numbers of one that was not.
    layer
        Layer of the raw counts, if it is another one than at training.
    device
        As in :func:`embed`. The arithmetic is float32.
    mod
        Modality of a MuData.
    rng
        Seed of the draw of cells; ``sd.settings.seed`` if ``None``.
    copy
        Return a modified copy.

    Returns
    -------
    ``None``, or the copy. Writes:

    ``uns["attribution"]``
        Data frame, one row per gene, the largest first: ``gene``; ``attribution`` to the log-odds of *resistant* before
        calibration, mean over samples, **positive = towards resistant**; ``low`` and ``high``, its 95 % interval over
        samples; ``sign_consistency``, the share of samples with the same sign.
    ``varm["attribution"]``
        Mean per sample, genes x samples; the names of the samples are in the record.
    ``layers["attribution"]``
        With ``store="cells"``: CSR, cells x genes; rows of cells that were not drawn are empty.
    ``obs["attributed"]``, ``obs["attribution_gap"]``
        Whether a cell was drawn; and what is missing to completeness, as a share of the change of the log-odds from the
        baseline to the cell (of 0.1 where the change is smaller). Missing for cells that were skipped, and for occlusion,
        which does not add up to anything.
    ``uns["attribution_record"]``
        Parameters, the method that was used, the unit (models that read ranks or bins are explained by the presence of a
        gene at its rank, ``"token"``), and how many cells stayed incomplete.

    Raises
    ------
    InputError
        If the predictor reads ``obsm``, the method does not fit the head, the baseline is not known, or ``folder`` holds
        attributions of another call.

    References
    ----------
    Sundararajan, Taly and Yan 2017, Axiomatic attribution for deep networks, ICML.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=1, n_cells=200, n_genes=100, rng=0)
    >>> predictor = sd.tl.train(adata, model="pca", head="logistic", rng=0)
    >>> sd.tl.attribute(adata, predictor, rng=0)
    >>> bool(adata.obs["attribution_gap"].abs().max() < 1e-3)
    True
    """
    from scdrugmap._random import seed_of
    from scdrugmap.interpret.attribution import METHODS, chosen_cells, per_sample
    from scdrugmap.interpret.explained import summarise
    from scdrugmap.interpret.paths import TOLERANCE
    from scdrugmap.tl._train import load_any

    edit = _anndata.edit(adata, copy=copy, mod=mod)
    cells = edit.adata
    _anndata.refuse_empty(cells, genes=True)
    _check(method, METHODS, store, max_cells_per_sample, n_steps)
    trained, seed = load_any(predictor), seed_of(rng)
    samples = np.full(cells.n_obs, "all")
    if by in cells.obs or by != KEYS.sample:
        samples = _anndata.obs_text(cells, by, "by")
    explainer, named = open_explainer(cells, trained, method, n_steps, baseline, seed, layer=layer, device=device)
    rows = chosen_cells(samples, max_cells_per_sample, np.random.default_rng(seed))
    codes, names = pd.factorize(samples, sort=True)
    with progress(len(rows), "attributing", "cell") as bar:
        means, gap, steps, values = per_sample(
            _ticked(explainer.blocks(rows, None if folder is None else Path(folder)), bar),
            codes,
            len(names),
            cells.n_vars,
            store == "cells",
        )
    short = int((np.abs(gap[np.isfinite(gap)]) > TOLERANCE).sum())
    if short and explainer.used != "gradient_x_input":
        warnings.warn(
            f"the attributions of {short} of {len(rows)} cells lack more than {TOLERANCE:.0%} of the change of the "
            "log-odds even with the most steps: obs['attribution_gap'] names them.",
            ScDrugMapWarning,
            stacklevel=2,
        )
    drawn = np.zeros(cells.n_obs, dtype=bool)
    drawn[rows] = True
    cells.obs[KEYS.attributed], cells.obs[KEYS.attribution_gap] = drawn, gap
    cells.uns[KEYS.attribution] = summarise(means, cells.var_names.to_numpy())
    cells.varm[KEYS.attribution] = means
    if values is not None:
        cells.layers[KEYS.attribution] = values
    cells.uns[KEYS.attribution + KEYS.record] = {
        "params": {"method": explainer.used, "baseline": named, "n_steps": int(n_steps), "seed": seed, "by": by},
        "samples": np.array(names, dtype=str),
        "unit": "expression" if explainer.dense else "token",
        "incomplete_cells": short,
        "refined_cells": int((steps > n_steps).sum()),
        "most_steps": int(steps.max(initial=0)),
        "scdrugmap": __version__,
        "representation": trained.representation.label,
    }
    return edit.finish([KEYS.attributed, KEYS.attribution_gap])


def open_explainer(
    adata: AnnData,
    trained: ResponsePredictor,
    method: str,
    n_steps: int,
    baseline: Any,
    seed: int,
    *,
    layer: str | None = None,
    device: str | None = None,
) -> tuple[Any, str]:
    """Make ready to explain the cells of ``adata``; also returns the name of the baseline."""
    from scdrugmap._cohort import encode
    from scdrugmap.embedding.source import CountSource
    from scdrugmap.interpret.attribution import Explainer, reference_of
    from scdrugmap.interpret.pseudobulk import check_counts
    from scdrugmap.interpret.scoring import Scorer
    from scdrugmap.predictor.representation import NetworkRepresentation

    scorer = Scorer(trained, adata, layer=layer, device=device)
    source = CountSource(scorer.counts)
    check_counts(source, "sd.tl.attribute")
    y = encode(adata.obs[KEYS.response]) if KEYS.response in adata.obs else None
    # Near the empty cell a network that begins with sums and norms is all but singular.
    dense = not isinstance(trained.representation, NetworkRepresentation) or scorer.network.card.context == "group"
    reference, named = reference_of(baseline, dense, source, y, adata.obs_names.to_numpy(), np.random.default_rng(seed))
    return Explainer(scorer, _anndata.gene_ids(adata), method, n_steps, reference), named


def _check(method: str, methods: tuple[str, ...], store: str, most: int | None, n_steps: int) -> None:
    """Refuse arguments that have no meaning."""
    if method not in methods:
        raise UnknownNameError("method", method, methods)
    if store not in STORES:
        raise UnknownNameError("store", store, STORES)
    if most is not None and (not isinstance(most, int | np.integer) or most < 1):
        raise InputError("max_cells_per_sample", most, "a number of cells, or None for all", "pass 200.")
    if not isinstance(n_steps, int | np.integer) or not 1 <= n_steps <= 256:
        raise InputError("n_steps", n_steps, "1 to 256 steps", "pass 20.")


def _ticked(blocks: Any, bar: Any) -> Any:
    """Blocks, with the progress told."""
    for rows, part in blocks:
        yield rows, part
        bar.update(len(rows))
