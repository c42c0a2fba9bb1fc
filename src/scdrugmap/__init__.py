"""Single-cell drug response with foundation models, on AnnData and MuData."""

import lazy_loader as _lazy

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submodules=["datasets", "models", "pl", "pp", "prompting", "testing", "tl"],
    submod_attrs={"response": ["ResponsePredictor", "load_predictor"], "settings": ["settings"]},
)
