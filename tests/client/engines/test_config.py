"""How servers of other engines stand in ``client_config.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from client.config import GatewayConfig
from client.health.replicas import Registry
from utils.config import ConfigError, load_config

URL = "http://a:8000"


def load(path: Path, *servers: Any, **config: Any) -> GatewayConfig:
    file = path / "client_config.json"
    file.write_text(json.dumps({"openai_compatible_server_urls": servers} | config))
    return load_config(file, GatewayConfig)


@pytest.mark.parametrize(
    ("server", "problem"),
    [
        (5, "[0]: found 5, accepted: a URL, or an object with 'url' and 'api_key'"),
        ({"api_key": "k"}, "[0].url' is missing"),
        ({"url": URL, "key": "k"}, "unknown key 'openai_compatible_server_urls[0].key'"),
        (f"{URL}/v1", "without /v1"),
        ("a:8000", "is not a URL such as"),
        ({"url": "http://u:p@a:1", "api_key": "k"}, "it cannot be sent beside the api_key"),
        ({"url": URL, "api_key": "env:NOT_SET_ANYWHERE"}, "'NOT_SET_ANYWHERE' is not set"),
        ({"url": URL, "api_key": "two words"}, "only visible ASCII characters"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, server: Any, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, server)
    assert problem in str(error.value) and "\n" not in str(error.value)
    assert "two words" not in str(error.value)


def test_a_server_stands_in_one_list(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"server listed twice: {URL}"):
        load(tmp_path, URL, continuous_batching_server_urls=[URL])


def test_keys_are_each_servers_own_and_change_with_the_file(tmp_path: Path) -> None:
    registry = Registry(lambda: 0.0)
    user = "http://u:p@b:8000"
    registry.configure(load(tmp_path, {"url": URL, "api_key": "alpha-key"}, user, "http://c:1").servers())
    by_url = {replica.url: replica for replica in registry}
    assert list(by_url) == [URL, "http://b:8000", "http://c:1"]
    config = load(tmp_path, URL, server_key="ours")
    keys = [replica.credentials(config.server_key) for replica in registry]
    assert keys == ["Bearer alpha-key", "Basic dTpw", None], "the key of our servers goes to no other"
    registry.configure(load(tmp_path, {"url": URL, "api_key": "omega-key"}).servers())
    assert by_url[URL].credentials(None) == "Bearer omega-key" and list(registry) == [by_url[URL]]
    assert "omega-key" not in repr(by_url[URL]) + repr(config)
