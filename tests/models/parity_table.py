"""Every recorded value of the official implementations, and the public options that give it.

A row reads: ``sd.tl.embed(input, model, checkpoint=parity/<folder>, **options)`` equals ``expected.npz[array]``
within ``atol``. Tokens and hidden states are compared in the tests of each model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    model: str
    array: str
    atol: float
    options: dict[str, Any] = field(default_factory=dict)
    checkpoint: str = "checkpoint"
    folder: str | None = None
    rows: str | slice | None = None
    """Rows of the input which the expected array covers, or the array of expected.npz that holds them."""

    @property
    def id(self) -> str:
        return f"{self.model}-{self.folder or ''}{self.checkpoint}-{self.array}"


CASES: list[Case] = [
    # tGPT
    Case("tGPT", "cell_embedding_official", 1e-5, {"recipe": "official"}),
    Case("tGPT", "cell_embedding_official_len128", 1e-5, {"recipe": "official", "max_length": 128}),
    Case("tGPT", "cell_embedding_official_no_token_type", 1e-5, {"recipe": "official", "token_type": False}),
    Case("tGPT", "cell_embedding_official_keep_unk", 1e-5, {"recipe": "official", "unknown": "keep"}),
    Case("tGPT", "cell_embedding", 1e-5, {"recipe": "scdrugmap"}),
    Case("tGPT", "cell_embedding_len128", 1e-5, {"recipe": "scdrugmap", "max_length": 128}),
    # Geneformer
    Case("Geneformer", "cell_embedding", 1e-5),
    Case("Geneformer", "cell_embedding_official", 1e-5, {"recipe": "official"}),
    Case("Geneformer", "cell_embedding_unmasked_padded", 1e-5, {"recipe": "scdrugmap"}),
    Case("Geneformer", "cell_embedding", 1e-5, folder="geneformer/v2"),
    Case("Geneformer", "cell_embedding_official", 1e-5, {"recipe": "official"}, folder="geneformer/v2"),
    Case("Geneformer", "cell_embedding_unmasked_padded", 1e-5, {"recipe": "scdrugmap"}, folder="geneformer/v2"),
    Case(
        "Geneformer",
        "cell_embedding_meanpool_second_last",
        1e-5,
        {"recipe": "official", "emb_mode": "cell"},
        folder="geneformer/v2",
    ),
    Case("Geneformer", "cell_embedding_cls_last", 1e-5, {"emb_mode": "cls"}, folder="geneformer/v2"),
    # Llama-3-8B
    Case("Llama-3-8B", "cell_embedding", 5e-5, {"recipe": "official"}, folder="llama"),
    Case("Llama-3-8B", "cell_embedding_no_bos", 5e-5, {"recipe": "official", "pooling": "mean_no_bos"}, folder="llama"),
    Case("Llama-3-8B", "cell_embedding_last_token", 5e-5, {"recipe": "official", "pooling": "last"}, folder="llama"),
    Case("Llama-3-8B", "code_cell_embedding", 5e-5, {"recipe": "scdrugmap"}, folder="llama", rows=slice(4)),
    # scGPT
    Case("scGPT", "cell_embedding", 5e-5, {"ties": "upper", "too_long": "first"}),
    Case("scGPT", "cell_embedding", 5e-5, {"ties": "upper", "too_long": "first"}, "checkpoint_in_proj"),
    Case("scGPT", "cell_embedding_official", 5e-5, {"ties": "upper", "too_long": "first", "normalize": True}),
    Case("scGPT", "cell_embedding_midpoint", 5e-5, {"ties": "midpoint", "too_long": "first"}),
    Case("scGPT", "cell_embedding_seeded", 5e-5, {"recipe": "official", "seed": 7, "normalize": False}),
    Case("scGPT", "cell_embedding_ft", 5e-5, {"recipe": "scdrugmap", "ties": "upper"}),
    # UCE: this checkpoint has 4 heads, the official ones 20
    Case("UCE", "cell_embedding", 1e-5, {"recipe": "official", "heads": 4}, rows="kept_cells"),
    Case(
        "UCE", "cell_embedding_nopad", 1e-5, {"recipe": "official", "padding": "masked", "heads": 4}, rows="kept_cells"
    ),
    Case("UCE", "nofilter_cell_embedding_nopad", 1e-5, {"draws": "stream", "heads": 4}, rows="nofilter_kept_cells"),
    # scBERT
    Case("scBERT", "cell_embedding", 1e-5, {"recipe": "scdrugmap"}),
    Case("scBERT", "cell_embedding_6000", 1e-5, {"max_length": 6000}),
    Case("scBERT", "cell_embedding_full", 1e-5),
    # CellLM: this checkpoint's configuration has 1,000 positions; recipe="scdrugmap" would take 8,000.
    Case("CellLM", "cell_embedding", 2e-5, {"recipe": "scdrugmap", "max_length": 1000}),
    Case("CellLM", "cell_embedding_mean_valid", 2e-5),
    Case("CellLM", "cell_embedding_cls", 2e-5, {"pooling": "cls"}),
    Case("CellLM", "cell_embedding_ln", 2e-5, {"pooling": "mean_padded", "log_base": "e"}),
    Case("CellLM", "cell_embedding_ln_mean_valid", 2e-5, {"log_base": "e"}),
    # scFoundation
    Case("scFoundation", "cell_embedding", 2e-5),
    Case("scFoundation", "cell_embedding", 2e-5, {"recipe": "scdrugmap"}),
    Case("scFoundation", "embedding_ce_all_t4", 2e-5, {"recipe": "official"}),
    Case("scFoundation", "embedding_ce_all_f1", 2e-5, {"tgthighres": "f1"}),
    Case("scFoundation", "embedding_ce_all_f1p5", 2e-5, {"tgthighres": "f1.5"}),
    Case("scFoundation", "embedding_ce_all_a5", 2e-5, {"tgthighres": "a5"}),
    Case("scFoundation", "embedding_ce_max_t4", 2e-5, {"pool": "max"}),
    Case("scFoundation", "embedding_rde_all_a5", 2e-5, {"weights": "rde", "tgthighres": "a5"}),
    Case("scFoundation", "embedding_ce_all_t4_prenormT", 2e-5, {"source_depth": "values"}),
    # CellPLM (cell_embedding_two_batches needs a column of labels: groups="batch"; see test_cellplm.py)
    Case("CellPLM", "cell_embedding", 5e-5),
    Case("CellPLM", "cell_embedding_chunk20", 5e-5, {"group_size": 20}),
    Case("CellPLM", "cell_embedding_single", 5e-5, {"group_size": 1}),
    Case("CellPLM", "cell_embedding_seed0", 5e-5, {"recipe": "official"}),
]
