"""Single-cell drug response with foundation models, on AnnData and MuData."""

import lazy_loader as _lazy

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submodules=[
        "datasets",
        "download",
        "evaluation",
        "genes",
        "models",
        "pl",
        "pp",
        "prompting",
        "response",
        "testing",
        "tl",
        "web",
    ],
    submod_attrs={
        "predictor.predictor": ["ResponsePredictor", "load_predictor"],
        "evaluation.result.result": ["load_result"],
        "settings": ["settings"],
        "study.spec": ["ReproduceSpec"],
        "study.run": ["reproduce"],
    },
)
