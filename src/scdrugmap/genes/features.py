"""What in the columns of a matrix is a gene, and what is an antibody, a guide, a spike-in or a tally."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from scdrugmap.genes.identifiers import as_text

#: Columns of ``var`` that may tell the type of a feature.
TYPE_COLUMNS = ("feature_types", "feature_type", "feature_biotype", "modality", "type")
GENE = "gene expression"
#: Types of 10x Genomics, CITE-seq pipelines and cell atlases whose features are no genes, in lower case.
_FOREIGN = {
    "antibody capture": "antibody",
    "antibody": "antibody",
    "antibodies": "antibody",
    "adt": "antibody",
    "protein": "antibody",
    "protein expression": "antibody",
    "crispr guide capture": "CRISPR guide",
    "crispr": "CRISPR guide",
    "guide": "CRISPR guide",
    "sgrna": "CRISPR guide",
    "multiplexing capture": "hashtag",
    "hashtag": "hashtag",
    "hto": "hashtag",
    "cell hashing": "hashtag",
    "antigen capture": "antigen",
    "custom": "custom feature",
    "peaks": "peak",
    "peak": "peak",
    "atac": "peak",
    "chromatin accessibility": "peak",
    "vdj": "V(D)J feature",
    "spike-in": "spike-in",
    "spike in": "spike-in",
    "spikein": "spike-in",
    "ercc": "spike-in",
}
#: Names that no gene bears.
_NAMES = (
    ("spike-in", r"^ERCC[-_.]?\d{5}$|^SIRV\d{1,4}$|^spike[-_ ]?in"),
    ("summary", r"^__[A-Za-z]|^N_(?:unmapped|multimapping|noFeature|ambiguous)$|^Unassigned_|^alignment_not_unique$"),
    ("summary", r"^(?:no_feature|too_low_aQual|not_aligned)$"),
    ("antibody", r"_Total(?:-?Seq)?[-_]?[ABC]$|^ADT[-_]|[-_]ADT$|^AB_CD\d"),
    ("hashtag", r"^HTO[-_]|^HTO\d+$|^(?:anti[-_ ]?\w+[-_ ])?hash[-_ ]?tag"),
    ("CRISPR guide", r"^sgRNA[-_]|[-_]sgRNA[-_]?\d*$"),
)


def feature_kinds(names: Iterable[object], types: Iterable[object] | None = None) -> np.ndarray:
    """Return for every column what it is: ``""`` for a gene, else ``"antibody"``, ``"spike-in"``, ``"summary"``, ...

    Parameters
    ----------
    names
        Names of the columns.
    types
        Types of the features, as 10x Genomics writes them; other annotation of the genes (biotypes) says nothing here.

    Examples
    --------
    >>> from scdrugmap.genes import feature_kinds
    >>> feature_kinds(["TP53", "ERCC-00002", "__no_feature"]).tolist()
    ['', 'spike-in', 'summary']
    >>> feature_kinds(["TP53", "CD3"], ["Gene Expression", "Antibody Capture"]).tolist()
    ['', 'antibody']
    """
    texts = pd.Series(as_text(names), dtype=object)
    out = np.full(len(texts), "", dtype=object)
    for kind, pattern in _NAMES:
        out[texts.str.contains(pattern, case=False, regex=True).to_numpy(bool) & (out == "")] = kind
    if types is not None:
        told = pd.Series(as_text(types), dtype=object)
        low = told.str.lower()
        foreign = low.map(_FOREIGN).fillna("").to_numpy(dtype=object)
        if (low == GENE).any():
            # Where the genes are named as such, whatever has another type is none of them.
            other = ((low != GENE) & (low != "")).to_numpy() & (foreign == "")
            foreign[other] = told.to_numpy(dtype=object)[other]
        out = np.where(foreign != "", foreign, out)
    return out.astype(str) if len(out) else np.empty(0, dtype=str)
