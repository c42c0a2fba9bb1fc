"""Studies of drug response: the catalogue, loaders for what their sources hold, and the simulator."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submodules=["loaders"],
    submod_attrs={
        "_catalogue": ["catalogue", "categories", "info"],
        "_collection": ["Collection", "collection"],
        "_fetch": ["fetch"],
        "_published": ["published_scores"],
        "loaders": ["load"],
        "_simulate": ["simulate"],
    },
)
