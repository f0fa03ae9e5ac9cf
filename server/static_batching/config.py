"""Configuration of a static-batching server (`sb_server_config.json`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from protocol.status import ServerCapacity
from server.api.config import ApiConfig
from server.checkpoints.hub import find_checkpoint
from server.quantization.formats.registry import FormatName, Quantization, check_agreement
from server.text.formats.registry import AUTO, NAMES
from utils.choices import one_of
from utils.config import ConfigModel, ModelPath, TokenizerPath

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
    step_timeout_seconds: Annotated[float, Field(ge=1)] | None = None
    """Seconds without a step of a running package after which the server is unhealthy; null: 600 on a CPU,
    120 on a GPU."""

    def capacity(self, model_max_length: int) -> ServerCapacity:
        """What a server takes, of a model whose context holds as many tokens."""
        return ServerCapacity(
            max_beams=self.package_max_workload,
            max_waiting=self.max_waiting,
            model_max_length=model_max_length,
        )


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
    chat_format: Annotated[str, one_of(NAMES)] = AUTO
    """How answers hold tool calls and reasoning: a name of `server.text.formats.registry`; auto: as the
    checkpoint's chat template shows; none: answers are plain text."""
    sanitize_control_tokens: bool = False
    """Encode control tokens that stand in the messages of a chat as ordinary text; false: as transformers
    does by default, they become control tokens."""
    use_safetensors: bool = True
    """Load safetensors weights alone; false: pickled ones (``*.bin``) where there are any."""
    batch_size: int = -1
    """Prompts that `generate` takes at once; -1: the whole package."""
    quantization: FormatName | None = None
    """How the weights are quantized; null: as `is_gptq_quantized` says."""
    is_gptq_quantized: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_threads: PositiveInt | None = None
    """Threads that compute on the CPU; null: ``OMP_NUM_THREADS``, else one per processor."""
    model_max_length: Annotated[int, Field(ge=2)] | None = None
    """Prompt and new tokens together; null: what the checkpoint says."""

    @field_validator("batch_size")
    @classmethod
    def _check_batch_size(cls, value: int) -> int:
        if value != -1 and value < 1:
            raise ValueError(f"batch_size is -1 (the whole package) or at least 1, not {value}")
        return value

    @model_validator(mode="after")
    def _check_quantization(self) -> WorkerConfig:
        check_agreement(self.quantization, "is_gptq_quantized", self.is_gptq_quantized, self._flagged)
        return self

    @property
    def weights(self) -> Quantization:
        """What this says of the checkpoint's weights."""
        return Quantization(self.quantization or self._flagged)

    @property
    def tokenizer_path(self) -> str:
        return self.tokenizer_name_or_path or self.model_name_or_path

    def located(self) -> WorkerConfig:
        """The same with paths on this machine; what is on a hub is downloaded.

        Raises:
            ModelError: it cannot be.
        """
        revision = None if self.revision == "main" else self.revision  # ModelScope's is called otherwise
        found = {"model_name_or_path": str(find_checkpoint(self.model_name_or_path, revision))}
        if self.tokenizer_name_or_path is not None:
            tokenizer = find_checkpoint(self.tokenizer_name_or_path, revision, weights=False)
            found["tokenizer_name_or_path"] = str(tokenizer)
        return self.model_copy(update=found)

    @property
    def _flagged(self) -> str | None:
        return "gptq" if self.is_gptq_quantized else None


class ServerConfig(ApiConfig):
    """The whole file."""

    batcher_config: BatcherConfig = BatcherConfig()
    worker_config: WorkerConfig
