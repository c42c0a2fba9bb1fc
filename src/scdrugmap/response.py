"""The public names behind a predicted response: heads, adapters, calibrated calls, predictors that travel."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    "scdrugmap",
    submod_attrs={
        "heads.batched": ["fit_heads"],
        "heads.mlp": ["MLPHead"],
        "heads.make": ["make_head"],
        "lora.adapters": ["LoRAOptions"],
        "trust.samples": ["sample_calls"],
        "predictor.predictor": ["ResponsePredictor", "load_predictor"],
    },
)
