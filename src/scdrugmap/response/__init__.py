"""From embedding to answer: heads, adapters, calibrated calls, predictors that travel."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "batched": ["fit_heads"],
        "head": ["MLPHead"],
        "lora": ["LoRAOptions"],
        "heads": ["make_head"],
        "samples": ["sample_calls"],
        "predictor": ["ResponsePredictor", "load_predictor"],
    },
)
