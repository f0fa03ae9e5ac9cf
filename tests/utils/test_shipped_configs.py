"""The configurations in `configs/`, and the templates that users of the first version have."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.config import GatewayConfig
from server.continuous_batching.config import ServerConfig as CbServerConfig
from server.static_batching.config import ServerConfig as SbServerConfig
from utils.config import ConfigModel, load_config
from utils.options import CONFIGS

TEMPLATES = Path(__file__).parent / "templates"
MODELS: dict[str, type[ConfigModel]] = {
    "client_config.json": GatewayConfig,
    "cb_server_config.json": CbServerConfig,
    "sb_server_config.json": SbServerConfig,
}
EXAMPLES = sorted(path for path in CONFIGS.glob("examples/*/*.json") if path.name in MODELS)


def with_model(path: Path, directory: Path) -> Path:
    """A copy of the file at `path` in which the model's directory exists."""
    (directory / "model").mkdir()
    (directory / "model" / "config.json").write_text("{}")
    copy = directory / path.name
    copy.write_text(
        path.read_text(encoding="utf-8").replace("PATH_TO_MODEL_DIR", "./model"), encoding="utf-8"
    )
    return copy


@pytest.mark.parametrize("name", MODELS)
def test_the_shipped_configurations_load(name: str) -> None:
    load_config(CONFIGS / name, MODELS[name])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_examples_load(path: Path, tmp_path: Path) -> None:
    load_config(with_model(path, tmp_path), MODELS[path.name])


def test_there_are_examples_for_each_server() -> None:
    assert {path.name for path in EXAMPLES} == {"cb_server_config.json", "sb_server_config.json"}


def test_the_continuous_batching_template_means_what_it_says(tmp_path: Path) -> None:
    config = load_config(with_model(TEMPLATES / "cb_server_config.json", tmp_path), CbServerConfig)
    loading = config.model_loading_config
    assert loading.model_name_or_path == str(tmp_path / "model")
    assert (loading.model_type, loading.torch_dtype, loading.quantize_method) == ("llama", "float16", None)
    assert (loading.use_fast_tokenizer, loading.model_max_length) == (False, 2048)
    assert (config.batcher_config.batch_max_tokens, config.batcher_config.batch_max_beams) == (56000, 32)
    cache = config.cache_config
    assert (cache.num_blocks, cache.num_blocks_cpu, cache.block_size, cache.watermark) == (
        2500,
        1024,
        16,
        0.01,
    )


def test_the_static_batching_template_means_what_it_says(tmp_path: Path) -> None:
    config = load_config(with_model(TEMPLATES / "sb_server_config.json", tmp_path), SbServerConfig)
    batcher, worker = config.batcher_config, config.worker_config
    assert (batcher.package_max_workload, batcher.packaging_interval_seconds) == (16, 2.0)
    assert worker.model_name_or_path == str(tmp_path / "model")
    assert (worker.revision, worker.low_cpu_mem_usage, worker.torch_dtype) == ("main", True, "float16")
    assert (worker.use_safetensors, worker.batch_size, worker.is_gptq_quantized) == (False, -1, False)
