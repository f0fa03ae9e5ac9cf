"""Configuration of a continuous-batching server (`cb_server_config.json`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from protocol.generation import MAX_LOOKUP_TOKENS, MAX_NGRAM_SIZE
from server.continuous_batching.decoding.params import PromptLookup
from server.continuous_batching.scheduler.cost import SwapPolicy
from utils.config import ConfigModel, ModelDirectory, Secret, TokenizerPath

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]


class ModelLoadingConfig(ConfigModel):
    """Which model, and how to hold it."""

    model_type: Literal["llama", "mistral", "qwen2", "qwen3"] | None = None
    """What the checkpoint must be; null: what it says it is."""
    model_name_or_path: ModelDirectory
    torch_dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    tokenizer_name_or_path: TokenizerPath | None = None
    use_fast_tokenizer: bool = True
    trust_remote_code: bool = False
    quantize_method: Literal["gptq"] | None = None
    model_max_length: Annotated[int, Field(ge=2)] | None = None
    gptq_model_base_name: str | None = None
    gptq_config_base_name: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_threads: PositiveInt | None = None
    """Threads that compute on the CPU; null: ``OMP_NUM_THREADS``, else one per processor."""
    attention_backend: Literal["auto", "triton", "flash", "varlen"] = "auto"
    """On a GPU, what computes attention; auto: what was measured fastest of those that run there."""

    @property
    def tokenizer_path(self) -> str:
        return self.tokenizer_name_or_path or self.model_name_or_path


class BatcherConfig(ConfigModel):
    """Budgets of a step and of the queue."""

    batch_max_tokens: PositiveInt = 8192
    batch_max_beams: PositiveInt = 64
    prefill_chunk_tokens: PositiveInt | None = None
    """Prompt tokens of one step; null: 512 on CPU, `batch_max_tokens` elsewhere."""
    max_waiting: PositiveInt = 1024
    queue_timeout_seconds: Annotated[float, Field(gt=0)] | None = 300.0

    @model_validator(mode="after")
    def _check(self) -> BatcherConfig:
        if self.batch_max_tokens < self.batch_max_beams:
            raise ValueError(
                f"batch_max_tokens ({self.batch_max_tokens}) must not be below "
                f"batch_max_beams ({self.batch_max_beams}): every beam takes a token a step"
            )
        return self


class CacheConfig(ConfigModel):
    """The paged KV cache."""

    num_blocks: PositiveInt | None = None
    """Blocks on the device; null: as many as memory allows."""
    num_blocks_cpu: Annotated[int, Field(ge=0)] | None = None
    """Blocks in host memory for swapping; null: a quarter of `num_blocks`."""
    block_size: Annotated[int, Field(ge=1, le=256)] = 16
    watermark: Fraction = 0.01
    enable_prefix_cache: bool = True
    swap_policy: SwapPolicy = "auto"
    memory_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Share of the device's free memory that `num_blocks: null` takes (of RAM: a third of it)."""


class SpeculationConfig(ConfigModel):
    """Speculative decoding by prompt lookup, for requests that do not say themselves."""

    prompt_lookup_num_tokens: Annotated[int, Field(ge=0, le=MAX_LOOKUP_TOKENS)] = 0
    """Most tokens drafted for a sequence and step; 0: none."""
    max_matching_ngram_size: Annotated[int, Field(ge=1, le=MAX_NGRAM_SIZE)] = 3
    """Tokens of the longest n-gram whose continuation is looked up."""

    @property
    def prompt_lookup(self) -> PromptLookup:
        return PromptLookup(self.prompt_lookup_num_tokens, self.max_matching_ngram_size)


class ServerConfig(ConfigModel):
    """The whole file."""

    model_loading_config: ModelLoadingConfig
    batcher_config: BatcherConfig = BatcherConfig()
    cache_config: CacheConfig = CacheConfig()
    speculation_config: SpeculationConfig = SpeculationConfig()
    event_token: Secret | None = None
    """Shared secret for announcing this server to the gateway."""
