"""The list of models, ``/v1/models``."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from protocol.errors import model_not_found


class ModelCard(BaseModel):
    """One entry of ``/v1/models``."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "local"
    max_model_len: int | None = None


class ModelList(BaseModel):
    """Answer of ``/v1/models``."""

    object: Literal["list"] = "list"
    data: list[ModelCard]

    def card(self, model: str) -> ModelCard:
        """The entry of `model`; ApiError (404) if there is none."""
        cards = {card.id: card for card in self.data}
        if model not in cards:
            raise model_not_found(model, list(cards))
        return cards[model]
