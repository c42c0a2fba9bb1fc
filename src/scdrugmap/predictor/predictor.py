"""The trained predictor: predicts, explains itself, and travels as one folder without a pickle."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from scdrugmap import _anndata
from scdrugmap._cohort import call
from scdrugmap._device import Engine
from scdrugmap._errors import CheckpointError, InputError, InputTypeError, ScDrugMapError
from scdrugmap._keys import CLASSES, KEYS
from scdrugmap.heads.adapt import Adaptation
from scdrugmap.heads.crossfit import margins
from scdrugmap.heads.make import head_on
from scdrugmap.predictor.folder import fill, read_parts
from scdrugmap.predictor.origin import compare_columns
from scdrugmap.predictor.query import judge_query, judge_rows, some_rows
from scdrugmap.predictor.representation import FittedRepresentation, Representation
from scdrugmap.predictor.storage import (
    MANIFEST,
    dump_head,
    read_manifest,
    write_folder,
)
from scdrugmap.trust.calibration import Calibrator
from scdrugmap.trust.conformal import ConformalSets
from scdrugmap.trust.domain import OutOfDomain
from scdrugmap.trust.samples import SampleErrors
from scdrugmap.trust.shift import ShiftReference, Verdict
from scdrugmap.trust.worth import refuse_worthless

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

#: Cells whose features are in memory at a time where a baseline computes them.
BLOCK = 16_384


@dataclass(eq=False, repr=False)
class ResponsePredictor:
    """Predicts drug response of cells; made by :func:`scdrugmap.tl.train`, read by :func:`load_predictor`.

    Parameters
    ----------
    head
        Fitted classifier of resistant (first class) and sensitive (second).
    representation
        What the head looks at.
    calibration, conformal, ood
        Calibrated probabilities, prediction sets and the out-of-domain flag, where they were asked for.
    conformal_by
        Column of ``obs`` with the Mondrian category.
    training
        Summary of the training data and of how the training went.
    threshold
        A cell with a higher P(sensitive) is sensitive.
    errors
        How far the calls of held-out groups were off in training.
    shift
        What a query is compared with.
    adaptation
        How cells of another study are brought to those of the training, where that was asked for.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_cells=200, n_genes=200, n_studies=1, rng=0)
    >>> predictor = sd.tl.train(adata, model="pca", head="logistic", rng=0)
    >>> predictor.predict(adata).columns.tolist()
    ['pred', 'score']
    """

    head: Any
    representation: Representation
    calibration: Calibrator | None = None
    conformal: ConformalSets | None = None
    ood: OutOfDomain | None = None
    conformal_by: str | None = None
    training: dict[str, Any] = field(default_factory=dict)
    threshold: float = 0.5
    errors: SampleErrors | None = None
    shift: ShiftReference | None = None
    adaptation: Adaptation | None = None

    def __repr__(self) -> str:
        t = self.training
        cells = f"{t.get('n_cells', 0):,} cells ({t.get('n_resistant', 0):,} resistant, {t.get('n_sensitive', 0):,} sensitive)"
        rows = {
            "head": t.get("head", type(self.head).__name__),
            "trained on": cells + (f" of {t['n_groups']} groups ({t['groups']})" if t.get("groups") else ""),
            **{
                name: ", ".join(values[:5]) + " ..." * (len(values) > 5)
                for name, values in t.get("columns", {}).items()
            },
            "calibration": self.calibration and self.calibration.method,
            "prediction sets": self.conformal and f"coverage {self.conformal.coverage:g}",
            "out of domain": self.ood and f"{self.ood.n_neighbors} neighbours",
        }
        lines = [f"ResponsePredictor on {self.representation.label}"]
        lines += [f"  {name:<16} {value or 'no'}" for name, value in rows.items()]
        return "\n".join([*lines, "  .card says more; .predict(adata), .save(folder)"])

    def features(
        self,
        adata: AnnData | MuData,
        *,
        mod: str = "rna",
        layer: str | None = None,
        batch_size: int | None = None,
        device: str | None = None,
        precision: str | None = None,
        progress: bool | None = None,
    ) -> np.ndarray:
        """What the head sees of every cell.

        Parameters
        ----------
        adata
            The query.
        mod
            Modality of a MuData.
        layer
            Layer of the raw counts, if it is another one than at training.
        batch_size, device, precision, progress
            As in :func:`scdrugmap.tl.embed`.

        Returns
        -------
        Array (cells, d) float32; a row of NaN for a cell that cannot be embedded.
        """
        _anndata.refuse_empty(_anndata.reading(adata, mod=mod))
        engine = Engine(device, precision, batch_size, progress)
        X = self.representation.features(adata, mod, engine, layer=layer)
        self._refuse_unusable(np.isnan(X).any(axis=1))
        if self.adaptation is None:
            return X
        obs, key = _anndata.reading(adata, mod=mod).obs, self.training.get("study_key", KEYS.study)
        study = obs[key].astype(str).to_numpy() if key in obs else np.full(len(obs), "query")
        return self.adaptation(X, study)

    def predict_features(
        self, X: np.ndarray, *, category: np.ndarray | None = None, coverage: float | None = None
    ) -> pd.DataFrame:
        """Predict from features.

        Parameters
        ----------
        X
            Of :meth:`features`.
        category
            Mondrian category of each cell, where the conformal sets have categories.
        coverage
            Of the conformal sets, instead of the one at training.

        Returns
        -------
        As :meth:`predict`, with a plain index.
        """
        X = np.asarray(X)
        width = getattr(self.head, "n_features_in_", None)
        if X.ndim != 2 or (width is not None and X.shape[1] != width):
            raise InputError(
                "X", f"shape {X.shape}", f"cells x {width} features", "pass what .features(adata) returns."
            )
        usable = ~np.isnan(X).any(axis=1)
        n = len(X)
        score = np.full(n, np.nan, np.float32)
        margin = np.full(n, np.nan)
        if usable.any():
            margin[usable] = margins(self.head, X[usable])
            if self.calibration is not None:
                score[usable] = self.calibration(margin[usable])
            else:
                score[usable] = self.head.predict_proba(X[usable])[:, 1]
        codes = np.where(usable, call(score, self.threshold), -1)
        out = pd.DataFrame({"pred": pd.Categorical.from_codes(codes, categories=list(CLASSES)), "score": score})
        if self.conformal is not None:
            texts = np.full(n, "", dtype=object)
            some = None if category is None else np.asarray(category)[usable]
            texts[usable] = self.conformal.predict(margin[usable], some, coverage)
            out["set"] = texts
        if self.ood is not None:
            # a cell without embedding lies nowhere near the training cells
            flags = np.ones(n, dtype=bool)
            if usable.any():
                flags[usable] = self.ood.flag(X[usable])
            out["ood"] = flags
        return out

    def predict(
        self,
        adata: AnnData | MuData,
        *,
        mod: str = "rna",
        coverage: float | None = None,
        layer: str | None = None,
        batch_size: int | None = None,
        device: str | None = None,
        precision: str | None = None,
        progress: bool | None = None,
        features: np.ndarray | None = None,
    ) -> pd.DataFrame:
        """Predict every cell; ``adata`` is not changed.

        Parameters
        ----------
        adata
            The query: with the ``obsm`` entries that the predictor was trained on, or with raw counts where it was
            trained on a model (a matching embedding in ``obsm`` is used instead of embedding again).
        mod
            Modality of a MuData.
        coverage
            Of the conformal sets, instead of the one at training.
        layer
            Layer of the raw counts, if it is another one than at training.
        batch_size, device, precision, progress
            As in :func:`scdrugmap.tl.embed`.
        features
            What :meth:`features` returned for these cells, if that was called already.

        Returns
        -------
        One row per cell: ``pred`` (categorical), ``score`` (P(sensitive), float32), and ``set`` and ``ood`` where the
        predictor has them. ``pred`` and ``score`` are missing for a cell that cannot be embedded.

        Raises
        ------
        InputError
            If the query has no count, none of the genes, another model's embedding, or one of another width.
        """
        main = _anndata.reading(adata, mod=mod)
        X = features
        if X is None:
            engine: dict[str, Any] = {"batch_size": batch_size, "device": device, "precision": precision}
            X = self.features(adata, mod=mod, layer=layer, progress=progress, **engine)
        out = self._predicted(X, main, np.arange(main.n_obs), coverage, device)
        compare_columns(self.training.get("columns", {}), main.obs)
        return out

    def predict_and_judge(
        self,
        adata: AnnData | MuData,
        *,
        mod: str = "rna",
        coverage: float | None = None,
        layer: str | None = None,
        **engine: Any,
    ) -> tuple[pd.DataFrame, Verdict]:
        """Predict every cell and judge the query; what a baseline says of a cell is forgotten once it is used.

        Parameters
        ----------
        adata, mod, coverage, layer, engine
            As in :meth:`predict`.

        Returns
        -------
        What :meth:`predict` and :meth:`judge` return.
        """
        if not isinstance(self.representation, FittedRepresentation) or self.adaptation is not None:
            X = self.features(adata, mod=mod, layer=layer, **engine)
            frame = self.predict(adata, mod=mod, coverage=coverage, device=engine.get("device"), features=X)
            return frame, self.judge(adata, mod=mod, layer=layer, features=X)
        main, run = _anndata.reading(adata, mod=mod), Engine(**engine)
        _anndata.refuse_empty(main)
        parts = []
        for first in range(0, main.n_obs, BLOCK):
            rows = np.arange(first, min(first + BLOCK, main.n_obs))
            X = self.representation.features(adata, mod, run, layer=layer, rows=rows)
            parts.append(self._predicted(X, main, rows, coverage, run.device))
        frame = pd.concat(parts)
        self._refuse_unusable(frame["score"].isna().to_numpy())
        compare_columns(self.training.get("columns", {}), main.obs)
        rows = some_rows(np.flatnonzero(frame["score"].notna()), 0)
        X = self.representation.features(adata, mod, run, layer=layer, rows=rows)
        return frame, judge_rows(self.shift, main, layer or self.representation.layer, rows, X, self.head)

    def _predicted(
        self, X: np.ndarray, main: AnnData, rows: np.ndarray, coverage: float | None, device: str | None
    ) -> pd.DataFrame:
        """Predict some cells from their features."""
        category = self._category(main)
        placed = replace(self, head=head_on(self.head, device))
        out = placed.predict_features(X, category=None if category is None else category[rows], coverage=coverage)
        out.index = main.obs_names[rows]
        return out

    def _refuse_unusable(self, unusable: np.ndarray) -> None:
        """Refuse a query none of whose cells can be embedded."""
        if unusable.all():
            raise InputError(
                "adata", f"no count of a gene that {self.representation.label} knows in any of {len(unusable)} cells",
                "cells with counts", "check that layer= (or X) holds the raw counts.",
            )  # fmt: skip

    def judge(
        self,
        adata: AnnData | MuData,
        *,
        mod: str = "rna",
        layer: str | None = None,
        features: Any = None,
        **engine: Any,
    ) -> Verdict:
        """Tell whether the query as a whole is something that this predictor can speak about.

        Parameters
        ----------
        adata, mod, layer, features, engine
            As in :meth:`predict`.

        Returns
        -------
        The verdict (``"in domain"``, ``"shifted"`` or ``"cannot tell"``), its reason, and the figures behind it.
        """
        X = self.features(adata, mod=mod, layer=layer, **engine) if features is None else features
        layer = layer or getattr(self.representation, "layer", None)
        return judge_query(self.shift, _anndata.resolve(adata, mod=mod), layer, X, self.head)

    @property
    def worth(self) -> dict[str, Any]:
        """What it reached on groups that it had not seen, or the ``reason`` why that is not known."""
        return dict(self.training.get("worth") or {"reason": "an earlier version did not measure it"})

    def predict_proba(self, adata: AnnData | MuData, *, mod: str = "rna", **engine: Any) -> np.ndarray:
        """Probability of both classes.

        Parameters
        ----------
        adata, mod, engine
            As in :meth:`predict`.

        Returns
        -------
        Array (cells, 2) in the order resistant, sensitive; NaN for a cell that cannot be embedded.
        """
        score = self.predict(adata, mod=mod, **engine)["score"].to_numpy(np.float64)
        return np.stack([1 - score, score], axis=1)

    @property
    def card(self) -> str:
        """The card in Markdown: what it was trained on, how, and what it must not be used for."""
        from scdrugmap.predictor.card import markdown

        return markdown(self)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the predictor as one folder, whole or not at all.

        Parameters
        ----------
        path
            The folder; its parents are made.
        overwrite
            Replace an earlier predictor of this name.

        Raises
        ------
        InputTypeError
            If the head is an estimator that only a pickle could hold. Nothing is written then.
        InputError
            If something else has the name.
        """
        head_meta, head_arrays = dump_head(self.head)
        write_folder(Path(path), lambda folder: fill(self, folder, head_meta, head_arrays), overwrite=overwrite)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | None = None,
        private: bool = True,
        endpoint: str | None = None,
        force: bool = False,
    ) -> str:
        """Upload the predictor to the Hugging Face hub.

        Parameters
        ----------
        repo_id
            ``"owner/name"``.
        token
            Access token; by default the one that huggingface_hub knows.
        private
            Whether a new repository is private.
        endpoint
            Address of another hub.
        force
            Upload even a predictor that is no better than none on groups that it has not seen.

        Returns
        -------
        Address of the commit. The path of a local checkpoint does not travel; the digests of its files do.

        Raises
        ------
        InputError
            If it is no better than none, and not forced.
        """
        from scdrugmap.predictor.hub import push

        refuse_worthless(self.worth, force=force, where="a hub")

        return push(self, repo_id, token=token, private=private, endpoint=endpoint)

    @classmethod
    def from_hub(
        cls,
        repo_id: str,
        *,
        revision: str | None = None,
        token: str | None = None,
        endpoint: str | None = None,
        checkpoint: str | Path | None = None,
    ) -> Self:
        """Download a predictor from the Hugging Face hub.

        Parameters
        ----------
        repo_id
            ``"owner/name"``.
        revision
            Branch, tag or commit.
        token, endpoint
            As in :meth:`push_to_hub`.
        checkpoint
            As in :func:`load_predictor`.

        Returns
        -------
        The predictor.
        """
        from scdrugmap.predictor.hub import pull

        folder = pull(repo_id, revision=revision, token=token, endpoint=endpoint)
        return load_predictor(folder, checkpoint=checkpoint)  # type: ignore[return-value]

    def _category(self, adata: Any) -> np.ndarray | None:
        """Mondrian category of every cell of the query."""
        if self.conformal is None or not self.conformal.mondrian:
            return None
        column = _anndata.obs_column(adata, self.conformal_by or "", "conformal_by")
        return column.astype(str).to_numpy()


def load_predictor(path: str | Path, *, checkpoint: str | Path | None = None, model: Any = None) -> ResponsePredictor:
    """Read a predictor from its folder.

    Parameters
    ----------
    path
        What :meth:`ResponsePredictor.save` wrote.
    checkpoint
        Where the checkpoint of the foundation model lies here, if it is not the default one and not where it was at
        training. Its SHA-256 must be that of the training.
    model
        The foundation model, loaded already; its digests are compared too.

    Returns
    -------
    The predictor, on the CPU. Its predictions are those of the one that was saved, bit by bit.

    Raises
    ------
    CheckpointError
        If a file is missing or changed, or ``checkpoint`` is another one.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_cells=200, n_genes=200, n_studies=1, rng=0)
    >>> predictor = sd.tl.train(adata, model="pca", head="logistic", rng=0)
    >>> import tempfile
    >>> folder = tempfile.mkdtemp() + "/my_predictor"
    >>> predictor.save(folder)
    >>> again = sd.load_predictor(folder)
    >>> bool((again.predict(adata)["score"] == predictor.predict(adata)["score"]).all())
    True
    """
    if not isinstance(path, str | os.PathLike):
        raise InputTypeError("path", repr(path), "the folder of a predictor", "pass what .save() was given.")
    folder = Path(path).expanduser()
    manifest = read_manifest(folder)
    try:
        return ResponsePredictor(**read_parts(folder, manifest, checkpoint, model))
    except ScDrugMapError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        found = f"{folder / MANIFEST}: {type(error).__name__}: {error}"
        raise CheckpointError("path", found, "what .save() wrote", "copy the folder again.") from error
