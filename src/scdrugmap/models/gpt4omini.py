"""GPT-4o-mini: a chat model that is prompted and gives no embedding."""

from __future__ import annotations

from typing import ClassVar

from scdrugmap.models.base import Model
from scdrugmap.models.card import ModelCard


class GPT4oMini(Model):
    """Card of the prompted model; ``sd.tl.predict_response(..., strategy="prompt")`` uses it."""

    card: ClassVar[ModelCard] = ModelCard(
        name="GPT-4o-mini",
        kind="prompt",
        architecture="chat model behind an OpenAI-compatible endpoint",
        year=2024,
        citation="OpenAI 2024, GPT-4o mini",
        aliases=("gpt-4o-mini-2024-07-18",),
        gene_id="symbol",
        weights_licence="not distributed; the endpoint's terms of use hold",
        commercial=None,
        gated=True,
    )
