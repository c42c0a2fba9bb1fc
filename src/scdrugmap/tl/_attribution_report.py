"""``sd.tl.attribution_report``: whether what a predictor looks at may be believed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdrugmap import _anndata
from scdrugmap._errors import ScDrugMapWarning
from scdrugmap._keys import KEYS

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from scdrugmap.interpret.report import AttributionReport
    from scdrugmap.predictor.predictor import ResponsePredictor

#: Refitted heads, shuffles and so on behind each check.
N_REPEATS = 3
#: Studies that a head is trained on, each by itself.
MOST_STUDIES = 5


def attribution_report(
    adata: AnnData | MuData,
    predictor: ResponsePredictor | str | Path,
    *,
    reference: AnnData | MuData | None = None,
    key: str = "response",
    by: str = "sample",
    max_cells_per_sample: int = 50,
    n_steps: int = 20,
    layer: str | None = None,
    device: str | None = None,
    mod: str = "rna",
    rng: int | np.random.Generator | None = None,
) -> AttributionReport:
    """Test whether the attributions of a predictor are right, and refuse to call a gene a biomarker where they are not.

    Parameters
    ----------
    adata
        Cells with raw counts to explain; not changed.
    predictor
        A predictor that embeds counts itself (trained with ``model=``), or its folder.
    reference
        Labelled cells, over the same genes as the predictor reads; ``adata`` itself where it is labelled.
    key
        Column of ``obs`` with the labels.
    by
        Column of ``obs`` with the samples.
    max_cells_per_sample
        Cells of each sample that are explained, many times over.
    n_steps
        Steps of the paths to begin with.
    layer
        Layer of the raw counts, if it is another one than at training.
    device
        As in :func:`embed`.
    mod
        Modality of a MuData.
    rng
        Seed of everything random; ``sd.settings.seed`` if ``None``.

    Returns
    -------
    AttributionReport
        ``.ok``: whether a gene may be called a biomarker; ``.reasons`` why not; ``.table`` with one row per check:

        *prediction*: held-out samples are predicted better than by chance (the head is refitted without them);
        *faithfulness*, *beats expression*: deleting the named genes moves the predictor further than deleting random genes
        matched in expression, and than the most expressed ones; *random head*, *random weights*, *random labels*: randomised
        predictors must be explained differently; *stable cells*, *stable folds*, *stable seeds*, *stable studies*: halves of
        the cells, heads trained without some samples, with other seeds and on one study each must be explained alike (with
        the rank correlation between them and its interval in columns of their own); *planted truth* in simulated data, else *agreement* with the
        differences between samples. What needs labels and has none is not tested.
        ``.curves`` (deletion and insertion), ``.genes`` (with how often each is selected), ``.to_text()``.

    Raises
    ------
    InputError
        If the predictor reads ``obsm``.

    References
    ----------
    Adebayo et al. 2018, Sanity checks for saliency maps, NeurIPS; DeYoung et al. 2020, ERASER, ACL.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=1, n_cells=300, n_genes=100, rng=0)
    >>> predictor = sd.tl.train(adata, model="hvg", head="logistic", rng=0)
    >>> report = sd.tl.attribution_report(adata, predictor, max_cells_per_sample=10, rng=0)
    >>> isinstance(report.ok, bool)
    True
    """
    from scdrugmap._random import seed_of
    from scdrugmap.interpret import report as checks
    from scdrugmap.interpret.faithfulness import deletion_curves
    from scdrugmap.tl._train import load_any

    cells = _anndata.resolve(adata, mod=mod)
    _anndata.refuse_empty(cells, genes=True)
    trained, seed = load_any(predictor), seed_of(rng)
    rng_ = np.random.default_rng(seed)
    subject = _Subject(cells, trained, by, max_cells_per_sample, n_steps, layer, device, seed)
    means = subject.means(trained)
    attribution = means.mean(axis=1)
    curves = deletion_curves(subject.scorer, subject.counts, subject.samples, attribution, subject.expression(), rng_)
    labelled = _Labelled.of(
        cells if reference is None else _anndata.resolve(reference, mod=mod), trained, key, by, layer
    )
    rows = [_prediction(labelled, seed, rng_), *checks.faithfulness_checks(curves)]
    rows += _randomised(subject, trained, attribution, rng_)
    rows.append(_halves(subject, trained))
    refits, folds = _refits(labelled, subject, trained, attribution, seed, rng_)
    rows += [*folds, _truth(cells, labelled, attribution, key, by, seed)]
    table = pd.DataFrame(rows)
    table["passed"] = table["passed"].astype("boolean")
    selected = [set(np.argsort(-np.abs(r), kind="stable")[:50].tolist()) for r in (refits or [attribution])]
    share = np.mean([[i in s for i in range(len(attribution))] for s in selected], axis=0)
    genes = pd.DataFrame({"gene": cells.var_names.astype(str), "attribution": attribution, "selection": share})
    genes = genes.iloc[np.argsort(-np.abs(attribution), kind="stable")].reset_index(drop=True)
    return checks.AttributionReport(table, curves.table, genes)


class _Subject:
    """The cells that are explained again and again, under predictors that differ in head or weights."""

    def __init__(
        self,
        adata: AnnData,
        trained: ResponsePredictor,
        by: str,
        most: int,
        n_steps: int,
        layer: str | None,
        device: str | None,
        seed: int,
    ) -> None:
        from scdrugmap.embedding.source import CountSource
        from scdrugmap.interpret.attribution import chosen_cells
        from scdrugmap.interpret.pseudobulk import check_counts
        from scdrugmap.interpret.scoring import Scorer

        names = np.full(adata.n_obs, "all")
        if by in adata.obs or by != KEYS.sample:
            names = _anndata.obs_text(adata, by, "by")
        rows = chosen_cells(names, most, np.random.default_rng(seed))
        source = CountSource(Scorer(trained, adata, layer=layer, device=device).counts)
        check_counts(source, "sd.tl.attribution_report")
        self.counts, self.samples = source[rows], names[rows]
        cut = adata[rows].to_memory() if adata.isbacked else adata[rows].copy()
        self.adata, self.layer, self.device, self.n_steps, self.seed = cut, layer, device, n_steps, seed
        self.scorer = Scorer(trained, cut, layer=layer, device=device)

    def expression(self) -> Any:
        """Mean and detection of every gene."""
        from scdrugmap.interpret.perturb import survey

        return survey(iter([self.counts]), self.counts.shape[1])

    def means(self, predictor: ResponsePredictor, rows: np.ndarray | None = None) -> np.ndarray:
        """Mean attribution, genes x samples."""
        from scdrugmap.interpret.attribution import per_sample
        from scdrugmap.tl._attribute import open_explainer

        explainer, _ = open_explainer(
            self.adata, predictor, "auto", self.n_steps, "auto", self.seed, layer=self.layer, device=self.device
        )
        chosen = np.arange(len(self.samples)) if rows is None else rows
        codes, names = pd.factorize(self.samples, sort=True)
        return per_sample(explainer.blocks(chosen), codes, len(names), self.counts.shape[1], False)[0]


class _Labelled:
    """Features, labels and samples of the labelled cells; the head is refitted on them."""

    def __init__(self, X: np.ndarray, y: np.ndarray, samples: np.ndarray, studies: np.ndarray) -> None:
        self.X, self.y, self.samples, self.studies = X, y, samples, studies

    @classmethod
    def of(cls, adata: AnnData, trained: ResponsePredictor, key: str, by: str, layer: str | None) -> _Labelled | None:
        """Read them, or return ``None`` where labels or samples are missing."""
        from scdrugmap._cohort import read_cohort

        if key not in adata.obs or by not in adata.obs:
            return None
        cohort = read_cohort(adata, label_key=key, sample_key=by)
        if len(np.unique(cohort.y[cohort.y >= 0])) < 2:
            return None
        X = trained.features(adata, layer=layer, progress=False)
        kept = (cohort.y >= 0) & ~np.isnan(X).any(axis=1)
        sample, study = cohort.sample.astype(str), cohort.study.astype(str)
        return cls(X[kept], cohort.y[kept].astype(int), sample[kept], study[kept])

    def fitted(self, head: Any, rows: np.ndarray, y: np.ndarray) -> Any:
        """A copy of the head, trained on some rows."""
        from scdrugmap.heads.fit import fit_with

        return fit_with(head, self.X[rows], y[rows], self.samples[rows])


def _prediction(labelled: _Labelled | None, seed: int, rng: np.random.Generator) -> dict[str, Any]:
    """Score samples by heads that have not seen them."""
    from scdrugmap.interpret import report as checks

    if labelled is None:
        return checks.row("prediction", note="not tested: no labelled cells with samples; pass reference=")
    return labelled_margins(labelled, seed, rng)


def labelled_margins(labelled: _Labelled, seed: int, rng: np.random.Generator) -> dict[str, Any]:
    """Cross-fit a plain logistic head, the same for every predictor, on its features."""
    from scdrugmap._errors import InputError
    from scdrugmap.heads.crossfit import grouped_folds, margins
    from scdrugmap.heads.make import make_head
    from scdrugmap.interpret import report as checks

    try:
        folds = grouped_folds(labelled.y, labelled.samples, 5, seed)
    except InputError as error:
        return checks.row("prediction", note=f"not tested: {error.found}")
    out = np.zeros(len(labelled.y))
    for train, test in folds:
        out[test] = margins(
            labelled.fitted(make_head("logistic", random_state=seed), train, labelled.y), labelled.X[test]
        )
    return checks.prediction_check(labelled.y, out, labelled.samples, rng)


def _randomised(
    subject: _Subject, trained: ResponsePredictor, attribution: np.ndarray, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Explain predictors with a random head, and with random weights below it."""
    from scdrugmap.interpret import report as checks
    from scdrugmap.interpret.attribution import parameters_randomised

    heads = [checks.randomised_head(trained.head, rng) for _ in range(N_REPEATS)]
    if heads[0] is None:
        rows = [checks.row("random head", note="not tested: the head has no weights to shuffle")]
    else:
        found = [subject.means(replace(trained, head=h)).mean(axis=1) for h in heads]
        rows = [checks.sanity_row("random head", attribution, found, "the weights of the head were shuffled")]
    model = subject.scorer.network
    if model is None:
        return rows
    found = []
    for i in range(N_REPEATS):
        kept = parameters_randomised(model, subject.seed + i)
        try:
            found.append(subject.means(trained).mean(axis=1))
        finally:
            model.network.load_state_dict(kept)
    return [*rows, checks.sanity_row("random weights", attribution, found, "the weights of the network were shuffled")]


def _halves(subject: _Subject, trained: ResponsePredictor) -> dict[str, Any]:
    """Explain two halves of the cells of every sample."""
    from scdrugmap.interpret import report as checks

    order = np.argsort(subject.samples, kind="stable")
    first, second = np.sort(order[::2]), np.sort(order[1::2])
    pair = tuple(subject.means(trained, half).mean(axis=1) for half in (first, second))
    return checks.stability_row("stable cells", list(pair), "halves of the cells")


def _refits(
    labelled: _Labelled | None,
    subject: _Subject,
    trained: ResponsePredictor,
    attribution: np.ndarray,
    seed: int,
    rng: np.random.Generator,
) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """Explain heads trained without some samples, and heads trained on shuffled labels of samples."""
    from scdrugmap._errors import InputError
    from scdrugmap.heads.crossfit import grouped_folds
    from scdrugmap.interpret import report as checks

    if labelled is None:
        note = "not tested: no labelled cells with samples; pass reference="
        return [], [
            checks.row(n, note=note) for n in ("random labels", "stable folds", "stable seeds", "stable studies")
        ]
    everything = np.arange(len(labelled.y))

    def explained(rows: np.ndarray, y: np.ndarray, head: Any = trained.head) -> np.ndarray:
        return subject.means(replace(trained, head=labelled.fitted(head, rows, y))).mean(axis=1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScDrugMapWarning)
        shuffled = [
            explained(everything, y) for y in checks.shuffled_samples(labelled.y, labelled.samples, rng, N_REPEATS)
        ]
        rows = [checks.sanity_row("random labels", attribution, shuffled, "training on shuffled labels of samples")]
        try:
            folds = grouped_folds(labelled.y, labelled.samples, N_REPEATS, seed)
            refits = [explained(train, labelled.y) for train, _ in folds]
            rows.append(checks.stability_row("stable folds", refits, "heads trained without different samples"))
        except InputError as error:
            refits = []
            rows.append(checks.row("stable folds", note=f"not tested: {error.found}"))
        rows.append(_seeds(labelled, trained.head, lambda head: explained(everything, labelled.y, head), seed))
        rows.append(_studies(labelled, lambda members: explained(members, labelled.y)))
    return refits, rows


def _seeds(labelled: _Labelled, head: Any, explained: Any, seed: int) -> dict[str, Any]:
    """Explain heads trained on the same cells with different seeds."""
    from sklearn.base import clone

    from scdrugmap.interpret import report as checks

    names = [n for n in head.get_params() if n.rpartition("__")[2] == "random_state"]
    if not names:
        return checks.row("stable seeds", note="not tested: the head has no random_state")
    heads = [clone(head).set_params(**dict.fromkeys(names, seed + i)) for i in range(1, N_REPEATS + 1)]
    return checks.stability_row("stable seeds", [explained(h) for h in heads], "heads trained with different seeds")


def _studies(labelled: _Labelled, explained: Any) -> dict[str, Any]:
    """Explain heads trained on one study each."""
    from scdrugmap.interpret import report as checks

    members = [np.flatnonzero(labelled.studies == name) for name in np.unique(labelled.studies)]
    whole = [rows for rows in members if len(np.unique(labelled.y[rows])) == 2][:MOST_STUDIES]
    if len(whole) < 2:
        return checks.row(
            "stable studies", note=f"not tested: {len(whole)} of {len(members)} studies hold both classes"
        )
    return checks.stability_row("stable studies", [explained(r) for r in whole], "heads trained on one study each")


def _truth(
    adata: AnnData, labelled: _Labelled | None, attribution: np.ndarray, key: str, by: str, seed: int
) -> dict[str, Any]:
    """Compare with the planted genes where they are known, else with the differences between samples."""
    from scdrugmap.interpret import report as checks

    simulation = adata.uns.get(KEYS.simulation)
    labels = key in adata.obs and by in adata.obs
    statistic = np.full(adata.n_vars, np.nan)
    if labels:
        from scdrugmap.tl._biomarkers import biomarkers

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bare = adata if not adata.isbacked else adata.to_memory()
            found = biomarkers(bare, key=key, groups=by, min_cells=1, copy=True, rng=seed)
        table = found.uns[KEYS.biomarkers].set_index("gene")  # type: ignore[union-attr]
        column = "t" if table["t"].notna().any() else "log2_fc"
        statistic = table[column].reindex(adata.var_names.astype(str)).to_numpy(dtype=float)
    if isinstance(simulation, Mapping) and "programmes" in simulation:
        truth = planted_genes(adata)
        others = {"differences between samples": statistic} if labels else {}
        if labels:
            others["logistic regression"] = _logistic_weights(adata, key)
        return checks.truth_row(attribution, truth, others, seed)
    if not labels:
        return checks.row("agreement", note="not tested: no labelled cells with samples")
    return checks.agreement_row(attribution, statistic, seed)


def planted_genes(adata: AnnData) -> np.ndarray:
    """Which genes the simulator moves with resistance, of the drugs that the cells were given."""
    table = adata.uns[KEYS.simulation]["programmes"]
    drugs = set(adata.obs[KEYS.drug].astype(str)) if KEYS.drug in adata.obs else set(table["drug"])
    moved = table[(table["programme"] == "shared") | ((table["programme"] == "private") & table["drug"].isin(drugs))]
    return np.isin(adata.var_names.astype(str), moved["gene"].astype(str))


def _logistic_weights(adata: AnnData, key: str) -> np.ndarray:
    """Absolute weights of a regularised logistic regression over cells, the plain alternative."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import MaxAbsScaler

    from scdrugmap._cohort import encode
    from scdrugmap.embedding.source import CountSource
    from scdrugmap.models.kit.expression import log_normalize

    y = encode(adata.obs[key])
    rows = np.flatnonzero(y >= 0)[:2000]
    X = MaxAbsScaler().fit_transform(log_normalize(CountSource(adata.X)[rows].astype(np.float64)))
    return np.abs(LogisticRegression(C=0.01, max_iter=200).fit(X, y[rows]).coef_[0])
