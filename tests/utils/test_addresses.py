"""URLs of services: which are taken, and which are given out."""

from __future__ import annotations

import base64
import copy

import pytest

from utils.addresses import check_endpoint, check_service_url, reachable, reachable_from
from utils.options import CbServerAppOptions


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
    with pytest.raises(ValueError, match=r"'https://host/v1' is not a URL .*: it holds '\?'"):
        check_endpoint("https://user:secret@host/v1?x=1")


@pytest.mark.parametrize(
    "url",
    [
        *("http://user:secret@host:1?x", "http://:secret@host:1#", "http://secret@host:x", "secret@host:1"),
        *("http://user:sec/secret@host:1", "http://user:secret#1@host:1", "http://a:secret@b@host:99999"),
        *("http:/user:secret@host", "ftp://user:secret@host", "http://user:secret @host:1", "http://h/a@b"),
        *("http://host:1/?token=secret", "http://user:secret@host:1/status", "http://user:secret@[::1"),
    ],
)
def test_no_refusal_shows_a_secret(url: str) -> None:
    with pytest.raises(ValueError, match="URL") as caught:
        check_service_url(url)
    assert "secret" not in str(caught.value) and "user" not in str(caught.value)


def test_a_url_is_shown_without_its_user_name() -> None:
    address = check_service_url("http://user:p%40ss@host:8001/cb/")
    assert (
        f"{address} {address!r} {[address]}"
        == "http://host:8001/cb 'http://host:8001/cb' ['http://host:8001/cb']"
    )
    assert address == "http://host:8001/cb" and {address} == {"http://host:8001/cb"}
    assert address.authorization == "Basic " + base64.b64encode(b"user:p@ss").decode()
    assert copy.deepcopy(address).authorization == address.authorization
    assert check_service_url("http://host:8001").authorization is None


def test_command_lines_hold_no_secrets() -> None:
    for option in ("client_url", "server_url"):
        with pytest.raises(ValueError, match="must hold no user name or password") as caught:
            CbServerAppOptions.model_validate({option: "http://user:secret@host:1"})
        assert "secret" not in str(caught.value)
