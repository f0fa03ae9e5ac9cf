"""What the engine's process makes of checkpoints: transformers finds no torch in it, unless its models are
wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import pytest

from protocol.generation import GenerationConfig
from server.models.config import ModelConfig
from tests.continuous_batching.reference import Reference
from tests.continuous_batching.server_calls import post
from tests.continuous_batching.server_process import ServerProcess
from tests.models.small_models import EVEN, MODELS, config, save
from tests.scripts import run_script

FOREIGN = "arcee"
"""A family without a file of ours."""

_READ = """
import sys, torch
from pathlib import Path
from server.text.light_transformers import import_transformers_without_torch

import_transformers_without_torch()
from server.models.config import ModelConfig

for path in sys.argv[1:]:
    print(ModelConfig.load(Path(path)).spec)
"""


def test_families_are_read_alike_without_torch(tmp_path: Path) -> None:
    paths = []
    for name, (kind, fields) in MODELS.items():
        config(kind, fields).save_pretrained(tmp_path / name)
        paths.append(tmp_path / name)
    told = run_script(_READ, *map(str, paths), timeout=120).splitlines()
    assert told == [str(ModelConfig.load(path).spec) for path in paths]


@pytest.mark.parametrize(
    ("kind", "draft"), [(FOREIGN, None), pytest.param("mistral", FOREIGN, marks=pytest.mark.slow)]
)
async def test_models_of_transformers_are_served(kind: str, draft: str | None, tmp_path: Path) -> None:
    path = save(tmp_path / "model", kind, EVEN)
    sections: dict[str, Any] = {"cache_config": {"num_blocks": 60, "num_blocks_cpu": 0}}
    if draft is not None:
        sections["speculation_config"] = {"draft_model": str(save(tmp_path / "draft", draft, EVEN))}
    server = ServerProcess(tmp_path, path, **sections)
    try:
        async with aiohttp.ClientSession() as session:
            await server.ready(session)
            options = GenerationConfig(max_new_tokens=20, eos_token_id=508)
            status, body = await post(session, server, [5, 6, 7, 8], max_new_tokens=20, eos_token_id=508)
        assert status == 200
        answers = [choice["token_ids"] for choice in body["choices"]]
        assert answers == Reference(path).answers([5, 6, 7, 8], options)
    finally:
        server.process.terminate()
        server.process.wait()
