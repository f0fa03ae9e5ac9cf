"""What has run as far as it can without waiting: nearly always to its end, so that nothing need be timed."""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class Begun(Generic[Result]):
    """An awaitable that runs to its first wait at once, within the task that makes this.

    Args:
        awaitable: whose first part runs now; whatever that raises is raised here.

    Attributes:
        ended: whether it has its result already; if not, await this object, once.
    """

    __slots__ = ("_rest", "_waits_for", "ended", "result")

    result: Result

    def __init__(self, awaitable: Awaitable[Result]) -> None:
        self._rest: Generator[Any, Any, Result] = awaitable.__await__()
        self.ended = False
        try:
            self._waits_for = next(self._rest)
        except StopIteration as end:
            self.ended, self.result = True, end.value

    def __await__(self) -> Generator[Any, Any, Result]:
        waits_for = self._waits_for
        while True:
            try:
                yield waits_for
            except BaseException as error:  # a cancellation; what waits may catch it, and wait again
                try:
                    waits_for = self._rest.throw(error)
                except StopIteration as end:
                    return end.value  # type: ignore[no-any-return]
            else:
                return (yield from self._rest)
