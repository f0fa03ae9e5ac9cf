"""Arrivals and lengths as they are written on command lines: ``name:number:number…``."""

from __future__ import annotations


def split(text: str, error: type[ValueError]) -> tuple[str, list[float]]:
    """Name and numbers of `text`.

    Raises:
        ValueError: of the type `error`, where it is not written so, or a number is not above 0.
    """
    name, *rest = text.split(":")
    try:
        numbers = [float(number) for number in rest]
    except ValueError:
        raise error(f"{text!r}: what follows the name must be numbers") from None
    if any(number <= 0 for number in numbers):
        raise error(f"{text!r}: numbers must be above 0")
    return name, numbers
