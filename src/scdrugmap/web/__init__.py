"""The server for people who do not program: ``scdrugmap serve``, its REST API and a client of it."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={"app": ["create_app"], "client": ["Client"], "config": ["ServerSettings"]},
)
