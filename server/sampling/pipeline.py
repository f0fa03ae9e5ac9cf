"""The stages one after the other, in torch's operators: on a CPU, and for beams everywhere."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from server.sampling.lines import Lines
from server.sampling.sampling_state import SamplingState


def change_scores(scores: Tensor, state: SamplingState, lines: Lines) -> None:
    """Apply every stage but the filters, in place.

    A mask that `state.masks` has for the choice of tokens is applied here for those lines only whose scores
    are looked at before that: by filters, and for beams.

    Args:
        scores: float32 [lines, vocab]: log probabilities of beams, logits of others.
        state: the slots' options.
        lines: where the scores are.
    """
    for stage, wanting in state.stages_for(lines, filters=False):
        if stage.masks_choice:
            wanting = wanting.take(np.flatnonzero(state.looked_at(wanting.slots)))
        if len(wanting):
            stage.apply(scores, wanting)


def filter_scores(scores: Tensor, state: SamplingState, lines: Lines) -> Tensor:
    """Scores divided by the temperature, [lines, vocab], in which what may not be drawn is -inf.

    Args:
        scores: float32, as `change_scores` leaves them.
        lines: some of those, all drawn.
    """
    part = scores[state.on_device(lines.at)]
    part /= state.on_device(state.temperatures[lines.slots].astype(np.float32)).unsqueeze(1)
    for stage, wanting in state.stages_for(lines.moved(), filters=True):
        stage.apply(part, wanting)
    return part
