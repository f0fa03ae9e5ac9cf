"""Step 6: decoding. Samples, beams and constrained answers, side by side in one batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from docs.tutorial.steps.step3_iteration import Request, Sequence
from docs.tutorial.steps.step5_preemption import PreemptingEngine

GOLDEN, MIX_1, MIX_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # SplitMix64, signed


def mix(x: Tensor) -> Tensor:
    """A good hash of int64; torch's shift keeps the sign, hence the masks."""
    x = (x ^ (x >> 30 & 2**34 - 1)) * MIX_1
    x = (x ^ (x >> 27 & 2**37 - 1)) * MIX_2
    return x ^ (x >> 31 & 2**33 - 1)


def gumbel(seed: int, answer: int, position: int, tokens: int) -> Tensor:
    """Noise [tokens], a pure function of its arguments and of the token's id."""
    state = mix(torch.tensor(seed) + GOLDEN)
    for counter in (torch.tensor(answer), torch.tensor(position), torch.arange(tokens)):
        state = mix(state + (counter + 1) * GOLDEN)
    uniform = ((state >> 12 & 2**52 - 1).double() + 0.5) * 2.0**-52
    return -torch.log(-torch.log(uniform))


@dataclass
class Options:
    temperature: float = 0.0  # 0: the likeliest token
    top_p: float = 1.0
    seed: int = 0
    answers: int = 1
    beams: int = 1
    allowed: Callable[[list[int]], list[int]] | None = None  # answer so far → tokens that may follow


class Ask(Request):
    def __init__(self, prompt: list[int], limit: int, options: Options) -> None:
        super().__init__(prompt, limit, max(options.answers, options.beams))
        self.options = options
        self.scores = torch.zeros(1, 1)  # of the beams
        self.finished: list[tuple[float, list[int]]] = []


class DecodingEngine(PreemptingEngine):
    def choose(self, request: Request, rows: list[Tensor]) -> None:
        assert isinstance(request, Ask)
        stem, prompt = request.sequences[0], len(request.prompt)
        if request.options.beams > 1:
            self._continue_beams(request, torch.stack(rows))
            return
        if len(stem.tokens) == prompt:  # the prompt is computed: split it into its answers
            request.sequences += [self._fork(stem, stem.tokens, i) for i in range(1, request.width)]
            rows = rows * request.width
        for sequence, row in zip(list(request.sequences), rows, strict=True):
            self.extend(sequence, self._pick(request.options, sequence, row, prompt))

    def _fork(self, parent: Sequence, tokens: list[int], index: int) -> Sequence:
        child = Sequence(parent.request, list(tokens), index)
        child.computed, child.blocks = parent.computed, list(parent.blocks)
        for block in child.blocks:
            self.pool.share(block)
        return child

    def _pick(self, options: Options, sequence: Sequence, scores: Tensor, prompt: int) -> int:
        if options.allowed is not None:
            allowed = options.allowed(sequence.tokens[prompt:])
            scores = torch.full_like(scores, -torch.inf).index_copy(0, torch.tensor(allowed), scores[allowed])
        if not options.temperature:
            return int(scores.argmax())
        scores = scores / options.temperature
        ordered, order = scores.softmax(-1).sort(descending=True)
        outside = order[ordered.cumsum(0) - ordered >= options.top_p]  # the mass before it is enough
        scores[outside] = -torch.inf
        noise = gumbel(options.seed, sequence.index, len(sequence.tokens), len(scores))
        return int((scores + noise).argmax())

    def _continue_beams(self, request: Ask, logits: Tensor) -> None:
        """As transformers does with `early_stopping=False` and `length_penalty=1`."""
        beams, length = request.width, len(request.sequences[0].tokens) + 1 - len(request.prompt)
        scores = (logits.log_softmax(-1) + request.scores).flatten()
        alive: list[tuple[float, Sequence]] = []
        for place, (score, index) in enumerate(
            zip(*(x.tolist() for x in scores.topk(2 * beams)), strict=True)
        ):
            parent, token = divmod(index, logits.shape[1])
            tokens = [*request.sequences[parent].tokens, token]
            if token != self.model.eos and length < request.limit:
                if len(alive) < beams:
                    alive.append((score, self._fork(request.sequences[parent], tokens, len(alive))))
            elif place < beams:
                request.finished.append((score / length, tokens[len(request.prompt) :]))
        for sequence in request.sequences:
            self.release(sequence)
        request.finished = sorted(request.finished, key=lambda answer: -answer[0])[:beams]
        full = len(request.finished) == beams
        if not alive or (full and alive[0][0] / length <= request.finished[-1][0]):
            for _, sequence in alive:
                self.release(sequence)
            request.answers = {i: request.finished[i][1] for i in range(request.options.answers)}
            request.sequences = []
            self.running.remove(request)
            return
        request.scores = torch.tensor([[score] for score, _ in alive])
        request.sequences = [sequence for _, sequence in alive]
