"""Readers of the formats that drug-response studies are published in; each gives the same tidy AnnData."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "auto": ["load"],
        "h5ad": ["read_h5ad"],
        "published": ["read_published"],
        "raw_tar": ["read_raw_tar"],
        "seurat": ["read_seurat_rds"],
        "tenx": ["read_10x_h5", "read_10x_mtx"],
        "text": ["read_text"],
    },
)
