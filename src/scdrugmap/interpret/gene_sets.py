"""Sets of genes with signed weights: from a GMT file, the download layer, or the package's own short list."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from scdrugmap._errors import DownloadError, InputError, OfflineError, UnknownNameError

SOURCES = ("hallmark", "progeny", "collectri", "resistance")
#: Genes per footprint of PROGENy, the most responsive first, as its authors advise for single cells.
PROGENY_TOP = 500


@dataclass(frozen=True, eq=False)
class GeneSets:
    """Named sets.

    Parameters
    ----------
    table
        Columns ``set``, ``gene`` and ``weight``.
    provenance
        Where it came from: source, licence, version, SHA-256.
    """

    table: pd.DataFrame
    provenance: dict[str, Any] = field(default_factory=dict)

    def matrix(self, genes: np.ndarray, min_genes: int = 5) -> tuple[list[str], sparse.csr_matrix]:
        """Return names and weights ``(sets, genes)`` of the sets with at least ``min_genes`` of these genes.

        Parameters
        ----------
        genes
            Symbols; the first column of a name stands for it.
        min_genes
            Smaller sets are left out.

        Raises
        ------
        InputError
            If no set is left.
        """
        place: dict[str, int] = {}
        for i, gene in enumerate(np.asarray(genes).astype(str)):
            if gene:
                place.setdefault(gene.upper(), i)
        frame = self.table.drop_duplicates(["set", "gene"])
        at = frame["gene"].str.upper().map(place)
        frame, at = frame[at.notna()], at[at.notna()].astype(int)
        sizes = frame["set"].value_counts()
        names = [s for s in pd.unique(self.table["set"]) if sizes.get(s, 0) >= min_genes]
        if not names:
            raise InputError(
                "source", f"no set with {min_genes} or more of the {len(genes)} genes of the data",
                "sets of gene symbols that the data hold", "call sd.pp.harmonize_genes(adata), or check the file.",
            )  # fmt: skip
        kept = frame["set"].isin(names).to_numpy()
        row = frame["set"][kept].map({s: i for i, s in enumerate(names)}).to_numpy()
        weights = frame["weight"].to_numpy(dtype=float)[kept]
        return names, sparse.csr_matrix((weights, (row, at.to_numpy()[kept])), (len(names), len(genes)))


def read_gmt(path: str | Path) -> GeneSets:
    """Read a GMT file: name, description and genes of a set on each line, divided by tabulators.

    Raises
    ------
    InputError
        If the file is missing or no GMT file.
    """
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("source", f"{file}: {error}", "a GMT file that can be read", "check the path.") from None
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        parts = line.rstrip("\n").split("\t")
        if len(parts) < 3:
            raise InputError(
                "source", f"{file.name}, line {number}: {len(parts)} fields", "name, description and genes, tab-delimited",
                "write one set per line, with tabulators.",
            )  # fmt: skip
        rows += [(parts[0], g.strip(), 1.0) for g in parts[2:] if g.strip()]
    if not rows:
        raise InputError("source", f"{file.name}: no set", "one set or more", "check the file.")
    digest = hashlib.sha256(text.encode()).hexdigest()
    table = pd.DataFrame(rows, columns=["set", "gene", "weight"])
    return GeneSets(table, {"source": file.name, "licence": "of the file's author", "sha256": digest})


def gene_sets(source: str | Path) -> GeneSets:
    """Return the sets of a source.

    Parameters
    ----------
    source
        One of ``SOURCES``, or the path of a GMT file.

    Raises
    ------
    UnknownNameError
        For a name that is neither.
    OfflineError
        If the source has to be fetched and offline mode forbids it.

    Examples
    --------
    >>> "EGFR inhibitors" in set(gene_sets("resistance").table["set"])
    True
    """
    text = str(source)
    if text in SOURCES:
        return _resistance() if text == "resistance" else _fetched(text)
    if text.endswith(".gmt") or Path(text).expanduser().is_file():
        return read_gmt(text)
    raise UnknownNameError("source", text, SOURCES, "Or pass the path of a GMT file.")


def _resistance() -> GeneSets:
    """The package's own short list of genes with a known role."""
    text = resources.files("scdrugmap.interpret").joinpath("data/resistance.tsv").read_text(encoding="utf-8")
    lines = [line.split("\t") for line in text.splitlines() if line and not line.startswith("#")]
    frame = pd.DataFrame(lines[1:], columns=lines[0])
    table = pd.DataFrame({"set": frame["set"], "gene": frame["gene"], "weight": frame["direction"].astype(float)})
    digest = hashlib.sha256(text.encode()).hexdigest()
    return GeneSets(table, {"source": "resistance", "licence": "BSD-3-Clause", "version": "1", "sha256": digest})


def _fetched(name: str) -> GeneSets:
    """A source of the download layer."""
    from scdrugmap import download

    entry = download.find("datasets", f"gene-sets-{name}")
    try:
        folder = download.fetch("datasets", entry.key)
    except OfflineError as error:
        raise OfflineError(
            f"{error} Or pass a GMT file of your own: sd.tl.pathways(adata, source='sets.gmt'); source='resistance' needs no "
            "download."
        ) from error
    except DownloadError as error:
        raise DownloadError(
            f"{error} Or pass a GMT file of your own: sd.tl.pathways(adata, source='sets.gmt')."
        ) from error
    file = folder / entry.files[0].name
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    origin = {"source": name, "licence": entry.licence, "version": entry.revision or "", "sha256": digest}
    if file.suffix == ".gmt":
        return GeneSets(read_gmt(file).table, origin)
    return GeneSets(_omnipath(pd.read_csv(file, sep="\t"), name), origin)


def _omnipath(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Tables of OmniPath: PROGENy's footprints, CollecTRI's signed targets."""
    if name == "progeny":
        if "label" in frame:
            # One row per property of a record.
            wide = frame.pivot(index="record_id", columns="label", values="value")
            frame = wide.join(frame.drop_duplicates("record_id").set_index("record_id")["genesymbol"])
            frame = frame.astype({"weight": float, "p_value": float})
        top = frame.sort_values("p_value", kind="stable").groupby("pathway").head(PROGENY_TOP)
        table = top.rename(columns={"pathway": "set", "genesymbol": "gene"})[["set", "gene", "weight"]]
        return table.astype({"weight": float}).reset_index(drop=True)
    sign = np.where(frame["consensus_inhibition"].astype(bool), -1.0, 1.0)
    return pd.DataFrame({"set": frame["source_genesymbol"], "gene": frame["target_genesymbol"], "weight": sign})
