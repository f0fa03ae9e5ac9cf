"""Which requests a server takes, in a form that is quick to check for each request."""

from __future__ import annotations

from client.health.report import ReplicaKind
from protocol.accepts import Accepts, OptionOf, applies
from protocol.routes import COMPLETION_V1, COMPLETION_V2, OPENAI_CHAT_COMPLETIONS, OPENAI_COMPLETIONS

MAX_TERMS = 1024
"""How many different terms are kept."""


class Terms:
    """The terms in `accepts`.

    Attributes:
        routes: where the server takes completions.
    """

    __slots__ = ("_rules", "routes")

    def __init__(self, accepts: Accepts) -> None:
        self.routes = frozenset(accepts.routes)
        rules = [refusal.rule() for refusal in accepts.refusals]
        self._rules = [(*rule[0], rule[1:]) for rule in rules if rule]

    def take(self, route: str, option_of: OptionOf) -> bool:
        """Whether the server takes a request to `route` with these options."""
        if route not in self.routes:
            return False
        for option, test, others in self._rules:
            value = option_of(option)
            # nearly always it ends here: few options are set
            if value is not None and test(value) and applies(others, option_of):
                return False
        return True


_OPENAI = (OPENAI_COMPLETIONS, OPENAI_CHAT_COMPLETIONS)

UNTOLD_TERMS: dict[ReplicaKind, Terms] = {
    "continuous_batching": Terms(Accepts(routes=(COMPLETION_V2, *_OPENAI))),
    "static_batching": Terms(Accepts(routes=(COMPLETION_V1, *_OPENAI))),
    "openai_compatible": Terms(Accepts(routes=_OPENAI)),
}
"""For servers whose ``/status`` has none, and for all before their first probe: the routes by which their
kind is known. What they refuse they say themselves, when they are asked."""


class KnownTerms:
    """The terms of servers; equal ones share one object."""

    def __init__(self) -> None:
        self._by_text: dict[str, Terms] = {}

    def of(self, kind: ReplicaKind, accepts: Accepts | None) -> Terms:
        """The terms in a server's ``/status``, or those of a server that tells none."""
        if accepts is None:
            return UNTOLD_TERMS[kind]
        text = accepts.model_dump_json()
        if text not in self._by_text:
            if len(self._by_text) >= MAX_TERMS:  # a server may change them with each answer
                self._by_text.clear()
            self._by_text[text] = Terms(accepts)
        return self._by_text[text]
