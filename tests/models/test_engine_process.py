"""What the engine's process makes of checkpoints: it does without transformers, unless
its models are wanted."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from protocol.generation import GenerationConfig
from server.checkpoints.hf_config import read_hf_config
from server.checkpoints.plain_config import PlainConfig
from server.models.config import ModelConfig
from tests.continuous_batching.reference import Reference
from tests.continuous_batching.server_calls import post
from tests.continuous_batching.server_process import ServerProcess
from tests.models.small_models import EVEN, MODELS, config, save
from tests.scripts import run_script

FOREIGN = "arcee"
"""A family without a file of ours."""

_READ = """
import pickle, sys, torch
from pathlib import Path
from server.models.config import ModelConfig

for path in map(Path, sys.argv[1:]):
    config = ModelConfig.load(path, hf=pickle.loads((path / "pickled").read_bytes()))
    print(config.spec, config.eos_token_ids, config.max_length, config.architecture.limit)
print("transformers" in sys.modules)
"""


def test_families_are_read_alike_without_transformers(tmp_path: Path) -> None:
    paths = []
    for name, (kind, fields) in MODELS.items():
        path = tmp_path / name
        config(kind, fields).save_pretrained(path)
        (path / "pickled").write_bytes(pickle.dumps(PlainConfig(read_hf_config(path))))
        paths.append(path)
    *told, imported = run_script(_READ, *map(str, paths), timeout=120).splitlines()
    configs = [ModelConfig.load(path) for path in paths]
    assert told == [
        f"{each.spec} {each.eos_token_ids} {each.max_length} {each.architecture.limit}" for each in configs
    ]
    assert imported == "False"


def test_the_text_model_of_one_that_sees_images_is_read_alike(tmp_path: Path) -> None:
    config("gemma3", {"text_config": {"model_type": "gemma3_text"}}).save_pretrained(tmp_path)
    hf = pickle.loads(pickle.dumps(PlainConfig(read_hf_config(tmp_path))))
    own, plain = ModelConfig.load(tmp_path), ModelConfig.load(tmp_path, hf=hf)
    assert (own.spec, own.model_type) == (plain.spec, plain.model_type) and own.model_type == "gemma3_text"


def test_what_is_no_data_is_left_out(tiny_model: Path) -> None:
    hf = read_hf_config(tiny_model)
    hf.own_class = dict
    plain = PlainConfig(hf)
    assert plain.hidden_size == hf.hidden_size
    assert not hasattr(plain, "own_class") and not hasattr(plain, "to_dict")


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
