"""A server reuses cached prompts of requests with the same salt only."""

from __future__ import annotations

from tests.e2e.stack import MODEL, Stack, call


def test_prefixes_are_shared_within_a_salt(stack: Stack) -> None:
    prompt = "A prompt that nobody else sends, and long enough to fill some blocks of the cache. " * 4

    def hits() -> int:
        return int(call(stack.cb_server, "/status").json["details"]["engine"]["prefix_hits"])

    grown = []
    for salt in (None, None, "a", "a", "b"):
        before = hits()
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 2, "cache_salt": salt}
        assert call(stack.cb_server, "/v1/completions", body).status == 200
        grown.append(hits() > before)
    assert grown == [False, True, False, True, False]
