"""Configuration values that are names of something registered."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError


def one_of(names: Collection[str]) -> AfterValidator:
    """For fields whose values are the keys of a registry, as it is when a value is checked."""

    def check(name: str) -> str:
        if name not in names:
            accepted = ", ".join(names)
            raise PydanticCustomError("one_of", "Input should be one of {accepted}", {"accepted": accepted})
        return name

    return AfterValidator(check)
