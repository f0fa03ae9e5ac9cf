"""Continuous batching: an own engine with paged KV cache, swapping and every decoding strategy.

``LLM`` generates from Python; `service.ContinuousBatchingService` serves over HTTP.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from server.continuous_batching.llm import LLM

__all__ = ["LLM"]


def __getattr__(name: str) -> Any:
    """Import the engine, and torch with it, only when it is used."""
    if name == "LLM":
        from server.continuous_batching.llm import LLM

        return LLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
