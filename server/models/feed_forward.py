"""Weights of feed-forward parts, of one for all tokens and of experts."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from server.layers.expert_stack import ExpertStack
from server.layers.layout import Layout
from server.layers.linear import Split, Target, WeightMap
from server.layers.microscaled import Microscaled
from server.layers.spec import FeedForwardSpec
from server.layers.weights import ExpertsWeights, FeedForwardWeights
from server.models.builder import Builder, laid_out
from server.models.names import Names


class FeedForward(FeedForwardWeights):
    """Weights of a feed-forward part."""

    def __init__(self, hidden: int, own: FeedForwardSpec, prefix: str, names: Names, build: Builder) -> None:
        super().__init__()
        self.inward = [f"{prefix}.{name}" for name in names.gate_up]
        self.outward = f"{prefix}.{names.down}"
        sizes = [own.inner, own.inner] if own.gated else [own.inner]
        self.parts = sizes if own.gated and len(self.inward) == 1 else []
        outputs = [sum(sizes)] if self.parts else sizes
        self.gate_up = build.linears(self.inward, hidden, *outputs, bias=own.bias)
        self.down = build.linears([self.outward], own.inner, hidden, bias=own.bias)
        self.transposed = names.transposed

    def weights(self) -> WeightMap:
        found: WeightMap = {}
        inward = self.gate_up.targets("outputs", *self.inward, parts=self.parts)
        for name in self.inward:
            found |= laid_out(self.gate_up, inward, name, None, self.transposed)
        outward = self.down.targets("inputs", self.outward)
        return found | laid_out(self.down, outward, self.outward, None, self.transposed)


class Experts(ExpertsWeights):
    """Weights of the experts of a feed-forward part."""

    def __init__(self, hidden: int, own: FeedForwardSpec, prefix: str, names: Names, build: Builder) -> None:
        super().__init__()
        spec = own.experts
        assert spec is not None
        self.names, self.prefix, self.inner = names, f"{prefix}.{names.experts}", own.inner
        wide = 2 * own.inner if own.gated else own.inner
        self.router_name = f"{prefix}.{names.router}"
        self.router = build.linears([self.router_name], hidden, spec.count, bias=spec.router_bias)
        self.inward = f"{self.prefix}.{names.expert_gate_up[0]}"
        self.outward = f"{self.prefix}.{names.expert_down}"
        inward, outward = [self.inward], [self.outward]
        if not names.stacked_experts:
            inward = [name for expert in range(spec.count) for name in self._inward_of(expert)]
            outward = [self._outward_of(expert) for expert in range(spec.count)]
        self.gate_up = build.linears.stack(inward, spec.count, wide, hidden)
        self.down = build.linears.stack(outward, spec.count, hidden, own.inner)
        self.gate_up_bias = build.parameter(spec.count, wide) if own.bias else None
        self.down_bias = build.parameter(spec.count, hidden) if own.bias else None
        self.shared, self.shared_gate = None, None
        self.shared_gate_name = f"{prefix}.{names.shared_gate}"
        if spec.shared is not None:
            shared = replace(own, inner=spec.shared, experts=None)
            called = replace(names, gate_up=names.shared_gate_up, down=names.shared_down)
            self.shared = FeedForward(hidden, shared, prefix, called, build)
            if spec.shared_gate:
                self.shared_gate = build.linears([self.shared_gate_name], hidden, 1)

    def weights(self) -> WeightMap:
        found = self.router.targets(None, self.router_name)
        found |= self._stacked() if self.names.stacked_experts else self._by_number()
        if isinstance(self.shared, FeedForward):
            found |= self.shared.weights()
        if self.shared_gate is not None:
            found |= self.shared_gate.targets(None, self.shared_gate_name)
        return found

    def _inward_of(self, expert: int) -> list[str]:
        """Names of the first projections of an expert, of checkpoints that number them."""
        return [f"{self.prefix}.{expert}.{name}" for name in self.names.expert_gate_up]

    def _outward_of(self, expert: int) -> str:
        return f"{self.prefix}.{expert}.{self.names.expert_down}"

    def _by_number(self) -> WeightMap:
        found: WeightMap = {}
        for expert in range(len(self.down)):
            for part, name in enumerate(self._inward_of(expert)):
                found |= _targets(self.gate_up, "outputs", expert, part, self.inner, name)
            name = self._outward_of(expert)
            found |= _targets(self.down, "inputs", expert, 0, self.down.shape[1], name)
        return found

    def _stacked(self) -> WeightMap:
        halves, inward, outward = (self.inner, self.inner), self.inward, self.outward
        mixed, found = Layout(mixed_gate=True), WeightMap()
        if isinstance(self.gate_up, Microscaled):
            found[f"{inward}_blocks"] = Target(self.gate_up.blocks, layout=mixed)
            found[f"{inward}_scales"] = Target(self.gate_up.scales, layout=mixed)
        else:
            assert isinstance(self.gate_up, nn.Parameter)
            found[inward] = Target(self.gate_up.data, 1, halves, layout=replace(mixed, transposed=True))
        if isinstance(self.down, Microscaled):
            found[f"{outward}_blocks"] = Target(self.down.blocks)
            found[f"{outward}_scales"] = Target(self.down.scales)
        else:
            assert isinstance(self.down, nn.Parameter)
            found[outward] = Target(self.down.data, 2, layout=Layout(transposed=True))
        if self.gate_up_bias is not None and self.down_bias is not None:
            found[f"{inward}_bias"] = Target(self.gate_up_bias.data, 1, halves, layout=mixed)
            found[f"{outward}_bias"] = Target(self.down_bias.data, first_only=True)
        return found


def _targets(
    stack: nn.Parameter | ExpertStack, split: Split, expert: int, part: int, size: int, name: str
) -> WeightMap:
    """Where the tensors of projection `name` of an expert go, which has `size` outputs."""
    if isinstance(stack, ExpertStack):
        found = stack.targets(split, expert, part)
        return {f"{name}.{kind}": target for kind, target in found.items()}
    matrix = stack.data[expert, part * size : (part + 1) * size]
    return {f"{name}.weight": Target(matrix, 0 if split == "outputs" else 1)}
