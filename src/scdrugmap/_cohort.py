"""The one reader of ``obs``: labels, samples, studies, patients and other groups, and what score is a call of sensitive."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from scdrugmap import _anndata
from scdrugmap._errors import InputError
from scdrugmap._keys import CLASSES, KEYS, RESISTANT, SENSITIVE
from scdrugmap._labels import mapping_for

if TYPE_CHECKING:
    from anndata import AnnData

#: Name of the only category where cells are not divided into several.
ALL = "all"
#: P(sensitive) above which a cell is called sensitive; a tie is no evidence and stays with the first class, as in scikit-learn.
THRESHOLD = 0.5
_KNOWN = {SENSITIVE: 1, RESISTANT: 0}
_UNREADABLE = -2
#: Names that enter the digest at a time.
_CHUNK = 65536
_NONE = ("", "unknown", "nan", "none", "na", "<na>")


def encode(values: Any, argument: str = "label_key") -> np.ndarray:
    """Turn a label column into 1 (sensitive), 0 (resistant) and -1 (no label).

    Parameters
    ----------
    values
        ``"resistant"`` and ``"sensitive"`` in any case; missing values, ``""`` and ``"unknown"`` are no label.
    argument
        Name for the error message.

    Returns
    -------
    Array (cells,) of int8.

    Raises
    ------
    InputError
        For any other value, numbers and truth values included, for nobody but the user knows what they stand for; the
        message holds the call that maps it.

    Examples
    --------
    >>> encode(["Sensitive", "resistant", None]).tolist()
    [1, 0, -1]
    """
    raw = pd.Series(np.asarray(values, dtype=object), dtype=object)
    codes, known = pd.factorize(raw)  # a value is read once, however many cells have it
    meaning = _KNOWN | dict.fromkeys(_NONE, -1)
    y = np.array([*(meaning.get(_plain(v), _UNREADABLE) for v in known), -1], dtype=np.int8)[codes]
    if (y == _UNREADABLE).any():
        text = raw.map(lambda v: "" if pd.isna(v) else _plain(v))
        found = raw[y == _UNREADABLE].value_counts()
        shown = ", ".join(f"{label!r} ({n} cells)" for label, n in zip(map(_bare, found.index), found, strict=True))
        column = getattr(values, "name", None)
        there = "<column>" if column is None else repr(column)
        use = "" if column == KEYS.response else f", then use label_key={KEYS.response!r}"
        raise InputError(
            argument,
            f"labels {shown}",
            f"{' or '.join(map(repr, CLASSES))} (any case); missing values for cells without a label",
            f"say what each label means: sd.pp.harmonize_response(adata, {there}, mapping="
            f"{mapping_for(raw[text.map(lambda t: t not in _NONE)].value_counts().index[:20])}){use}.",
        )
    return y


def _plain(value: Any) -> str:
    return str(value).strip().lower()


def _bare(value: Any) -> Any:
    """A value as Python writes it."""
    return value.item() if isinstance(value, np.generic) else value


def both_classes(y: np.ndarray, argument: str = "label_key") -> None:
    """Refuse labels that hold one class only.

    Parameters
    ----------
    y
        Codes of :func:`encode`.
    argument
        Name for the error message.

    Raises
    ------
    InputError
        If a class has no cell.
    """
    counts = {name: int((y == i).sum()) for i, name in enumerate(CLASSES)}
    if min(counts.values()) == 0:
        raise InputError(
            argument,
            ", ".join(f"{n} {name}" for name, n in counts.items()) + f" and {int((y < 0).sum())} unlabelled cells",
            "labelled cells of both classes",
            "add samples of the missing class, or check the label column.",
        )


def call(score: Any, threshold: float = THRESHOLD) -> np.ndarray:
    """Turn P(sensitive) into calls: 1 (sensitive) above the threshold, else 0 (resistant).

    Parameters
    ----------
    score
        ``(n,)`` probabilities; NaN is called 0, for it is not above the threshold.
    threshold
        The tie belongs to *resistant*.

    Returns
    -------
    Array (n,) of int64.

    Examples
    --------
    >>> call([0.4, 0.5, 0.6]).tolist()
    [0, 0, 1]
    """
    return (np.asarray(score) > threshold).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Cohort:
    """Labels and groups of the cells of one data set.

    Parameters
    ----------
    y
        ``(n,)`` 1 sensitive, 0 resistant, -1 without label.
    sample, study, patient
        ``(n,)`` names; ``patient`` may be ``None``. Sample names are qualified by study, for two studies may both
        call a sample "1".
    columns
        Further columns, ``(n,)`` each: the categories and the keys to leave out.
    duplicates
        ``(n,)`` codes of copied cells, or ``None`` to ignore copies.
    names
        ``(n,)`` names of the cells.
    groups
        ``(n,)`` which cells stay on one side of every inner split, or ``None`` to split cells.
    groups_key
        Column of ``obs`` that ``groups`` was read from.
    batch
        ``(n,)`` batch of each cell for models that are fitted, or ``None`` for one batch; see :func:`read_batch`.
    batch_from
        Where ``batch`` was read.
    """

    y: np.ndarray
    sample: np.ndarray
    study: np.ndarray
    patient: np.ndarray | None = None
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    duplicates: np.ndarray | None = None
    names: np.ndarray | None = None
    groups: np.ndarray | None = None
    groups_key: str | None = None
    batch: np.ndarray | None = None
    batch_from: str = ""

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, labels, samples and studies."""
        digest = hashlib.sha256(np.ascontiguousarray(self.y).tobytes())
        for column in (self.names, self.sample, self.study):
            if column is not None:
                for i in range(0, len(column), _CHUNK):
                    digest.update((("\x1f" if i else "") + "\x1f".join(map(str, column[i : i + _CHUNK]))).encode())
        return digest.hexdigest()

    @cached_property
    def sample_codes(self) -> np.ndarray:
        """Integer code of each cell's sample."""
        return pd.factorize(self.sample)[0]

    @property
    def labelled(self) -> np.ndarray:
        """Rows of the cells with a label."""
        return np.flatnonzero(self.y >= 0)

    def take(self, rows: np.ndarray) -> Self:
        """Return the cohort of some cells: a mask or row numbers, in the order asked for."""
        arrays: dict[str, Any] = {
            name: None if getattr(self, name) is None else getattr(self, name)[rows]
            for name in ("y", "sample", "study", "patient", "groups", "batch", "duplicates", "names")
        }
        return replace(self, **arrays, columns={k: v[rows] for k, v in self.columns.items()})

    def column(self, key: str) -> np.ndarray:
        """Return a group column by the name that ``split`` uses."""
        fixed = {"sample": self.sample, "study": self.study, "patient": self.patient}
        found = fixed.get(key) if fixed.get(key) is not None else self.columns.get(key)
        assert found is not None, key
        return found

    def categories(self, by: str | None) -> list[tuple[str, np.ndarray]]:
        """Return name and labelled rows of each category of a column; cells without a value are in none."""
        labelled = self.y >= 0
        if by is None:
            return [(ALL, np.flatnonzero(labelled))]
        values = pd.Categorical(self.columns[by]).remove_unused_categories()
        return [(str(c), np.flatnonzero((values.codes == i) & labelled)) for i, c in enumerate(values.categories)]


def read_cohort(
    adata: AnnData,
    *,
    label_key: str = KEYS.response,
    study_key: str = KEYS.study,
    sample_key: str = KEYS.sample,
    patient_key: str | None = KEYS.patient,
    columns: Sequence[str] = (),
    need: Sequence[str] = (),
    groups: str | bool | None = None,
) -> Cohort:
    """Read labels and groups.

    Parameters
    ----------
    adata
        Cells; not changed.
    label_key, study_key, sample_key, patient_key
        Columns of ``obs``. Without a study column all cells are one study, without a sample column each study is one
        sample, unless ``need`` names the column.
    columns
        Further columns to read.
    need
        Which of ``"sample"``, ``"study"``, ``"patient"`` must be there.
    groups
        Column whose cells stay on one side of every inner split; ``None`` takes the samples where there are any,
        ``False`` none.

    Raises
    ------
    MissingKeyError, InputError
        If a column is missing, a labelled cell has no sample, study or group, or a label is not known.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> cohort = read_cohort(sd.datasets.simulate(n_studies=1, rng=0))
    >>> sorted(set(cohort.y.tolist()))
    [0, 1]
    """
    _anndata.refuse_empty(adata)
    n = adata.n_obs
    y = encode(_anndata.obs_column(adata, label_key, "label_key"))
    found: dict[str, np.ndarray] = {}
    for name, key in (("study", study_key), ("sample", sample_key), ("patient", patient_key)):
        if key is not None and (name in need or key in adata.obs):
            column = _anndata.obs_column(adata, key, f"{name}_key")
            absent = column.isna().to_numpy()
            if name != "patient":
                refuse_absent(absent & (y >= 0), f"{name}_key", key, name)
            text = _shared_text(column)
            text[absent] = None if name == "patient" else ""
            found[name] = text
    study = found.get("study", np.full(n, ALL))
    sample = found.get("sample")
    if sample is None:
        sample = study
    elif "study" in found:
        sample = _qualified(study, sample)
        if "patient" in found:
            unknown = np.asarray(pd.isna(found["patient"]))
            found["patient"] = _qualified(study, found["patient"])
            found["patient"][unknown] = None
    extra = {c: _anndata.obs_column(adata, c, "by").to_numpy() for c in columns}
    names = adata.obs_names.to_numpy(dtype=object)
    cohort = Cohort(y, sample, study, found.get("patient"), extra, None, names)
    batch, source = read_batch(adata, sample_key=sample_key, study_key=study_key)
    by: Any = (sample_key if sample_key in adata.obs else None) if groups is None else groups or None
    kept = None if by is None else _groups(adata, by, cohort, sample_key)
    return replace(cohort, batch=batch, batch_from=source, groups=kept, groups_key=by)


def _groups(adata: AnnData, key: str, cohort: Cohort, sample_key: str) -> np.ndarray:
    """Return the groups of the cells; samples are those of the cohort, which studies keep apart."""
    values = _anndata.obs_column(adata, key, "groups")
    refuse_absent(values.isna().to_numpy() & (cohort.y >= 0), "groups", key, "group")
    return cohort.sample.astype(str) if key == sample_key else values.astype(str).to_numpy()


def read_context(adata: AnnData, column: str | None = None, sample_key: str = KEYS.sample) -> np.ndarray | None:
    """Read which cells see each other, for models where they do.

    Parameters
    ----------
    adata
        Cells; not changed.
    column
        Column of ``obs``; by default the samples where there are any.
    sample_key
        Column of the samples.

    Returns
    -------
    ``(n,)`` labels, or ``None`` where all cells see each other.
    """
    if column is None and sample_key not in adata.obs:
        return None
    return _anndata.obs_text(adata, column or sample_key, "context")


def read_batch(
    adata: AnnData, column: str | None = None, *, sample_key: str = KEYS.sample, study_key: str = KEYS.study
) -> tuple[np.ndarray | None, str]:
    """Read the batch of each cell, for models that are fitted on batches: the same rule at every place.

    Parameters
    ----------
    adata
        Cells; not changed.
    column
        Column of ``obs``; by default ``batch``, else the samples, which are different in different studies.
    sample_key, study_key
        Columns of the samples and the studies.

    Returns
    -------
    ``(n,)`` labels, or ``None`` for one batch, and where they come from.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> adata = sd.datasets.simulate(n_studies=1, rng=0)
    >>> adata.obs["batch"] = "one"
    >>> read_batch(adata)[1]
    "obs['batch']"
    """
    key = column or (KEYS.batch if KEYS.batch in adata.obs else None)
    if key is not None:
        return _anndata.obs_text(adata, key, "context"), f"obs[{key!r}]"
    if sample_key not in adata.obs:
        return None, "one batch"
    samples = _shared_text(adata.obs[sample_key])
    if study_key not in adata.obs:
        return samples, f"obs[{sample_key!r}]"
    return _qualified(_shared_text(adata.obs[study_key]), samples), f"obs[{sample_key!r}]"


def refuse_absent(absent: np.ndarray, argument: str, key: str, what: str) -> None:
    """Refuse labelled cells without a value in a column that says what belongs together.

    Raises
    ------
    InputError
        If there are any.
    """
    if absent.any():
        raise InputError(
            argument,
            f"{int(absent.sum())} labelled cells without a value in obs[{key!r}]",
            f"a {what} for every labelled cell",
            "fill the column, or remove those cells or their labels.",
        )


def _shared_text(column: pd.Series) -> np.ndarray:
    """Return the values of a column as text, ``"nan"`` where one is missing; cells of one value share one string."""
    if not isinstance(column.dtype, pd.CategoricalDtype):
        column = pd.Series(_anndata.as_text(column), dtype=object).astype("category")
    names = np.array([*map(str, column.cat.categories), "nan"], dtype=object)
    return names[column.cat.codes.to_numpy()]


def _qualified(study: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Return names that are different in different studies; cells of one name share one string."""
    at, studies = pd.factorize(study)
    own, known = pd.factorize(names, use_na_sentinel=False)
    pair, pairs = pd.factorize(at * len(known) + own)
    text = [f"{studies[p // len(known)]}/{known[p % len(known)]}" for p in pairs]
    return np.array(text, dtype=object)[pair]
