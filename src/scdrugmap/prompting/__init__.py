"""Drug response by asking a chat model: genes, prompts, client, parsing, cache."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "cost": ["Preview"],
        "examples": ["Examples"],
        "genes": ["select_genes"],
        "options": ["ClientOptions", "EndpointError"],
        "parsing": ["parse_answer"],
        "result": ["PromptResult"],
        "run": ["predict", "preview"],
        "templates": ["PromptCell", "Template", "get_template", "templates"],
    },
)
