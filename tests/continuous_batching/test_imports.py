"""What the processes of a server import."""

from __future__ import annotations

import json
from pathlib import Path

import aiohttp
import pytest

from tests.continuous_batching.server_process import ServerProcess
from tests.scripts import run_script

_LOAD = """
import sys
from server.continuous_batching.config import ModelLoadingConfig
from server.continuous_batching.tokenizer import load_tokenizer

tokenizer = load_tokenizer(ModelLoadingConfig.model_validate_json(sys.argv[1]))
"""


def test_the_http_side_knows_no_torch(tiny_model: Path) -> None:
    """Its engine is another process; importing torch here too would delay the start by seconds."""
    code = f"import server.continuous_batching.app\n{_LOAD}\nprint('torch' in sys.modules)"
    assert run_script(code, loading(tiny_model), timeout=120).strip() == "False"


def test_each_process_imports_what_it_needs_alone() -> None:
    """The HTTP side of a server without a gateway calls nobody, and an engine is no HTTP server: each of
    these imports would delay the start by a third of a second."""
    code = "import sys, server.continuous_batching.app\nprint('aiohttp' in sys.modules)"
    assert run_script(code, timeout=120).strip() == "False"
    code = (
        "import sys, server.continuous_batching.engine_process\nprint({'fastapi', 'torch'} & {*sys.modules})"
    )
    assert run_script(code, timeout=120).strip() == "set()"


async def test_a_serving_engine_has_no_transformers(tiny_model: Path, tmp_path: Path) -> None:
    """The HTTP process reads for it what takes transformers: one after the other with torch, its import would
    delay the start by a second and more. Tokenizers have a library of their own, which memory maps show."""
    sections = {"cache_config": {"num_blocks": 60, "num_blocks_cpu": 0}}
    server = ServerProcess(tmp_path, tiny_model, **sections)
    try:
        async with aiohttp.ClientSession() as session:
            await server.ready(session)
            async with session.get(f"{server.url}/status") as answer:
                processes = (await answer.json())["details"]
        assert libraries(processes["engine_pid"]) == {"libtorch"}
        assert libraries(processes["pid"]) == {"tokenizers"}
    finally:
        server.process.terminate()
        server.process.wait()


@pytest.mark.parametrize("start", ["create_app", "main"])
def test_the_engine_is_started_before_this_process_imports_what_it_needs(start: str) -> None:
    code = f"""
import sys
import continuous_batching_server_app as app

def spawn():
    print({{"pydantic", "fastapi", "transformers"}} & {{*sys.modules}})
    raise SystemExit

app.SpawnedEngine = spawn
app.{start}()
"""
    assert run_script(code, timeout=120).strip() == "set()"


def test_transformers_finds_no_torch_beside_a_draft_model(tiny_model: Path) -> None:
    """Where an engine imports it, for what drafts, it need not: families of ours are computed without its
    models, which take seconds to import."""
    code = f"""import torch
{_LOAD}
from pathlib import Path
from server.models.config import ModelConfig

print(len(ModelConfig.load(Path(tokenizer.hf.name_or_path)).spec.layers), torch.zeros(2).sum().item())
print("torch._dynamo" in sys.modules)
"""
    assert run_script(code, loading(tiny_model), timeout=120).split() == ["2", "0.0", "False"]


def test_code_that_comes_with_a_model_finds_all_of_transformers(tiny_model: Path) -> None:
    code = f"{_LOAD}\nimport transformers.utils\nprint(transformers.utils.is_torch_available())"
    trusting = loading(tiny_model, trust_remote_code=True)
    assert run_script(code, trusting, timeout=120).strip() == "True"


def libraries(pid: int) -> set[str]:
    """Which of both a process has loaded."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return {name for name in ("libtorch", "tokenizers") if name in maps}


def loading(path: Path, **options: bool) -> str:
    """Of a configuration, that section, as JSON."""
    return json.dumps({"model_name_or_path": str(path), **options})
