"""The packaged table of human protein-coding genes."""

from __future__ import annotations

import io
import lzma
from functools import lru_cache
from importlib.resources import files

import pandas as pd


@lru_cache(maxsize=1)
def _packaged() -> pd.DataFrame:
    raw = files("scdrugmap.genes").joinpath("data/human_protein_coding.csv.xz").read_bytes()
    frame = pd.read_csv(io.BytesIO(lzma.decompress(raw)), comment="#", dtype=str, keep_default_na=False)
    frame["expression"] = pd.to_numeric(frame["expression"]).fillna(0).astype(int)
    return frame


def packaged_table() -> pd.DataFrame:
    """Return the human protein-coding genes that come with the package.

    Returns
    -------
    A data frame with one row per Ensembl gene: ``symbol``, ``ensembl_id``, ``entrez_id`` (``""`` where Ensembl gives
    none or several) and ``expression``, a level from 5 (highest) to 1 of the genes that tumour and blood cells express
    most, 0 for the others.

    Notes
    -----
    Genes of GRCh38 on chromosomes 1-22, X, Y and MT, Ensembl release 109. It holds approved symbols only: aliases
    and previous symbols need a table of the HGNC.

    Examples
    --------
    >>> from scdrugmap.genes import packaged_table
    >>> table = packaged_table()
    >>> table.loc[table["symbol"] == "TP53", "ensembl_id"].item()
    'ENSG00000141510'
    """
    return _packaged().copy()
