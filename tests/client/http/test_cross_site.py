"""Pages of other sites, which a browser lets send requests to a gateway."""

from __future__ import annotations

import pytest

from protocol import routes
from tests.client.conftest import MakeGateway
from tests.client.posts import BODY, JSON, post
from tests.client.stub import Stub, stubs


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "application/x-www-form-urlencoded"},  # curl -d
        {"content-type": "application/json; charset=utf-8", "user-agent": "curl/8"},
        JSON | {"origin": "ORIGIN"},
        JSON | {"origin": "ORIGIN", "sec-fetch-site": "same-origin"},
        JSON | {"sec-fetch-site": "none"},
    ],
)
async def test_programs_and_the_own_page_get_in(make_gateway: MakeGateway, headers: dict[str, str]) -> None:
    async with stubs(server := Stub()), make_gateway([server]) as client:
        headers = {name: value.replace("ORIGIN", client.url) for name, value in headers.items()}
        assert (await post(client, headers))[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (JSON | {"origin": "http://evil.example"}, 403),
        (JSON | {"origin": "null"}, 403),
        (JSON | {"origin": "http://127.0.0.1"}, 403),
        (JSON | {"origin": "https://127.0.0.1.evil.example"}, 403),
        ({"origin": "http://evil.example", "content-type": "text/plain"}, 403),
        ({"origin": "http://evil.example", "content-type": "application/x-www-form-urlencoded"}, 403),
        (JSON | {"origin": "ORIGIN", "sec-fetch-site": "same-site"}, 403),
        (JSON | {"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}, 403),
        ({"origin": "ORIGIN", "content-type": "application/x-www-form-urlencoded"}, 415),
        ({"sec-fetch-site": "same-origin"}, 415),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({"content-type": "text/plain; x=application/json"}, 415),
        (JSON | {"host": "evil.example"}, 403),
        (JSON | {"host": "evil.example:8000", "origin": "http://evil.example:8000"}, 403),
        (JSON | {"host": "127.0.0.1.evil.example"}, 403),
        (JSON | {"host": "localhost.evil.example"}, 403),
        (JSON | {"host": "a@b:1:2"}, 400),
    ],
)
async def test_pages_of_other_sites_do_not(
    make_gateway: MakeGateway, headers: dict[str, str], status: int
) -> None:
    async with stubs(server := Stub()), make_gateway([server]) as client:
        headers = {name: value.replace("ORIGIN", client.url) for name, value in headers.items()}
        assert (await post(client, headers))[0] == status
        assert not server.calls


@pytest.mark.parametrize(
    ("method", "route"),
    [
        *(
            ("GET", "/status"),
            ("GET", "/metrics"),
            ("GET", "/"),
            ("GET", "/openapi.json"),
            ("GET", "/health"),
        ),
        *(("POST", routes.EVENT_SERVER_STARTUP), ("DELETE", "/requests/x"), ("OPTIONS", "/completion/v2")),
        *(("GET", "/nowhere"), ("POST", "/chat_completion/v1"), ("POST", "/completion/v2\n")),
    ],
)
async def test_every_route_is_kept_from_them(make_gateway: MakeGateway, method: str, route: str) -> None:
    async with make_gateway() as client:
        for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}):
            async with client.session.request(method, route, headers=headers) as response:
                error = (await response.json())["error"]
                assert response.status == 403
                assert error["code"] in ("host_not_allowed", "origin_not_allowed")
                assert "'allowed_" in error["message"]  # names the key to set
                assert "access-control-allow-origin" not in response.headers


async def test_a_link_leads_to_the_page_but_no_frame_shows_it(make_gateway: MakeGateway) -> None:
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    async with make_gateway() as client:
        async with client.session.get("/", headers=link) as response:
            assert response.status == 200
            assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
        async with client.session.get("/", headers=link | {"sec-fetch-dest": "iframe"}) as response:
            assert response.status == 403


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost:1", "LOCALHOST.", "[::1]:8000", "me.localhost", "10.0.0.7", "0.0.0.0:8000"],
)
async def test_names_of_this_machine(make_gateway: MakeGateway, host: str) -> None:
    async with make_gateway() as client, client.session.get("/status", headers={"host": host}) as response:
        assert response.status == 200


async def test_a_reverse_proxy_and_a_page_elsewhere_can_be_configured(make_gateway: MakeGateway) -> None:
    config = {
        "allowed_hosts": ["API.example.com", "*.lan"],
        "allowed_origins": ["https://app.example.com"],
        "api_keys": ["one"],
    }
    key = {"authorization": "Bearer one"}
    async with stubs(server := Stub()), make_gateway([server], **config) as client:
        for host in ("api.example.com", "gateway.lan:8000"):
            assert (await post(client, JSON | key | {"host": host}))[0] == 200
        for host in ("example.com", "lan", "x.api.example.com"):
            assert (await post(client, JSON | key | {"host": host}))[0] == 403
        page = {"origin": "https://app.example.com", "sec-fetch-site": "cross-site"}
        async with client.session.post("/completion/v2", data=BODY, headers=JSON | key | page) as response:
            assert response.status == 200
            assert response.headers["access-control-allow-origin"] == "https://app.example.com"
        preflight = {
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization",
        }
        async with client.session.options("/completion/v2", headers=page | preflight) as response:
            assert response.status == 200
            assert "authorization" in response.headers["access-control-allow-headers"]
        # being allowed to ask is no key
        assert (await post(client, JSON | page))[0] == 401
        assert (await post(client, JSON | key | {"origin": "https://evil.example"}))[0] == 403
