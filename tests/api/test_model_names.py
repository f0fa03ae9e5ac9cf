"""Under which name a model is served."""

from __future__ import annotations

import pytest

from server.api.config import ApiConfig
from server.api.serve import served_model_id
from server.continuous_batching.config import ServerConfig as CbServerConfig
from server.static_batching.config import ServerConfig as SbServerConfig
from utils.config import load_config
from utils.options import CONFIGS, CbServerAppOptions

SNAPSHOT = (
    "/root/.cache/huggingface/hub/models--Qwen--Qwen3-0.6B/snapshots/c1899de289a04d12100db370d81485cdf75e47ca"
)


@pytest.mark.parametrize(
    ("given", "configured", "path", "name"),
    [
        ("a", "b", "/models/c", "a"),
        (None, "b", "/models/c", "b"),
        (None, None, "/models/c", "c"),
        (None, None, "Qwen/Qwen3-0.6B", "Qwen3-0.6B"),
        (None, None, SNAPSHOT, "Qwen3-0.6B"),
        (None, None, "/models/snapshots/c", "c"),
        (None, None, "snapshots/c", "c"),
    ],
)
def test_the_nearest_name_counts(given: str | None, configured: str | None, path: str, name: str) -> None:
    options, config = CbServerAppOptions(model_id=given), ApiConfig(model_id=configured)
    assert served_model_id(options, config, path) == name


def test_the_demo_is_called_demo() -> None:
    """However it is started."""
    assert load_config(CONFIGS / "cb_server_config.json", CbServerConfig).model_id == "demo"
    assert load_config(CONFIGS / "sb_server_config.json", SbServerConfig).model_id == "demo"
