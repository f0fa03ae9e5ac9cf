"""URLs of services: which are taken, and which are given out."""

from __future__ import annotations

import pytest

from utils.addresses import check_endpoint, check_service_url, reachable, reachable_from


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


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8001", "http://127.0.0.1:8001"),
        ("http://127.0.0.1:8001/", "http://127.0.0.1:8001"),
        ("https://GPU-1.example.org//", "https://gpu-1.example.org"),
        ("http://gpu_1:80/cb/", "http://gpu_1/cb"),
        ("http://status:80", "http://status"),
        ("http://[fd00::7]:8001", "http://[fd00::7]:8001"),
    ],
)
def test_the_url_of_a_service(url: str, expected: str) -> None:
    assert check_service_url(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        *("", "nope", "localhost:8001", "ftp://a:80", "http://", "http:a", "http://a:99999", "http://a:x"),
        *("http://a:0", "http://a b:80", "http://a,b:80", "http://a:80/\n", " http://a:80"),
        *("http://a:80?x=1", "http://a:80/?", "http://a:80#x", "http://\ud800"),
        *("http://a:80/completion/v2", "http://a:80/completion/v2/", "http://a:80/v1/chat/completions"),
        *("http://a:80/status", "http://a:80/v1", "http://a:80/v1/"),
    ],
)
def test_what_is_not_the_url_of_a_service(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        check_service_url(url)


def test_an_endpoint_may_end_in_v1() -> None:
    assert check_endpoint("https://api.openai.com/v1/") == "https://api.openai.com/v1"
    with pytest.raises(ValueError, match="is the URL of a route: give what comes before it"):
        check_endpoint("https://api.openai.com/v1/chat/completions")


def test_a_refusal_shows_no_password() -> None:
    with pytest.raises(ValueError, match=r"'https://host/v1\?x=1' is not a URL") as caught:
        check_endpoint("https://user:secret@host/v1?x=1")
    assert "secret" not in str(caught.value)
