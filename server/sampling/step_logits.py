"""From the forward pass to the choice of tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from server.sampling.verification import GpuDrafts


@dataclass(slots=True)
class StepLogits:
    """What a forward pass gives.

    Attributes:
        logits: [lines, vocab], in the model's own type or float32.
        slots, positions: int32 [lines] on the device: slot, and place of the token that each
            line follows; None where the device keeps no tokens.
        tokens: int32 [lines], chosen greedily or by temperature alone. They come with the logits of replayed
            steps, all of whose tensors are at the same place whenever there are as many lines; else None.
        padding: lines at the end that stand for nothing.
        scored: [tokens, vocab], of tokens whose successors' log probabilities are reported, in the order of
            `StepInput.scored`; None where there are none.
        drafts: which lines follow drafted tokens, where the device keeps tokens; None: none does.
        states: [wanted, hidden], hidden states of `StepInput.state_rows`; None where none are wanted.
        layer_inputs: [tokens, layers × hidden], the residual stream in front of some layers for every token
            of the step, behind which may be padding; None where no draft head reads it.
    """

    logits: Tensor
    slots: Tensor | None = None
    positions: Tensor | None = None
    tokens: Tensor | None = None
    padding: int = 0
    scored: Tensor | None = None
    drafts: GpuDrafts | None = None
    states: Tensor | None = None
    layer_inputs: Tensor | None = None

    @property
    def sampled(self) -> Tensor:
        """The logits without padding."""
        return self.logits[: -self.padding] if self.padding else self.logits
