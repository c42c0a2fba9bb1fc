"""Gene identifiers, the symbol table and the mapping between them."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "features": ["feature_kinds"],
        "identifiers": [
            "Genes",
            "Recognition",
            "as_text",
            "classify",
            "dated",
            "reads_as",
            "recognise",
            "species_of",
            "split_pairs",
            "strip_genome",
            "strip_version",
        ],
        "mapping": ["Coverage", "Resolution", "coverage", "duplicates", "resolve_genes", "sum_columns"],
        "table": ["GeneTable", "packaged_table", "read_table"],
    },
)
