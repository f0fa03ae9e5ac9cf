"""Which experts the C++ kernels compute."""

from __future__ import annotations

from server.layers.expert_stack import ExpertStack
from server.layers.linear import LinearLayer
from server.layers.spec import LayerSpec
from server.layers.weights import ExpertsWeights
from server.ops.cpu.weights import BITS
from server.quantization.gptq.stack import GroupedStack


def objection_to_experts(weights: ExpertsWeights, spec: LayerSpec) -> str | None:
    """Why the kernels do not compute the experts of a layer; None: they do."""
    if spec.parallel:
        return "it does not compute experts beside attention"
    for stack in (weights.gate_up, weights.down):
        if isinstance(stack, ExpertStack) and (reason := _objection_to_stack(stack)) is not None:
            return reason
    own = [weights.router, weights.shared_gate]
    own += [weights.shared.gate_up, weights.shared.down] if weights.shared is not None else []
    if any(linear is not None and _reorders(linear) for linear in own):
        return "the inputs of a router or a shared expert are in an order of their own"
    if weights.shared is None:
        return None
    if spec.feed_forward.bias or not spec.feed_forward.gated:
        return "it does not compute a shared expert with a bias or without a gate"
    return None


def _objection_to_stack(stack: ExpertStack) -> str | None:
    if not isinstance(stack, GroupedStack):
        return f"it does not compute experts in format {stack.format_name}"
    if stack.bits != BITS:
        return f"it multiplies experts of {BITS} bits, not of {stack.bits}"
    return "the inputs of experts are in an order of their own" if stack.reorders else None


def _reorders(linear: LinearLayer) -> bool:
    return not linear.dense and any(weight.order is not None for weight in linear.quantized_weights())
