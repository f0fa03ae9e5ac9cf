"""Which requests a server takes: part of its ``/status``, so that no gateway restates a rule of a server's.

Conditions name options as `protocol.generation.GenerationConfig` does, whatever a route calls them, and
beside them ``stream``, ``resume`` (the request continues a stream) and ``prompt_tokens`` (of the longest
prompt). A reader that does not know an option, or a kind of condition, takes the condition for unfulfilled:
the server itself has the last word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Scalar = bool | int | float | str
OptionOf = Callable[[str], Any]
"""The value of an option in a request, None where it is not set or not known."""

Test = Callable[[Any], bool]
Rule = tuple[tuple[str, Test], ...]
"""An option and what is asked of its value, once for each condition."""

Name = Annotated[str, Field(max_length=256)]


class Condition(BaseModel):
    """What is asked of one option; one of these is set."""

    model_config = ConfigDict(frozen=True)

    given: Literal[True] | None = None
    """It has any value but null."""
    above: float | None = None
    """It is a number above this one."""
    among: tuple[Scalar, ...] | None = None
    """It is one of these values."""

    def test(self) -> Test:
        """Whether a value fulfils the condition, as a function: it is asked for each request."""
        limit, values = self.above, self.among
        if limit is not None:
            return lambda value: type(value) in (int, float) and value > limit
        if values is not None:
            return lambda value: any(type(value) is type(one) and value == one for one in values)  # true ≠ 1
        return lambda value: self.given is True


class Refusal(BaseModel):
    """Requests that a server does not take: those whose options fulfil all the conditions."""

    model_config = ConfigDict(frozen=True)

    option: Name
    """The option that is at fault, as errors name it."""
    reason: Annotated[str, Field(max_length=1024)]
    when: dict[Name, Condition]

    def rule(self) -> Rule:
        """The conditions as `applies` takes them."""
        return tuple((name, condition.test()) for name, condition in self.when.items())


def applies(rule: Rule, option_of: OptionOf) -> bool:
    """Whether a request with these options fulfils all conditions of `rule`."""
    for name, test in rule:
        value = option_of(name)
        if value is None or not test(value):  # nearly always: few options are set
            return False
    return True


class Accepts(BaseModel):
    """Which requests a server takes."""

    routes: tuple[Name, ...]
    """Where it takes completions and the like."""
    refusals: tuple[Refusal, ...] = ()


GIVEN = Condition(given=True)
TRUE = Condition(among=(True,))


def above(limit: float) -> Condition:
    """The condition that an option is a number above `limit`."""
    return Condition(above=limit)
