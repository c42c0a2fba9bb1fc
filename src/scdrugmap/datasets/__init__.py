"""Studies of drug response: the catalogue, loaders for what their sources hold, and the simulator."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submodules=["loaders"],
    submod_attrs={
        "catalogue": ["catalogue", "categories", "info"],
        "collection": ["Collection", "collection"],
        "fetch": ["fetch"],
        "loaders": ["load"],
        "_simulate": ["simulate"],
    },
)
