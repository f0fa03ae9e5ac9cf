"""A configuration of transformers as plain data, for a process that does without transformers."""

from __future__ import annotations

from contextlib import suppress
from itertools import takewhile
from typing import Any

_PLAIN = (type(None), bool, int, float, str, bytes)


class PlainConfig:
    """The attributes of a transformers configuration, defaults and aliases included.

    Unpickling it does not import transformers.

    Args:
        source: a ``PreTrainedConfig``.
    """

    def __init__(self, source: Any) -> None:
        from transformers import PreTrainedConfig

        self._text: PlainConfig = self
        # of the base class, whose properties of old names warn, only what the family sets
        families = takewhile(lambda kind: kind is not PreTrainedConfig, type(source).__mro__)
        of_the_family = {name for kind in families for name in vars(kind)}
        for name in sorted({*vars(source), *of_the_family, *source.attribute_map}):
            if name.startswith("_"):
                continue
            with suppress(Exception):  # what cannot be read there, methods and classes
                vars(self)[name] = _plain(getattr(source, name))
        text = source.get_text_config()
        if text is not source:
            self._text = PlainConfig(text)

    def get_text_config(self) -> PlainConfig:
        """That of the language model, in a model that sees images, too."""
        return self._text


def _plain(value: Any) -> Any:
    """`value`, if it is data.

    Raises:
        TypeError: it is not.
    """
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return type(value)(_plain(each) for each in value)
    if hasattr(value, "get_text_config"):
        return PlainConfig(value)
    raise TypeError(f"{type(value).__name__} is no data")
