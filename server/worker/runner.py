"""Runs steps on the model: block copies, one forward pass, logits. It decides nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from server.device.stopwatch import Stopwatch
from server.models.decoder import Decoder as DecoderModel
from server.ops.attention import AttentionBackend
from server.ops.backend import Backend
from server.ops.hidden_states import LayerInputs
from server.ops.paged_attention import PagedBatch
from server.sampling.gpu_sampler import GpuSampler
from server.sampling.step_logits import StepLogits
from server.scheduling.step import StepInput, Timings
from server.worker.batch import BatchBuilder, ForwardBatch
from server.worker.cache_storage import CacheStorage
from server.worker.decode_graphs import DecodeGraphs, Size
from server.worker.paged_batch import PagedBatchBuilder
from server.worker.prompt_graphs import PromptGraphs


class ModelRunner:
    """The model, its cache memory and its attention backend.

    Args:
        model: weights loaded.
        storage: the cache's memory.
        attention: made for that memory.
        backend: computes the model.
        builder: makes the tensors.
        read_layers: those in front of which a draft head reads the residual stream; empty: there is none.

    Attributes:
        timings: of copies and prompts, for the reader to take away.
        short_prompts: how they are computed and why, for the operator.
        replayed_tokens: of the longest step with prompts that is replayed; 0: none is.
    """

    def __init__(
        self,
        model: DecoderModel,
        storage: CacheStorage,
        attention: AttentionBackend[Any],
        backend: Backend,
        builder: BatchBuilder | PagedBatchBuilder,
        read_layers: tuple[int, ...] = (),
    ) -> None:
        self.model = model
        self.attention = attention
        self.backend = backend
        self._storage = storage
        self._builder = builder
        self._read_layers = read_layers
        self.timings = Timings()
        self.short_prompts = {"name": "launched", "reason": "there is no GPU"}
        self.replayed_tokens = 0
        self._stopwatch = Stopwatch(storage.place)

    def swap(self, step: StepInput) -> None:
        """Start the step's swaps, which run beside its forward pass; the one before has been waited for."""
        self._storage.settle()
        if len(step.swap_out) or len(step.swap_in):
            self._swap(step)

    @torch.inference_mode()
    def _swap(self, step: StepInput) -> None:
        def note(size: int, seconds: float) -> None:  # some steps later, when others were taken away
            self.timings.copies.append((size, seconds))

        swap_out, swap_in = ([*map(tuple, moves.tolist())] for moves in (step.swap_out, step.swap_in))
        self._storage.swap(swap_out, swap_in, step.written_blocks, note)

    def copy(self, step: StepInput) -> None:
        """Start the step's copies, which precede its forward pass."""
        if len(step.copies):
            with torch.inference_mode():
                self._storage.copy(step.copies)

    def check_device(self) -> None:
        """Raise if the device can compute no more: the errors of CUDA that stay until the process ends."""
        if self._storage.place.type == "cuda":
            torch.cuda.synchronize(self._storage.place)

    def forward(self, step: StepInput) -> StepLogits:
        """Compute the step's tokens.

        Returns:
            Logits for `step.sampled()`, in that order, and for `step.scored()`.
        """
        self._stopwatch.start()
        batch, inputs = self._builder.build(step), self._wanted_inputs()
        logits = self._compute(batch, inputs=inputs)
        known_tokens = step.known_tokens
        if known_tokens > len(step.decode_slots):
            self._stopwatch.stop(lambda seconds: self.timings.prompts.append((known_tokens, seconds)))
        scored = step.num_scored
        lines = len(logits) - scored
        return StepLogits(
            logits[:lines],
            batch.sample_rows,
            batch.sample_positions,
            drafts=batch.drafts,
            scored=logits[lines:] if scored else None,
            states=None if batch.states is None else batch.states.values,
            layer_inputs=None if inputs is None else inputs.values,
        )

    def try_out(self, length: int) -> Tensor:
        """Compute a prompt of `length` tokens, none of any sequence; [1, vocab], the logits behind it.

        Its keys and values go to a block that no sequence holds yet.
        """
        slot, start, end = np.array([[self._builder.idle_slot], [0], [length]], np.int32)
        samples = np.ones(1, bool)
        step = StepInput(chunk_slots=slot, chunk_starts=start, chunk_ends=end, chunk_samples=samples)
        return self._compute(self._builder.build(step))

    def _wanted_inputs(self, into: Tensor | None = None) -> LayerInputs | None:
        """What a draft head reads of a pass, in `into` where it is given; None: there is no head."""
        return LayerInputs(self._read_layers, into) if self._read_layers else None

    def _compute(
        self, batch: ForwardBatch, out: Tensor | None = None, inputs: LayerInputs | None = None
    ) -> Tensor:
        self.attention.prepare(*batch.attention)
        return self.backend.forward(
            self.model, batch.token_ids, batch.logit_rows, self.attention,
            out, batch.states, inputs, batch.embedded,
        )  # fmt: skip


class PagedModelRunner(ModelRunner):
    """Keeps tokens on the device from step to step, and replays steps of decodes as CUDA graphs.

    Args:
        builder: makes the tensors.
        sampler: chooses them.
        read_layers: as of `ModelRunner`.
    """

    _builder: PagedBatchBuilder

    def __init__(
        self,
        model: DecoderModel,
        storage: CacheStorage,
        attention: AttentionBackend[PagedBatch],
        backend: Backend,
        builder: PagedBatchBuilder,
        sampler: GpuSampler,
        read_layers: tuple[int, ...] = (),
    ) -> None:
        super().__init__(model, storage, attention, backend, builder, read_layers)
        self._sampler = sampler
        self._graphs: DecodeGraphs | None = None
        self._prompts: PromptGraphs | None = None
        self._logits = self._layer_inputs = torch.empty(0)

    def capture(self) -> None:
        """Capture the graphs; on CUDA, once, when everything else is in its place."""
        builder, vocab, weight = self._builder, self.model.spec.vocab_size, self.model.embedding
        # one place for the logits of all sizes: the graphs share the memory of their intermediates
        self._logits = torch.empty((builder.max_lines, vocab), dtype=weight.dtype, device=weight.device)
        if self._read_layers:
            width = len(self._read_layers) * self.model.spec.hidden_size
            self._layer_inputs = self._logits.new_empty((builder.max_lines, width))
        builder.send_decodes(StepInput(), builder.max_lines)  # only padding: this touches no sequence
        self._graphs = DecodeGraphs(self._decode, builder.max_rows, weight.device)

    def capture_prompts(self, longest: int) -> None:
        """Capture short steps with prompts, too, where a step may have `longest` tokens; on CUDA, at last."""
        prompts = PromptGraphs(
            self.model,
            self.backend,
            self.attention,
            vocab_size=self.model.spec.vocab_size,
            longest=longest,
            lines=self._builder.max_rows,
            read_layers=self._read_layers,
        )
        prompts.capture()
        self._prompts, self.replayed_tokens = prompts, prompts.longest
        self.short_prompts = {"name": "replayed", "reason": f"steps of up to {prompts.longest} tokens"}

    @torch.inference_mode()
    def warm_up(self, longest: int) -> StepLogits:
        """Run steps of every size that has kernels of its own, so that no request waits for a compiler.

        These are prompts of 1, 2 and `longest` tokens; of 16 to 128 where decodes have no step as large; with
        experts also of half of `longest`, a quarter and so on; with a small vocabulary several prompts of one
        token at once; and decodes computed again, as many as a step may have, half of them and so on.

        They stand in the row of padding, whose keys and values go to a block that no sequence holds yet.

        Returns:
            What the last token is followed by.
        """
        from server.ops.triton.few_rows import MOST_OUTPUTS, ROW_TILES

        self._storage.copy(np.zeros((1, 3), np.int64))
        most = min(self._builder.max_rows + self._builder.max_lines, longest)  # beside decodes and drafts
        for length in {most >> halvings for halvings in range(most.bit_length())}:
            slot, start, end = np.array([[self._builder.idle_slot], [0], [length]], np.int32)
            self._compute(
                self._builder.build(StepInput(redone_slots=slot, redone_starts=start, redone_ends=end))
            )
        lengths = {1, min(2, longest), longest}
        # smaller tiles of rows were those of captured steps
        lengths |= {min(rows, longest) for rows in ROW_TILES if rows > self._builder.max_rows}
        if any(layer.feed_forward.experts for layer in self.model.spec.layers):
            # how their products are divided follows the rows that each gets
            lengths |= {longest >> halvings for halvings in range(longest.bit_length())}
        outputs = self.model.shard.rows(self.model.spec.vocab_size)
        if outputs <= MOST_OUTPUTS:  # logits of a larger vocabulary come from cuBLAS
            for lines in ROW_TILES:
                self._compute(self._prompts_of(min(lines, self._builder.max_lines), 1))
        for length in sorted(lengths):
            batch = self._prompts_of(1, length)
            logits = self._compute(batch)
        return StepLogits(logits, batch.sample_rows, batch.sample_positions)

    def _prompts_of(self, count: int, length: int) -> ForwardBatch:
        """A step of `count` prompts of `length` tokens each, in the slot that no sequence has."""
        slots, samples = np.full(count, self._builder.idle_slot, np.int32), np.ones(count, bool)
        starts, ends = np.zeros(count, np.int32), np.full(count, length, np.int32)
        return self._builder.build(
            StepInput(chunk_slots=slots, chunk_starts=starts, chunk_ends=ends, chunk_samples=samples)
        )

    def _compute(
        self, batch: ForwardBatch, out: Tensor | None = None, inputs: LayerInputs | None = None
    ) -> Tensor:
        prompts, rows = self._prompts, batch.logit_rows
        if prompts is None or rows is None or batch.states is not None:
            return super()._compute(batch, out, inputs)
        if not prompts.fits(len(batch.token_ids), len(rows)):
            return super()._compute(batch, out, inputs)
        self.attention.prepare(*batch.attention)
        return prompts.run(batch, inputs)

    def _decode(self, size: Size) -> StepLogits:
        """A step of that size, and the choice of tokens while no line has further options."""
        batch = self._builder.decode_batch(size.lines, drafted=size.drafted)
        rows, positions = batch.sample_rows, batch.sample_positions
        assert rows is not None and positions is not None
        inputs = self._wanted_inputs(self._layer_inputs[: size.lines])
        logits = self._compute(batch, self._logits[: size.lines], inputs)
        tokens = self._sampler.sample(logits, rows, positions, keep=not size.drafted)
        read = None if inputs is None else inputs.values
        return StepLogits(logits, rows, positions, tokens, drafts=batch.drafts, layer_inputs=read)

    def forward(self, step: StepInput) -> StepLogits:
        self._sampler.flush()
        if self._graphs is None or len(step.chunk_slots):
            return super().forward(step)
        chosen, again = len(step.decode_slots) + len(step.draft_tokens), step.known_tokens
        size = self._graphs.size_for(chosen + again, drafted=bool(again or len(step.draft_tokens)))
        if size is None:
            return super().forward(step)
        self._builder.send_decodes(step, size.lines)
        return replace(self._graphs.replay(size), padding=size.lines - chosen)
