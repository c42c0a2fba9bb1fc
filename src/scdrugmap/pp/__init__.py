"""Preparing data: checks, genes, labels, studies side by side."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_check": ["check"],
        "_concat_studies": ["concat_studies"],
        "_gene_coverage": ["gene_coverage"],
        "_harmonize_genes": ["harmonize_genes"],
        "_harmonize_response": ["harmonize_response"],
        "_report": ["CheckReport", "Finding"],
    },
)
