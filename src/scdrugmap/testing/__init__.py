"""The conformance suite for models, usable by packages that add their own, and their speed on this machine."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={"cells": ["example_cells"], "conformance": ["check_model", "checks"], "speed": ["bench"]},
)
