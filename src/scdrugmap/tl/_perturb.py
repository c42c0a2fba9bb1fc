"""``sd.tl.perturb``: what the predictor says once a gene is taken away or raised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scdrugmap import __version__, _anndata
from scdrugmap._errors import InputError, InputTypeError, UnknownNameError
from scdrugmap._keys import KEYS
from scdrugmap._logging import get_logger, progress

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from scdrugmap.predictor.predictor import ResponsePredictor

#: Edited cells that one call may ask a predictor about without being told so.
MAX_EVALUATIONS = 5_000_000


def perturb(
    adata: AnnData | MuData,
    predictor: ResponsePredictor | str | Path,
    *,
    genes: Sequence[str] | str | None = None,
    sets: Mapping[str, Sequence[str]] | None = None,
    kind: Literal["knockout", "knockdown", "overexpress"] = "knockout",
    by: str = "sample",
    n_null: int = 100,
    max_evaluations: int = MAX_EVALUATIONS,
    layer: str | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    mod: str = "rna",
    rng: int | np.random.Generator | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    """Perturb genes in silico, and ask the predictor again.

    Counts are edited before anything else happens to them, so that every model and every baseline sees an edited cell
    as it would see a measured one: the result equals predicting on the edited counts. It is a statement of the model.

    Parameters
    ----------
    adata
        Cells with raw counts.
    predictor
        A predictor that embeds counts itself (trained with ``model=``), or its folder.
    genes
        Names of genes, each perturbed by itself; all that a cell expresses where neither ``genes`` nor ``sets`` is given.
    sets
        Name to genes that are perturbed together.
    kind
        ``"knockout"`` and ``"knockdown"`` set the count to zero: the token is gone, and whatever a model scales by the
        library size is scaled by what is left. (The two differ for models that are told a library size; those here
        compute it from the counts they are given, so that the two are the same edit.) ``"overexpress"`` raises the
        count to the 95th percentile of the cells that express the gene; higher counts stay.
    by
        Column of ``obs`` with the samples to summarise over.
    n_null
        Random genes matched in mean expression and detection that each gene is compared with; 0 for none.
    max_evaluations
        Edited cells above which the call is refused before it begins.
    layer
        Layer of the raw counts, if it is another one than at training.
    batch_size, device
        As in :func:`embed`.
    mod
        Modality of a MuData.
    rng
        Seed of the random genes; ``sd.settings.seed`` if ``None``.
    copy
        Return a modified copy.

    Returns
    -------
    ``None``, or the copy. Writes:

    ``uns["perturbation"]``
        Data frame, one row per gene (or set) and sample: ``gene``; ``sample``; ``delta_logit``, the mean change of the
        log-odds before calibration over all cells of the sample, **positive = more resistant**; ``low`` and ``high``,
        its 95 % interval over these cells; ``null_percentile``, the percentage of matched random genes that move the
        sample less far up; ``n_cells``.
    ``uns["perturbation_ranking"]``
        Which edits would re-sensitise: one row per gene, most sensitising first, with the mean over samples and its
        interval over *samples* (missing for one sample).
    ``uns["perturbation_record"]``
        Parameters, and how many edited cells the predictor was asked about.

    Raises
    ------
    UnknownNameError
        For a gene that the data do not have, by name.
    InputError
        If the predictor reads ``obsm``, no cell expresses a gene that is to be raised, or too much is asked.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=1, n_cells=200, n_genes=100, rng=0)
    >>> predictor = sd.tl.train(adata, model="pca", head="logistic", rng=0)
    >>> sd.tl.perturb(adata, predictor, genes=[adata.var_names[0]], n_null=5, rng=0)
    >>> adata.uns["perturbation"].columns.tolist()
    ['gene', 'sample', 'delta_logit', 'low', 'high', 'null_percentile', 'n_cells']
    """
    from scdrugmap._random import seed_of
    from scdrugmap.interpret.perturb import KINDS
    from scdrugmap.interpret.scoring import Scorer
    from scdrugmap.tl._train import load_any

    edit = _anndata.edit(adata, copy=copy, mod=mod)
    _anndata.refuse_empty(edit.adata, genes=True)
    if kind not in KINDS:
        raise UnknownNameError("kind", kind, KINDS)
    if not isinstance(n_null, int | np.integer) or n_null < 0:
        raise InputError("n_null", n_null, "a number of genes, 0 or more", "pass n_null=100.")
    trained, seed = load_any(predictor), seed_of(rng)
    samples = _anndata.obs_text(edit.adata, by, "by")
    scorer = Scorer(trained, edit.adata, layer=layer, device=device, batch_size=batch_size)
    wanted = _wanted(edit.adata, genes, sets)
    work = _Work(scorer, samples, edit.adata.n_vars)
    names, columns = _columns(edit.adata, wanted, work.expression, kind)
    columns, null = _with_null(columns, work.expression, n_null, seed)
    summary = work.run(columns, kind, max_evaluations)
    table = _table(names, work.names, summary, null)
    edit.adata.uns[KEYS.perturbation] = table
    edit.adata.uns[KEYS.perturbation + KEYS.ranking] = ranking(table)
    edit.adata.uns[KEYS.perturbation + KEYS.record] = {
        "params": {"kind": kind, "by": by, "n_null": int(n_null), "seed": seed},
        "scdrugmap": __version__,
        "representation": trained.representation.label,
        "edited_cells": int(summary.n_changed),
        "embedded_cells": int(summary.n_forward),
        "pairs": int(len(names) * edit.adata.n_obs),
    }
    return edit.finish()


class _Work:
    """The cells, read block by block; blocks are whole groups where cells see each other."""

    def __init__(self, scorer: Any, samples: np.ndarray, n_genes: int) -> None:
        from scdrugmap.embedding.source import CountSource
        from scdrugmap.interpret.perturb import survey
        from scdrugmap.interpret.pseudobulk import check_counts

        self.scorer, self.source, self.n_genes = scorer, CountSource(scorer.counts), n_genes
        check_counts(self.source, "sd.tl.perturb")
        self.codes, self.names = pd.factorize(samples, sort=True)
        self.expression = survey((X for _, X in self.source.blocks(4096)), n_genes)

    def blocks(self) -> Any:
        """Yield counts and sample of the cells."""
        from scdrugmap.interpret.edits import rows_per_block

        n, context, size = self.source.shape[0], self.scorer.context, rows_per_block(self.scorer)
        if context is None:
            parts = [np.arange(i, min(i + size, n)) for i in range(0, n, size)]
        else:
            parts = [np.flatnonzero(context == g) for g in np.unique(context)]
        for rows in parts:
            yield self.source[rows], self.codes[rows]

    def run(self, columns: list[np.ndarray], kind: str, limit: int) -> Any:
        """Perturb, unless more is asked for than the limit allows."""
        from scdrugmap.interpret.edits import edits_of
        from scdrugmap.interpret.perturb import Perturbations, evaluate

        perturbations = Perturbations.of(columns, self.n_genes, kind, self.expression.level)
        detection = self.expression.detection
        share = [1.0 if kind == "overexpress" else min(detection[c].sum(), 1.0) for c in columns]
        projected = int(sum(share) * self.source.shape[0])
        get_logger().info("perturb: at most %d edited cells for %d perturbations", projected, len(columns))
        if projected > limit:
            raise InputError(
                "genes", f"{len(columns)} perturbations (random genes included) of {projected} edited cells",
                f"at most max_evaluations={limit}", "name fewer genes, pass fewer cells or a smaller n_null, or raise it.",
            )  # fmt: skip
        with progress(projected, "perturbing", "cell") as bar:
            return evaluate(
                self.scorer, self.blocks(), perturbations, len(self.names),
                whole=self.scorer.context is not None, edits=edits_of(self.scorer), tick=bar.update,
            )  # fmt: skip


def _wanted(
    adata: AnnData, genes: Sequence[str] | str | None, sets: Mapping[str, Sequence[str]] | None
) -> dict[str, list[str]] | None:
    """Name and genes of each perturbation; ``None`` for all genes."""
    if genes is None and sets is None:
        return None
    if sets is not None and not isinstance(sets, Mapping):
        raise InputTypeError("sets", sets, "a mapping of name to genes", "pass {'efflux': ['ABCB1', 'ABCG2']}.")
    singles = [genes] if isinstance(genes, str) else [] if genes is None else list(genes)
    out = {str(g): [str(g)] for g in singles}
    for name, members in (sets or {}).items():
        if isinstance(members, str) or not len(members):
            raise InputError(f"sets[{name!r}]", members, "a list of genes", "pass one gene or more in a list.")
        if str(name) in out:
            raise InputError("sets", name, "names that differ from those of the genes", "rename the set.")
        out[str(name)] = [str(g) for g in members]
    if not out:
        raise InputError("genes", genes, "one gene or more", "pass names of genes, or leave it out for all.")
    return out


def gene_columns(adata: AnnData, names: Sequence[str], argument: str = "genes") -> dict[str, np.ndarray]:
    """Columns of genes by name, symbol or Ensembl id.

    Raises
    ------
    UnknownNameError
        For the first gene that is not there.
    """
    found = _anndata.gene_ids(adata)
    places: dict[str, list[int]] = {}
    for ids in (adata.var_names.to_numpy(), found.symbols, found.ensembl):
        fresh: dict[str, list[int]] = {}
        for i, name in enumerate(ids.astype(str)):
            if name and name not in places:
                fresh.setdefault(name, []).append(i)
        places |= fresh
    for name in names:
        if name not in places:
            raise UnknownNameError(argument, name, adata.var_names.astype(str), "Names, symbols and Ensembl ids count.")
    return {name: np.array(places[name]) for name in names}


def _columns(
    adata: AnnData, wanted: dict[str, list[str]] | None, expression: Any, kind: str
) -> tuple[list[str], list[np.ndarray]]:
    """Name and columns of each perturbation."""
    if wanted is None:
        expressed = np.flatnonzero(expression.detection > 0)
        return adata.var_names[expressed].astype(str).tolist(), [np.array([i]) for i in expressed]
    places = gene_columns(adata, list(dict.fromkeys(g for members in wanted.values() for g in members)))
    if kind == "overexpress":
        silent = [g for g, at in places.items() if not expression.level[at].max() > 0]
        if silent:
            raise InputError(
                "genes", f"{', '.join(silent[:5])}, which no cell expresses", "genes whose level in some cell says how "
                "far they can be raised", "leave them out.",
            )  # fmt: skip
    return list(wanted), [np.unique(np.concatenate([places[g] for g in members])) for members in wanted.values()]


def _with_null(
    columns: list[np.ndarray], expression: Any, n_null: int, seed: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Add the matched random genes (each one once); also returns which perturbations are the null of which."""
    from scdrugmap.interpret.perturb import matched

    rng = np.random.default_rng(seed)
    targets = np.unique(np.concatenate(columns))
    drawn = dict(zip(targets.tolist(), matched(expression, targets, n_null, rng), strict=True))
    place = {tuple(c.tolist()): i for i, c in enumerate(columns)}
    out, null = list(columns), []
    for own in columns:
        # A random set holds a random match of each gene of the set.
        fakes = np.column_stack([drawn[g] for g in own.tolist()])
        rows = []
        for fake in fakes:
            key = tuple(np.unique(fake).tolist())
            if key not in place:
                place[key] = len(out)
                out.append(np.array(key))
            rows.append(place[key])
        null.append(np.array(rows, dtype=np.int64))
    return out, null


def _table(names: list[str], samples: np.ndarray, summary: Any, null: list[np.ndarray]) -> pd.DataFrame:
    """One row per gene and sample."""
    from scdrugmap.interpret.perturb import percentile

    low, high = summary.interval()
    frames = []
    for i, name in enumerate(names):
        frames.append(
            pd.DataFrame(
                {
                    "gene": name,
                    "sample": samples.astype(str),
                    "delta_logit": summary.mean[:, i],
                    "low": low[:, i],
                    "high": high[:, i],
                    "null_percentile": percentile(summary.mean[:, i], summary.mean[:, null[i]]),
                    "n_cells": summary.n,
                }
            )
        )
    table = pd.concat(frames, ignore_index=True)
    table.index = table.index.astype(str)
    return table


def ranking(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over samples of each gene with its interval, the most sensitising first."""
    from scipy import stats

    groups = table[table["n_cells"] > 0].groupby("gene", sort=False)
    out = groups.agg(
        delta_logit=("delta_logit", "mean"),
        spread=("delta_logit", "std"),
        n_samples=("sample", "size"),
        null_percentile=("null_percentile", "mean"),
    ).reset_index()
    n = out["n_samples"]
    half = stats.t.ppf(0.975, np.maximum(n - 1, 1)) * out.pop("spread") / np.sqrt(n)
    out.insert(2, "low", out["delta_logit"] - half)
    out.insert(3, "high", out["delta_logit"] + half)
    out = out.sort_values("delta_logit", kind="stable").reset_index(drop=True)
    out.index = out.index.astype(str)
    return out
