"""Addresses of services that listen on every interface."""

from __future__ import annotations

import pytest

from utils.addresses import reachable, reachable_from


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1"), ("::1", "[::1]")],
)
def test_this_machine_reaches_a_service(host: str, expected: str) -> None:
    assert reachable(host) == expected


def test_a_host_that_was_named_is_announced_as_it_is() -> None:
    assert reachable_from("http://gateway:8000", "10.0.0.7") == "10.0.0.7"
    assert reachable_from("http://gateway:8000", "fd00::7") == "[fd00::7]"


def test_a_gateway_on_this_machine_is_told_a_local_address() -> None:
    assert reachable_from("http://127.0.0.1:8000", "0.0.0.0") == "127.0.0.1"


def test_a_gateway_that_is_not_found_does_no_harm() -> None:
    assert reachable_from("http://no-such-host.invalid:8000", "0.0.0.0") == "127.0.0.1"
