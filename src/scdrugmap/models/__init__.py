"""The foundation models and baselines: ``sd.models.list()`` shows them."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "base": ["FittedModel", "GroupModel", "NetworkModel"],
        "card": ["ModelCard"],
        "_list": ["list"],
        "_fetch": ["fetch", "remove", "verify", "where"],
        "registry": ["info", "load", "register"],
    },
)
