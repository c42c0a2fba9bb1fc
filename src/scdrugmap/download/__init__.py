"""Verified files of data sets and checkpoints: registry, resumable transfer, licences, local registration."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "catalog": ["Entry", "FileSpec", "KINDS", "entries", "find"],
        "engine": ["fetch"],
        "inventory": ["info", "listing", "remove", "verify", "where"],
        "local": ["register_local"],
        "transfer": ["Transfer"],
    },
)
