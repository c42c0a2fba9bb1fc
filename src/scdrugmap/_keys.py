"""Every AnnData slot name that scdrugmap reads or writes, in one place."""

from __future__ import annotations

from dataclasses import dataclass

RESISTANT, SENSITIVE = "resistant", "sensitive"
#: Categories of every label and prediction, in this order; the positive class is the last.
CLASSES = (RESISTANT, SENSITIVE)
#: Their colours, in the same order: red and blue that colour-blind readers tell apart, and that differ in grey.
CLASS_COLOURS = ("#d6604d", "#1f4e8c")
#: What every table, figure and page says beside a random split of cells.
SAME_SAMPLE = "cells of one sample on both sides"


@dataclass(frozen=True)
class Keys:
    """Slot names of ``obs``, ``var``, ``obsm`` and ``uns``."""

    # obs, read
    response: str = "response"
    sample: str = "sample"
    patient: str = "patient"
    study: str = "study"
    batch: str = "batch"
    drug: str = "drug"
    tissue: str = "tissue"
    cancer_type: str = "cancer_type"
    time_point: str = "time_point"
    # obs, written, as suffixes of ``key_added``
    pred: str = "_pred"
    score: str = "_score"
    set: str = "_set"
    ood: str = "_ood"
    status: str = "_status"
    # var
    gene_symbol: str = "gene_symbol"
    ensembl_id: str = "ensembl_id"
    # uns
    genes: str = "scdrugmap_genes"
    concat: str = "scdrugmap_concat"
    labels: str = "scdrugmap_labels"
    provenance: str = "provenance"
    biomarkers: str = "biomarkers"
    attribution: str = "attribution"
    perturbation: str = "perturbation"
    pathways: str = "pathways"
    simulation: str = "simulation"
    # obs and uns, written by the tools of interpretation
    attributed: str = "attributed"
    attribution_gap: str = "attribution_gap"
    record: str = "_record"
    ranking: str = "_ranking"

    @staticmethod
    def stem(key: str, kind: str) -> str:
        """Name in ``uns`` of the model with this key: baselines leave ``pca`` and its like to scanpy."""
        return f"scdrugmap_{key}" if kind == "fitted" else key

    @staticmethod
    def embedding(stem: str) -> str:
        """Name of the ``obsm`` slot that goes with a name in ``uns``."""
        return f"X_{stem}"


KEYS = Keys()
