"""``sd.pp.concat_studies``: several studies as one object, in memory or on disk."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse

from scdrugmap import __version__, _anndata
from scdrugmap._errors import InputError, InputTypeError, ScDrugMapWarning
from scdrugmap._keys import CLASSES, KEYS
from scdrugmap._logging import get_logger
from scdrugmap.embedding.source import CountSource
from scdrugmap.evaluation.splits.duplicates import MIN_GENES, content_hash
from scdrugmap.genes.identifiers import Genes, strip_version

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

#: Share of a study's genes whose loss deserves a warning.
MANY = 0.2
#: Columns whose values mean something inside one study only.
_LOCAL = (KEYS.sample, KEYS.patient, KEYS.batch)


def concat_studies(
    studies: Mapping[str, AnnData | MuData | str | os.PathLike[str]],
    *,
    join: Literal["inner", "outer"] = "inner",
    path: str | os.PathLike[str] | None = None,
    layer: str | None = None,
    mod: str = "rna",
    chunk_size: int = 4096,
) -> AnnData:
    """Put studies under one another, with keys that stay unique, and find cells that several studies share.

    Parameters
    ----------
    studies
        Name of each study with its data: an AnnData, a MuData, or the path of an h5ad file, which is read block by
        block.
    join
        ``"inner"`` keeps the genes that all studies have, ``"outer"`` all genes, with zeros where a study does not
        have a gene. Ensembl ids are compared without their version.
    path
        Write an h5ad file block by block and return it backed, for studies that do not fit into memory.
    layer
        Layer that holds the raw counts; ``X`` if ``None``.
    mod
        Modality of a MuData.
    chunk_size
        Cells read at once.

    Returns
    -------
    A new AnnData; the inputs stay as they are.

    ``X``
        Counts (CSR, float32), genes in the order of the first study that has them.
    ``obs``
        All columns of all studies. ``study`` holds the names given here (an earlier column becomes ``source_study``);
        ``sample``, ``patient`` and ``batch`` become ``"study:value"``, and so do the names of the cells. A study
        without samples counts as one sample. ``duplicated`` marks cells whose counts occur in another study too.
    ``var``
        ``gene_symbol`` and ``ensembl_id`` where a study has them, ``n_studies`` that have the gene.
    ``uns["scdrugmap_concat"]``
        ``studies`` (cells, genes), ``duplicates`` (pairs of studies and the number of cells they share), ``join``.

    Embeddings, layers and ``uns`` of the inputs stay behind, because they belong to one study.

    Raises
    ------
    InputError
        Names are empty or hold a colon, genes are repeated, no gene is common, some studies hold counts and others do
        not, or ``path`` cannot be written.
    InputTypeError
        A study is neither data nor a path.

    Warns
    -----
    ScDrugMapWarning
        Studies share cells, genes of a study are lost or matched without their version, the values are no counts, or
        a study has no samples.

    Examples
    --------
    >>> import scdrugmap as sd
    >>> a, b = (sd.datasets.simulate(n_studies=1, n_cells=50, n_genes=80, rng=seed) for seed in (0, 1))
    >>> both = sd.pp.concat_studies({"A": a, "B": b})
    >>> both.shape, both.obs["sample"].iloc[0]
    ((100, 80), 'A:study1-p1-s1')
    """
    if join not in ("inner", "outer"):
        raise InputError("join", repr(join), "'inner' or 'outer'", "pass join='inner'.")
    target = None if path is None else _check_path(path)
    parts = [_open(name, data, layer, mod) for name, data in _check_names(studies).items()]
    try:
        changed = _match_versions(parts)
        genes, common = _join_genes(parts, join)
        duplicated, pairs = _find_duplicates(parts, common, chunk_size)
        _check_values(parts)
        obs, var = _obs(parts, duplicated), _var(parts, genes)
        uns = {
            KEYS.concat: {
                "join": join,
                "studies": _text_index(
                    pd.DataFrame(
                        {
                            "study": [p.name for p in parts],
                            "n_cells": [p.adata.n_obs for p in parts],
                            "n_genes": [p.adata.n_vars for p in parts],
                        }
                    )
                ),
                "duplicates": pairs,
                "version": __version__,
            }
        }
        blocks = (block for part in parts for block in _aligned(part, genes, chunk_size))
        result = _build(target, blocks, obs, var, uns)
    finally:
        for part in parts:
            if part.opened:
                part.adata.file.close()
    _warn(parts, common, pairs, join, changed, var[KEYS.ensembl_id])
    return result


@dataclass
class _Part:
    """One study: its counts, the identifiers of its genes and the names by which they are matched."""

    name: str
    adata: AnnData
    counts: Any
    opened: bool
    ids: Genes
    names: pd.Index
    layer: str | None
    whole: bool = True


def _check_names(studies: Any) -> Mapping[str, Any]:
    if not isinstance(studies, Mapping):
        raise InputTypeError(
            "studies", type(studies).__name__, "a dictionary of names and data", 'pass {"A": adata, "B": "b.h5ad"}.'
        )
    if not studies:
        raise InputError("studies", "no study", "at least one", 'pass {"A": adata, "B": "b.h5ad"}.')
    for name in studies:
        if not isinstance(name, str) or not name or ":" in name:
            raise InputError("studies", repr(name), "names that are not empty and hold no colon", "rename the study.")
    return studies


def _check_path(path: str | os.PathLike[str]) -> Path:
    target = Path(path).expanduser()
    if not target.parent.is_dir() or not os.access(target.parent, os.W_OK) or target.is_dir():
        raise InputError(
            "path", str(path), "a file in a folder that exists and can be written", "make the folder, or use another."
        )
    return target


def _open(name: str, data: Any, layer: str | None, mod: str) -> _Part:
    """Open one study and check that its genes are usable."""
    argument, opened = f"studies[{name!r}]", False
    if isinstance(data, str | os.PathLike):
        import anndata

        file = Path(data).expanduser()
        if not file.is_file():
            raise InputError(argument, str(data), "an h5ad file that exists", "check the path.")
        try:
            data, opened = anndata.read_h5ad(file, backed="r"), True
        except (OSError, ValueError, KeyError) as error:
            raise InputError(argument, str(file), "an h5ad file", f"look at the file ({error}).") from error
    adata = _anndata.resolve(data, mod=mod, argument=argument)
    _anndata.refuse_empty(adata, argument, genes=True)
    ids = _anndata.gene_ids(adata)
    names = pd.Index(ids.names.astype(str).astype(object))
    if not names.is_unique:
        raise InputError(
            argument,
            f"{int(names.duplicated().sum())} repeated gene names",
            "unique gene names",
            "call sd.pp.harmonize_genes on it first, which adds them up.",
        )
    return _Part(name, adata, _anndata.counts(adata, layer), opened, ids, names, layer)


def _match_versions(parts: list[_Part]) -> int:
    """Give Ensembl ids that differ between studies in their version alone one name; returns how many did."""
    bare = [_without_version(part.names) for part in parts]
    written = pd.DataFrame(
        {"bare": np.concatenate(bare), "name": np.concatenate([part.names for part in parts])}, dtype=object
    ).drop_duplicates()
    several = set(written["bare"][written["bare"].duplicated(keep=False)])
    changed: set[str] = set()
    for part, short in zip(parts, bare, strict=True):
        move = short.isin(list(several)) & ~short.duplicated(keep=False)
        part.names = pd.Index(np.where(move, short, part.names).astype(object))
        changed |= set(short[move & (short != part.ids.names.astype(str))])
    return len(changed)


def _without_version(names: pd.Index) -> pd.Index:
    """Ensembl ids without version; the copy of a gene on Y stays apart from the gene."""
    copy = names.str.contains("_PAR_Y", regex=False) | names.str.match(r"(?i)ENSGR")
    short = strip_version(names)
    return pd.Index(np.where(copy.astype(bool), np.char.add(short, "_PAR_Y"), short).astype(object))


def _check_values(parts: list[_Part]) -> None:
    """Refuse counts beside values that are none: the object would be half of each."""
    from scdrugmap.embedding.cells import counts_elsewhere

    wrong = [part for part in parts if not part.whole]
    if not wrong:
        return
    hints = "; ".join(f"{part.name}: {counts_elsewhere(part.adata, part.layer)}" for part in wrong[:5])
    names = ", ".join(part.name for part in wrong)
    if len(wrong) < len(parts):
        raise InputError(
            "studies",
            f"counts in some, but values that are no counts in {names}",
            "raw counts in every study",
            f"put the counts of these into X first. {hints}",
        )
    warnings.warn(f"the values of all studies are no counts. {hints}", ScDrugMapWarning, stacklevel=3)


def _join_genes(parts: list[_Part], join: str) -> tuple[pd.Index, pd.Index]:
    """The genes of the result, and those that all studies have."""
    common = union = parts[0].names
    for part in parts[1:]:
        common = common[common.isin(part.names)]
        union = union.append(part.names[~part.names.isin(union)])
    genes = common if join == "inner" else union
    if len(common) == 0:
        some = "; ".join(f"{p.name}: {', '.join(map(str, p.names[:3]))}" for p in parts[:4])
        raise InputError(
            "studies",
            f"no gene that all have ({some})",
            "the same kind of identifier in every study",
            "call sd.pp.harmonize_genes on each, and set var_names to var['gene_symbol'] or var['ensembl_id'].",
        )
    return pd.Index(genes.astype(str)), pd.Index(common.astype(str))


def _find_duplicates(parts: list[_Part], common: pd.Index, chunk_size: int) -> tuple[np.ndarray, pd.DataFrame]:
    """Mark cells whose counts over the common genes occur in several studies."""
    frames = []
    for i, part in enumerate(parts):
        for block in _aligned(part, common, chunk_size):
            part.whole &= bool((block.data >= 0).all() and (block.data == np.rint(block.data)).all())
            code = content_hash(block)
            rich = np.diff(block.indptr) >= MIN_GENES
            frames.append(pd.DataFrame({"a": code[:, 0], "b": code[:, 1], "study": i, "rich": rich}))
    cells = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["a", "b", "study", "rich"])
    rich = cells[cells["rich"].astype(bool)]
    several = rich.groupby(["a", "b"])["study"].transform("nunique") > 1
    duplicated = np.zeros(len(cells), dtype=bool)
    duplicated[several.index[several]] = True
    found = rich[several].drop_duplicates(["a", "b", "study"])
    both = found.merge(found, on=["a", "b"])
    both = both[both["study_x"] < both["study_y"]]
    pairs = both.groupby(["study_x", "study_y"]).size().rename("n_cells").reset_index()
    names = np.array([p.name for p in parts], dtype=object)
    table = pd.DataFrame(
        {
            "study_a": names[pairs["study_x"].to_numpy(int)],
            "study_b": names[pairs["study_y"].to_numpy(int)],
            "n_cells": pairs["n_cells"].to_numpy(np.int64),
        }
    )
    return duplicated, _text_index(table)


def _aligned(part: _Part, genes: pd.Index, chunk_size: int) -> Iterator[sparse.csr_matrix]:
    """Blocks of a study over other genes: columns are moved, left out, or zero."""
    place = genes.get_indexer(part.names)
    for _, block in CountSource(part.counts).blocks(chunk_size):
        column = place[block.indices]
        keep = (column >= 0) & (block.data != 0)
        before = np.concatenate([[0], np.cumsum(keep)])
        data = block.data[keep].astype(np.float32)
        out = sparse.csr_matrix((data, column[keep], before[block.indptr]), shape=(block.shape[0], len(genes)))
        out.sort_indices()
        yield out


def _obs(parts: list[_Part], duplicated: np.ndarray) -> pd.DataFrame:
    """Stack the annotation of the cells; keys that are local to a study get its name in front."""
    frames = []
    for part in parts:
        frame = part.adata.obs.copy()
        if KEYS.study in frame and not (frame[KEYS.study].astype(str) == part.name).all():
            frame["source_study"] = frame[KEYS.study]
        frame[KEYS.study] = part.name
        if KEYS.sample not in frame:
            frame[KEYS.sample] = "all"
        for key in _LOCAL:
            if key in frame:
                known = frame[key].notna()
                frame[key] = (part.name + ":" + frame[key].astype(str)).where(known, None)
        frame.index = part.name + ":" + part.adata.obs_names.astype(str)
        frames.append(frame)
    categorical = {c for f in frames for c in f if isinstance(f[c].dtype, pd.CategoricalDtype)} | {KEYS.study, *_LOCAL}
    columns = dict.fromkeys(c for f in frames for c in f)
    # True beside a gap would become 1.0.
    gappy = {c for f in frames for c in f if f[c].dtype == bool and any(c not in g for g in frames)}
    plain = [f.astype({c: object for c in f.columns if c in categorical | gappy}) for f in frames]
    plain = [f.assign(**{c: pd.Series(None, index=f.index, dtype=object) for c in gappy - set(f)}) for f in plain]
    obs = pd.concat([f.reindex(columns=list(columns)) for f in plain])
    for name in categorical & set(columns):
        found = list(dict.fromkeys(obs[name].dropna()))
        order = list(CLASSES) if set(found) <= set(CLASSES) and name == KEYS.response else found
        obs[name] = pd.Categorical(obs[name], categories=order)
    for name in obs:
        if obs[name].dtype == object or isinstance(obs[name].dtype, pd.StringDtype):
            # A column that some studies lack holds text and gaps; files hold that as categories.
            obs[name] = pd.Categorical(obs[name].where(obs[name].isna(), obs[name].astype(str)))
    obs["duplicated"] = duplicated
    return obs


def _var(parts: list[_Part], genes: pd.Index) -> pd.DataFrame:
    """Identifiers from the first study that has them."""
    symbol, ensembl = pd.Series("", index=genes, dtype=object), pd.Series("", index=genes, dtype=object)
    n_studies = pd.Series(0, index=genes)
    for part in parts:
        ids, names = part.ids, part.names
        present = genes[genes.isin(names)]
        n_studies[present] += 1
        for values, into in ((ids.symbols, symbol), (ids.ensembl, ensembl)):
            found = pd.Series(values.astype(object), index=names)[present]
            into[present] = into[present].where(into[present] != "", found)
    return pd.DataFrame({KEYS.gene_symbol: symbol, KEYS.ensembl_id: ensembl, "n_studies": n_studies}, index=genes)


def _build(
    target: Path | None,
    blocks: Iterator[sparse.csr_matrix],
    obs: pd.DataFrame,
    var: pd.DataFrame,
    uns: dict[str, Any],
) -> AnnData:
    """Stack the blocks in memory or in a file."""
    import anndata

    if target is None:
        empty = sparse.csr_matrix((0, len(var)), dtype=np.float32)
        counts = sparse.vstack([empty, *blocks], format="csr")
        return anndata.AnnData(sparse.csr_matrix(counts), obs=obs, var=var, uns=uns)
    from scdrugmap._disk_write import write_h5ad

    write_h5ad(target, blocks, lambda: obs, var, uns)
    return anndata.read_h5ad(target, backed="r")


def _text_index(frame: pd.DataFrame) -> pd.DataFrame:
    """Files want names of rows to be text."""
    frame.index = frame.index.astype(str)
    return frame


def _warn(
    parts: list[_Part], common: pd.Index, pairs: pd.DataFrame, join: str, changed: int, ensembl: pd.Series
) -> None:
    """Say what is unexpected about the result."""
    if changed:
        warnings.warn(
            f"{changed:,} Ensembl ids differ between studies in their version alone and were matched without it.",
            ScDrugMapWarning,
            stacklevel=3,
        )
    smallest = min(len(p.names) for p in parts)
    left = {p.name: len(p.names) - len(common) for p in parts if len(p.names) > len(common)}
    if join == "inner" and left and len(common) >= 0.5 * smallest:
        listing = ", ".join(f"{n:,} of {name}" for name, n in list(left.items())[:5])
        message = (
            f"{len(common):,} genes are common to all studies; left out: {listing}. join='outer' keeps them; "
            "sd.pp.harmonize_genes on each study may bring more together."
        )
        if max(1 - len(common) / len(p.names) for p in parts) > MANY:
            warnings.warn(message, ScDrugMapWarning, stacklevel=3)
        else:  # what an inner join is for: a line in the log
            get_logger().warning("%s", message)
    twice = int(ensembl[ensembl != ""].duplicated().sum())
    if twice:
        warnings.warn(
            f"{twice:,} genes stand in several columns under different names (one Ensembl id). Call "
            "sd.pp.harmonize_genes on each study first.",
            ScDrugMapWarning,
            stacklevel=3,
        )
    if len(common) < 0.5 * smallest:
        lost = "are lost" if join == "inner" else "are zero in a study that does not have them"
        warnings.warn(
            f"only {len(common):,} genes are common to all studies; the others {lost}. "
            "sd.pp.harmonize_genes on each study may bring more together.",
            ScDrugMapWarning,
            stacklevel=3,
        )
    if len(pairs):
        listing = ", ".join(f"{r.study_a} and {r.study_b} ({r.n_cells:,})" for r in list(pairs.itertuples())[:5])
        warnings.warn(f"studies share cells: {listing}; obs['duplicated'] marks them.", ScDrugMapWarning, stacklevel=3)
    without = [p.name for p in parts if KEYS.sample not in p.adata.obs]
    if without:
        warnings.warn(
            f"without obs['{KEYS.sample}'], each of these counts as one sample: {', '.join(without)}.",
            ScDrugMapWarning,
            stacklevel=3,
        )
