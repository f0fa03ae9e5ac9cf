"""Command lines on which no option is ignored: which were given is known, and none is given twice."""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

_UNSET = object()


@dataclass(frozen=True)
class Flags:
    """A parsed command line."""

    args: argparse.Namespace
    given: set[str]
    """Names of the options that stood on it, without dashes."""

    def refuse(self, names: Collection[str], why: str) -> None:
        """Raise a ValueError for the first of `names`, if there is any."""
        if names:
            raise ValueError(f"--{min(names)} {why}")


class Once(argparse.Action):
    """Stores a value, and refuses a second one; for parsers that `parse` runs."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if getattr(namespace, self.dest) is not _UNSET:
            raise argparse.ArgumentError(self, "given twice")
        setattr(namespace, self.dest, values)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> Flags:
    """Parse `argv`, or the process's own; exits with status 2 where an option is not accepted."""
    defaults = vars(parser.parse_args([]))
    # argparse sets a default only where the namespace has nothing yet
    unset = argparse.Namespace(**dict.fromkeys(defaults, _UNSET))
    found = vars(parser.parse_args(argv, unset))
    given = {name for name, value in found.items() if value is not _UNSET}
    return Flags(argparse.Namespace(**(defaults | {name: found[name] for name in given})), given)


def port(text: str) -> int:
    """A port number on the command line."""
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (1 to 65535)")
    return int(text)


def positive(text: str) -> float:
    """A finite number above 0 on the command line."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value
