"""Sets of human genes that the simulator moves: resistance, drugs, cell types, cell cycle, surface proteins."""

from __future__ import annotations

#: Genes that go up in cells that resist many drugs: mesenchymal state, efflux, oxidative defence, survival, stress.
SHARED_UP = (
    "VIM", "ZEB1", "AXL", "ABCB1", "NQO1", "BCL2L1", "TWIST1", "FN1", "ABCG2", "HMOX1", "MCL1", "SNAI2", "SPARC",
    "GSTP1", "AKR1C1", "BIRC3", "LGALS1", "S100A4", "ALDH1A1", "CD44", "SERPINE1", "TXNRD1", "SRXN1", "ATF4", "DDIT3",
    "HSPA5", "NFE2L2", "TGFBI", "CDH2", "ITGA5", "ABCC1", "AKR1C3", "GCLM", "XIAP", "CAV1", "IL6", "CXCL8",
)  # fmt: skip

#: Genes that go down with them: epithelial state, apoptosis, proliferation.
SHARED_DOWN = (
    "CDH1", "EPCAM", "BAX", "BBC3", "KRT19", "PMAIP1", "CASP3", "KRT8", "KRT18", "CLDN4", "BCL2L11", "TNFRSF10B",
    "CLDN7", "ESRP1", "CASP8", "BAK1", "FAS", "APAF1", "DIABLO", "BID",
)  # fmt: skip

#: Genes of one drug: its target pathway and the escapes from it.
DRUGS: dict[str, tuple[str, ...]] = {
    "erlotinib": (
        "EGFR", "MET", "ERBB3", "ERBB2", "DUSP6", "SPRY4", "SPRY2", "ETV4", "ETV5", "IGF1R", "FGFR1", "HGF", "EREG",
        "AREG", "PHLDA1", "IER3", "CCND1", "ERRFI1", "STAT3",
    ),
    "paclitaxel": (
        "TUBB3", "TUBB", "TUBA1B", "TUBB4B", "TUBB2A", "TUBB6", "STMN1", "MAP4", "MAPT", "KIF5B", "KIF11", "AURKA",
        "BUB1B", "TTK", "MAD2L1", "CCNB1", "PLK1", "TUBA1A", "TUBA1C", "TBCA",
    ),
    "bortezomib": (
        "PSMB5", "PSMA1", "PSMB1", "PSMB2", "PSMC2", "PSMD1", "PSMD11", "XBP1", "SQSTM1", "HSPA1A", "HSPA1B", "DNAJB1",
        "HSP90AA1", "HSPB1", "VCP", "UBB", "UBC", "SEC61B", "HERPUD1", "NFKB1",
    ),
    "vemurafenib": (
        "BRAF", "MITF", "NGFR", "MLANA", "PMEL", "TYR", "SOX10", "WNT5A", "EGR1", "DUSP4", "MAP2K1", "CCND1", "AXL",
        "PDGFRB", "JUN", "FOS", "FOSL1", "TEAD1", "CCN1", "CCN2",
    ),
    "cisplatin": (
        "ERCC1", "XPA", "BRCA1", "RAD51", "ATP7A", "ATP7B", "SLC31A1", "MT2A", "MT1X", "MT1E", "GADD45A", "CDKN1A",
        "MDM2", "XPC", "POLH", "FANCD2", "MSH2", "MLH1", "PCNA", "TP53",
    ),
    "docetaxel": (
        "AR", "KLK3", "TUBB3", "TUBB4A", "GATA2", "NOTCH2", "JAG1", "CLU", "CCL2", "HIF1A", "VEGFA", "LDHA", "SLC2A1",
        "CXCR4", "CXCL12", "TMPRSS2", "FOXA1", "NKX3-1", "STAT1", "TXNIP",
    ),
}  # fmt: skip

#: Markers of cell types.
CELL_TYPES: dict[str, tuple[str, ...]] = {
    "malignant": ("KRT8", "KRT18", "KRT19", "EPCAM", "CLDN4", "MUC1", "ELF3", "S100A14", "TACSTD2", "KRT7"),
    "T cell": ("CD3D", "CD3E", "CD2", "IL7R", "CD8A", "IL32", "LTB", "CCL5", "GZMA", "LCK", "CD69", "PTPRC"),
    "B cell": ("CD79A", "CD79B", "MS4A1", "CD19", "CD74", "HLA-DRA", "BANK1", "CD37", "PTPRC"),
    "macrophage": ("LYZ", "CD68", "CD14", "C1QA", "C1QB", "APOE", "FCER1G", "TYROBP", "AIF1", "CTSS", "PTPRC"),
    "fibroblast": ("COL1A1", "COL1A2", "COL3A1", "DCN", "LUM", "THY1", "PDGFRB", "TAGLN", "ACTA2", "MMP2"),
    "endothelial": ("PECAM1", "VWF", "CDH5", "CLDN5", "KDR", "ENG", "PLVAP", "EGFL7"),
}

#: Genes of dividing cells.
CELL_CYCLE = (
    "MKI67", "TOP2A", "PCNA", "CCNB1", "CDK1", "UBE2C", "BIRC5", "TYMS", "MCM5", "MCM2", "HMGB2", "CENPF", "CCNA2",
    "NUSAP1", "TPX2", "RRM2", "GMNN", "CKS1B", "HMGB1", "STMN1",
)  # fmt: skip

#: Proteins on the surface that the second modality counts, by the gene that codes for each.
SURFACE: dict[str, str] = {
    "CD44": "CD44",
    "EpCAM": "EPCAM",
    "EGFR": "EGFR",
    "AXL": "AXL",
    "CD3": "CD3D",
    "CD8": "CD8A",
    "CD14": "CD14",
    "CD45": "PTPRC",
    "CD90": "THY1",
    "MDR1": "ABCB1",
    "HLA-DR": "HLA-DRA",
    "CD47": "CD47",
}

#: Tissue and cancer type of the studies, taken in turn.
ORIGINS = (
    ("lung", "lung adenocarcinoma"),
    ("breast", "breast carcinoma"),
    ("bone marrow", "multiple myeloma"),
    ("prostate", "prostate carcinoma"),
    ("skin", "melanoma"),
    ("pancreas", "pancreatic carcinoma"),
)
