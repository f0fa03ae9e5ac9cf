"""Configuration of a static-batching server (`sb_server_config.json`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from utils.config import ConfigModel, ModelPath, Secret, TokenizerPath

PositiveInt = Annotated[int, Field(ge=1)]


class BatcherConfig(ConfigModel):
    """How requests are packed."""

    package_max_workload: PositiveInt = 16
    """Most beams of a package; a larger request runs alone."""
    packaging_interval_seconds: Annotated[float, Field(ge=0)] = 0.05
    """How long a package waits for company, counted from its first request."""
    max_waiting: PositiveInt = 1024
    """Requests that may wait to be packed; more are refused with 429."""
    queue_timeout_seconds: Annotated[float, Field(gt=0)] | None = 300.0
    """How long a request may wait to be packed; then it fails with 408."""


class WorkerConfig(ConfigModel):
    """Which model, and how to run it."""

    model_name_or_path: ModelPath
    tokenizer_name_or_path: TokenizerPath | None = None
    revision: str = "main"
    """Branch or commit, where `model_name_or_path` is a name on the Hugging Face hub."""
    low_cpu_mem_usage: bool = True
    """Load weights straight onto the GPU; false: into host memory first. On a CPU it is one."""
    torch_dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    use_fast_tokenizer: bool = True
    trust_remote_code: bool = False
    use_safetensors: bool = True
    """Load safetensors weights alone; false: pickled ones (``*.bin``) where there are any."""
    batch_size: int = -1
    """Prompts that `generate` takes at once; -1: the whole package."""
    is_gptq_quantized: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    model_max_length: Annotated[int, Field(ge=2)] | None = None
    """Prompt and new tokens together; null: what the checkpoint says."""

    @field_validator("batch_size")
    @classmethod
    def _check_batch_size(cls, value: int) -> int:
        if value != -1 and value < 1:
            raise ValueError(f"batch_size is -1 (the whole package) or at least 1, not {value}")
        return value


class ServerConfig(ConfigModel):
    """The whole file."""

    batcher_config: BatcherConfig = BatcherConfig()
    worker_config: WorkerConfig
    event_token: Secret | None = None
    """Shared secret for announcing this server to the gateway."""
