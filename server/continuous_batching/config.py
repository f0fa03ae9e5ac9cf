"""Configuration of a continuous-batching server (`cb_server_config.json`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from pydantic import Field, model_validator

from protocol.generation import MAX_LOOKUP_TOKENS, MAX_NGRAM_SIZE
from server.api.config import ApiConfig
from server.checkpoints.hub import find_checkpoint
from server.models.registry import FAMILIES
from server.models.source import ModelSource
from server.quantization.formats.registry import FormatName, Quantization, check_agreement
from server.scheduling.params import PromptLookup
from server.scheduling.policies import POLICIES, SchedulingPolicy
from server.scheduling.preemption import SwapPolicy
from server.text.formats.registry import AUTO, NAMES
from utils.choices import one_of
from utils.config import ConfigModel, ModelPath, TokenizerPath

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]


class ModelLoadingConfig(ConfigModel):
    """Which model, and how to hold it."""

    model_type: Annotated[str, one_of(FAMILIES)] | None = None
    """What the checkpoint must be; null: what it says it is."""
    model_name_or_path: ModelPath
    torch_dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    tokenizer_name_or_path: TokenizerPath | None = None
    use_fast_tokenizer: bool = True
    trust_remote_code: bool = False
    chat_format: Annotated[str, one_of(NAMES)] = AUTO
    """How answers hold tool calls and reasoning: a name of `server.text.formats.registry`; auto: as the
    checkpoint's chat template shows; none: answers are plain text."""
    sanitize_control_tokens: bool = False
    """Encode control tokens that stand in the messages of a chat as ordinary text; false: as transformers
    does by default, they become control tokens."""
    quantization: FormatName | None = None
    """How the weights are quantized; null: as `quantize_method` says."""
    quantize_method: Literal["gptq"] | None = None
    model_max_length: Annotated[int, Field(ge=2)] | None = None
    gptq_model_base_name: str | None = None
    gptq_config_base_name: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_threads: PositiveInt | None = None
    """Threads that compute on the CPU; null: ``OMP_NUM_THREADS``, else one per processor."""
    cpu_arithmetic: Literal["exact", "int8"] = "exact"
    """Of products on a CPU; int8: activations are rounded to 8 bits, and so are weights of floats when they
    are loaded, which is faster; ``weights`` in ``/status`` says so."""
    attention_backend: Literal["auto", "triton", "flash", "varlen", "xformers"] = "auto"
    """On a GPU, what computes attention; auto: what was measured fastest of those that run there."""
    deterministic: bool = False
    """A token's bits depend on nothing but its own sequence, whatever is computed beside it; where that
    cannot be had, loading fails. Own C++ kernels for CPUs always compute so; on a GPU it costs some speed."""

    @model_validator(mode="after")
    def _check_quantization(self) -> ModelLoadingConfig:
        check_agreement(self.quantization, "quantize_method", self.quantize_method, self.quantize_method)
        return self

    @property
    def source(self) -> ModelSource:
        """The checkpoint that this names."""
        names = ("gptq_model_base_name", "gptq_config_base_name")
        options = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return ModelSource(
            Path(self.model_name_or_path),
            self.model_type,
            Quantization(self.quantization or self.quantize_method, options),
        )

    @property
    def tokenizer_path(self) -> str:
        return self.tokenizer_name_or_path or self.model_name_or_path

    def located(self) -> ModelLoadingConfig:
        """The same with paths on this machine; what is on a hub is downloaded.

        Raises:
            ModelError: it cannot be.
        """
        model, tokenizer = self.model_name_or_path, self.tokenizer_name_or_path
        found = {"model_name_or_path": str(find_checkpoint(model))}
        if tokenizer is not None:
            found["tokenizer_name_or_path"] = str(find_checkpoint(tokenizer, weights=False))
        return self.model_copy(update=found)


class BatcherConfig(ConfigModel):
    """Budgets of a step and of the queue."""

    batch_max_tokens: PositiveInt = 8192
    batch_max_beams: PositiveInt = 64
    prefill_chunk_tokens: PositiveInt | None = None
    """Prompt tokens of one step; null: 512 on CPU, `batch_max_tokens` elsewhere."""
    target_step_ms: Annotated[float, Field(gt=0)] | None = None
    """Milliseconds that a step shall take at most while prompts go on beside decodes: prompts are cut into
    chunks that fit (128 tokens at least). Gaps between tokens shrink, and first tokens come later; null:
    chunks of `prefill_chunk_tokens`."""
    prompt_graphs: bool | None = None
    """On a GPU, replay steps of up to 2,048 tokens with prompts as CUDA graphs, all but attention: launching
    the kernels of a short prompt one by one takes longer than computing it. Costs part of a second at
    the start and some memory; null: wherever it is supported."""
    max_waiting: PositiveInt = 1024
    queue_timeout_seconds: Annotated[float, Field(gt=0)] | None = 300.0
    step_timeout_seconds: Annotated[float, Field(ge=1)] | None = None
    """Seconds without a step, with work to do, after which the engine is taken for stuck, killed and
    started again; null: 300 on a CPU, 60 on a GPU."""
    policy: Annotated[str, one_of(POLICIES)] = SchedulingPolicy.name
    """Which requests run and wait: a name of `server.scheduling.policies`."""

    @model_validator(mode="after")
    def _check(self) -> BatcherConfig:
        if self.batch_max_tokens < self.batch_max_beams:
            raise ValueError(
                f"batch_max_tokens ({self.batch_max_tokens}) must not be below "
                f"batch_max_beams ({self.batch_max_beams}): every beam takes a token a step"
            )
        if self.target_step_ms is not None and not POLICIES[self.policy].mixes:
            raise ValueError(
                f"target_step_ms is not supported with the policy {self.policy}, which computes prompts apart"
            )
        return self


class CacheConfig(ConfigModel):
    """The paged KV cache."""

    num_blocks: PositiveInt | None = None
    """Blocks on the device; null: as many as memory allows."""
    num_window_blocks: PositiveInt | None = None
    """Blocks on the device for each group of layers with a window, where other layers have none; null: as
    many as all sequences and a step can use, and at most `num_blocks`."""
    num_blocks_cpu: Annotated[int, Field(ge=0)] | None = None
    """Blocks in host memory for swapping; null: a quarter of `num_blocks`."""
    block_size: Annotated[int, Field(ge=1, le=256)] = 16
    watermark: Fraction = 0.01
    cache_dtype: Literal["auto", "fp8_e4m3"] = "auto"
    """Type of keys and values; auto: `torch_dtype`; fp8_e4m3: half its memory, on NVIDIA GPUs with FP8 units,
    scaled by the checkpoint's ``k_scale`` and ``v_scale`` where it has them."""
    enable_prefix_cache: bool = True
    swap_policy: SwapPolicy = "auto"
    memory_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Share of the device's free memory that `num_blocks: null` takes (of RAM: a third of it)."""


MAX_DRAFT_TOKENS = 16
DRAFT_NUM_TOKENS = 4


class SpeculationConfig(ConfigModel):
    """Speculative decoding: prompt lookup for requests that do not say themselves; a draft model or head."""

    prompt_lookup_num_tokens: Annotated[int, Field(ge=0, le=MAX_LOOKUP_TOKENS)] = 0
    """Most tokens drafted for a sequence and step; 0: none."""
    max_matching_ngram_size: Annotated[int, Field(ge=1, le=MAX_NGRAM_SIZE)] = 3
    """Tokens of the longest n-gram whose continuation is looked up."""
    draft_model: ModelPath | None = None
    """A smaller model with the same tokenizer, which drafts for every request but beams."""
    draft_head: ModelPath | None = None
    """A draft head, which reads the model's hidden states and drafts for every request but beams: an EAGLE-3
    checkpoint, or the model's own directory for the multi-token prediction layer that it holds (MiMo)."""
    draft_num_tokens: Annotated[int, Field(ge=1, le=MAX_DRAFT_TOKENS)] = DRAFT_NUM_TOKENS
    """Most tokens that the draft model, or the head, drafts for a sequence and step."""

    @model_validator(mode="after")
    def _check_drafts(self) -> SpeculationConfig:
        if self.draft_model is not None and self.draft_head is not None:
            raise ValueError("draft_model and draft_head are both set: only one of them can draft")
        if not self.has_drafter and self.draft_num_tokens != DRAFT_NUM_TOKENS:
            raise ValueError("draft_num_tokens has no effect without draft_model or draft_head")
        return self

    @property
    def has_drafter(self) -> bool:
        """Whether a draft model or a draft head is loaded."""
        return self.draft_model is not None or self.draft_head is not None

    @property
    def prompt_lookup(self) -> PromptLookup:
        return PromptLookup(self.prompt_lookup_num_tokens, self.max_matching_ngram_size)


class ParallelConfig(ConfigModel):
    """Over how many devices of this host the model is split."""

    tensor_parallel_size: PositiveInt | Literal["auto"] = 1
    """Ranks that share each layer, a process with a GPU of its own each (on CPUs, with a share of the
    threads); auto: as many as there are visible GPUs."""


class ServerConfig(ApiConfig):
    """The whole file."""

    model_loading_config: ModelLoadingConfig
    batcher_config: BatcherConfig = BatcherConfig()
    cache_config: CacheConfig = CacheConfig()
    speculation_config: SpeculationConfig = SpeculationConfig()
    parallel_config: ParallelConfig = ParallelConfig()

    def to_json(self) -> bytes:
        """This configuration for an engine process; the event token stays in this one."""
        return msgspec.json.encode(self.model_dump(mode="json", exclude={"event_token"}))

    def located(self) -> ServerConfig:
        """As `ModelLoadingConfig.located`."""
        found: dict[str, ConfigModel] = {"model_loading_config": self.model_loading_config.located()}
        speculation = self.speculation_config
        named = {key: getattr(speculation, key) for key in ("draft_model", "draft_head")}
        places = {key: str(find_checkpoint(path)) for key, path in named.items() if path is not None}
        if places:
            found["speculation_config"] = speculation.model_copy(update=places)
        return self.model_copy(update=found)
