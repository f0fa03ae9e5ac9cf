"""Which experts the C++ kernels compute."""

from __future__ import annotations

from server.layers.expert_stack import ExpertStack
from server.layers.spec import LayerSpec
from server.layers.weights import ExpertsWeights


def objection_to_experts(weights: ExpertsWeights, spec: LayerSpec) -> str | None:
    """Why the kernels do not compute the experts of a layer; None: they do."""
    if spec.parallel:
        return "it does not compute experts beside attention"
    for stack in (weights.gate_up, weights.down):
        reason = stack.objection_to_codes() if isinstance(stack, ExpertStack) else None
        if reason is not None:
            return reason
    if weights.shared is not None and (spec.feed_forward.bias or not spec.feed_forward.gated):
        return "it does not compute a shared expert with a bias or without a gate"
    return None
