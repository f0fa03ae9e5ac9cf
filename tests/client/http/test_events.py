"""Events that are malformed, or not called what they are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from protocol import routes
from tests.client.conftest import MakeGateway


@pytest.mark.parametrize(
    ("event", "param"),
    [
        ({}, "url"),
        ({"url": "nonsense", "service": "continuous_batching", "model_id": "m"}, "url"),
        ({"url": 1, "service": "continuous_batching", "model_id": "m"}, "url"),
        ({"url": "http://a", "service": "x", "model_id": "m"}, "service"),
        ({"url": "http://a", "service": "continuous_batching", "model_id": "m", "x": 1}, "x"),
        ([], "body"),
        (None, "body"),
    ],
)
async def test_malformed_events(make_gateway: MakeGateway, event: Any, param: str | None) -> None:
    async with (
        make_gateway() as client,
        client.session.post(routes.EVENT_SERVER_STARTUP, json=event) as response,
    ):
        assert response.status == 422
        error = (await response.json())["error"]
        assert error["param"] == param and "body." not in error["message"]


async def test_an_event_that_is_no_json(make_gateway: MakeGateway) -> None:
    headers = {"content-type": "application/json"}
    async with (
        make_gateway() as client,
        client.session.post(routes.EVENT_SERVER_STARTUP, data=b"{oops", headers=headers) as response,
    ):
        assert (response.status, (await response.json())["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded", "application/octet-stream"])
async def test_an_event_whose_type_is_unsaid(make_gateway: MakeGateway, kind: str | None) -> None:
    """As ``curl -d`` sends it: what it holds is told, not what it is called."""
    headers, skipped = {"content-type": kind} if kind else {}, () if kind else ("content-type",)
    event = {"url": "http://a", "service": "continuous_batching", "model_id": "m"}
    async with make_gateway() as client:
        for body, status in ((event, 200), (event | {"service": "x"}, 422)):
            async with client.session.post(
                routes.EVENT_SERVER_STARTUP,
                data=json.dumps(body).encode(),
                headers=headers,
                skip_auto_headers=skipped,
            ) as response:
                assert response.status == status
                if status == 422:
                    assert (await response.json())["error"]["param"] == "service"
