"""What draft heads guess, against a plain reference written from their published descriptions, in float32."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from server.continuous_batching import LLM
from server.continuous_batching.draft_head import HeadDrafter
from server.models.heads import eagle3 as layouts
from server.scheduling.speculation.by_model import Proposal
from server.worker.head_runner import KEPT
from tests.continuous_batching import heads
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.heads import HEADS, KV_HEADS, drafting, greedy

PROMPTS = [[5, 17, 250, 99, 3, 41, 42, 300], [7], [9, 8, 7, 6, 9, 8, 7, 6, 30, 31], [*range(100, 190)]]


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def attend(q: Tensor, k: Tensor, v: Tensor, theta: float) -> Tensor:
    """Causal attention with rotary positions; [tokens, heads, size] → [tokens, heads × size]."""
    tokens, _, size = q.shape
    frequencies = theta ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
    angles = torch.cat([torch.arange(tokens)[:, None] * frequencies] * 2, -1)[:, None]

    def turn(x: Tensor) -> Tensor:
        half = size // 2
        return x * angles.cos() + torch.cat((-x[..., half:], x[..., :half]), -1) * angles.sin()

    q, k, v = (x.transpose(0, 1) for x in (turn(q), turn(k), v))
    k, v = (x.repeat_interleave(len(q) // len(k), 0) for x in (k, v))
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    scores = (q @ k.transpose(1, 2) / size**0.5).masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


@dataclass
class Reference:
    """A head on all places of a sequence at once; nothing is kept from draft to draft.

    Attributes:
        target: transformers' model.
        head: tensors of the head, with SafeAILab's names or MiMo's within its layer.
        theta: base of its rotary embedding.
        normed: the stream is normalised before the layer adds to it.
    """

    target: Any
    head: dict[str, Tensor]
    theta: float
    eps: float
    read_layers: tuple[int, ...]
    normed: bool = False
    is_mtp: bool = False

    def layer(self, x: Tensor, inputs: Tensor, prefix: str) -> Tensor:
        """Attention of what `inputs` are, and the feed-forward part, added to `x`."""
        head = self.head
        parts = []
        for name, count in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            at = f"{prefix}self_attn.{name}_proj"
            part = functional.linear(inputs, head[f"{at}.weight"], head.get(f"{at}.bias"))
            parts.append(part.view(len(x), count, -1))
        x = x + attend(*parts, self.theta) @ head[f"{prefix}self_attn.o_proj.weight"].T
        inner = rms(x, head[f"{prefix}post_attention_layernorm.weight"], self.eps)
        gate, up = (inner @ head[f"{prefix}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        return x + (functional.silu(gate) * up) @ head[f"{prefix}mlp.down_proj.weight"].T

    def eagle3(self, tokens: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        head, embedding = self.head, self.head.get("embed_tokens.weight")
        if embedding is None:
            embedding = self.target.get_input_embeddings().weight
        normed = rms(hidden, head["midlayer.hidden_norm.weight"], self.eps)
        embedded = rms(embedding[tokens], head["midlayer.input_layernorm.weight"], self.eps)
        stream = normed if self.normed else hidden
        x = self.layer(stream, torch.cat((embedded, normed), -1), "midlayer.")
        best = (rms(x, head["norm.weight"], self.eps) @ head["lm_head.weight"].T).argmax(-1)
        return x, best + head["d2t"][best] if "d2t" in head else best

    def mtp(self, tokens: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        head = self.head
        embedded = self.target.get_input_embeddings().weight[tokens].clone()
        embedded[0] = 0.0
        both = rms(hidden, head["hidden_layernorm.weight"], self.eps)
        both = torch.cat((both, rms(embedded, head["token_layernorm.weight"], self.eps)), -1)
        x = both @ head["input_proj.weight"].T
        x = self.layer(x, rms(x, head["input_layernorm.weight"], self.eps), "")
        x = rms(x, head["final_layernorm.weight"], self.eps)
        return x, self.target.lm_head(x).argmax(-1)

    @torch.no_grad()
    def drafts(self, tokens: list[int], count: int, start: int = 0) -> list[int]:
        """The `count` guesses behind `tokens`, of a head that sees places from `start` on."""
        kept: list[Tensor] = []
        layers = [*self.target.model.layers, self.target.model.norm]
        hooks = [
            layers[at].register_forward_pre_hook(lambda _, args: kept.append(args[0][0]))
            for at in self.read_layers
        ]
        self.target(torch.tensor([tokens[:-1]]))
        for hook in hooks:
            hook.remove()
        states = torch.cat(kept, -1)[start:]
        step = self.mtp if self.is_mtp else self.eagle3
        hidden = states if self.is_mtp else states @ self.head["fc.weight"].T
        behind, found = tokens[1 + start :], list[int]()
        for _ in range(count):
            x, best = step(torch.tensor(behind), hidden)
            found.append(int(best[-1]))
            hidden, behind = torch.cat((hidden, x[-1:])), [*behind, found[-1]]
        return found


def reference(model: Path, head: Path, **more: Any) -> Reference:
    from transformers import AutoModelForCausalLM, Qwen2ForCausalLM

    is_mtp = json.loads((model / "config.json").read_text())["model_type"] == "mimo"
    target = (Qwen2ForCausalLM if is_mtp else AutoModelForCausalLM).from_pretrained(model).eval()
    count = target.config.num_hidden_layers
    tensors = load_file(head / "model.safetensors")
    if is_mtp:
        prefix = "model.mtp_layers.0."
        own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        theta = target.config.rope_parameters["rope_theta"]
        return Reference(target, own, theta, target.config.rms_norm_eps, (count,), is_mtp=True)
    own = {layouts.plain_name(name): tensor for name, tensor in tensors.items()}
    return Reference(target, own, 10_000.0, 1e-5, (2, count // 2, count - 3), **more)


def recorded(drafter: HeadDrafter) -> list[tuple[list[int], int, list[int], int]]:
    """(tokens, wanted, guesses, first place that the head sees) of each draft from now on."""
    propose, found = drafter.propose, []

    def note(sequences: Any, count: int) -> Any:
        histories = [s.history.slice(0, len(s.history)) for s in sequences]
        proposal = propose(sequences, count)
        for sequence, tokens, guesses in zip(sequences, histories, proposal.tokens, strict=True):
            if guesses:
                row = drafter._rows.get(sequence)
                assert row is not None
                found.append((tokens, count, list(guesses), row.start))
        return proposal

    drafter.propose = note  # type: ignore[method-assign]
    return found


def check(
    llm: LLM, expected: Reference, prompts: list[list[int]] = PROMPTS, *, length: int = 24, **more: Any
) -> set[int]:
    """Answer `prompts` together; every draft is the reference's. Returns the first places that it saw."""
    drafter = drafting(llm)
    drafts = recorded(drafter)
    llm.generate(prompts, greedy(length, **more))
    assert len(drafts) > length / 2 * len(prompts)
    for tokens, count, guesses, start in drafts:
        assert guesses == expected.drafts(tokens, count, start)
    drafter.check()
    assert len(drafter._rows) == 0 and llm.engine.stats().step_failures == 0
    return {start for *_, start in drafts}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return heads.llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def eagle3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return heads.eagle3(tmp_path_factory.mktemp("head"))


def test_eagle3_of_a_llama(llama: Path, eagle3: Path) -> None:
    """Chunked prompts, several at once, guesses from a small vocabulary."""
    llm = small_llm(llama, chunk=20, speculation=heads.speculation_by(eagle3, 3))
    assert check(llm, reference(llama, eagle3)) == {0}
    assert llm.capabilities["speculation"]["name"] == "EAGLE-3 head, prompt lookup"
    assert llm.capabilities["speculation"]["read_layers"] == [2, 3, 4]


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_eagle3_of_a_qwen(tmp_path: Path, kind: str) -> None:
    """An embedding of its own, and all of the target's tokens."""
    model = heads.qwen(tmp_path / "model", kind)
    head = heads.eagle3(tmp_path / "head", reduced=False, own_embedding=True)
    check(small_llm(model, speculation=heads.speculation_by(head)), reference(model, head))


def test_the_layout_of_speculators(llama: Path, eagle3: Path, tmp_path: Path) -> None:
    head = heads.as_speculators(tmp_path, eagle3, norm_before_residual=True)
    llm = small_llm(llama, speculation=heads.speculation_by(head))
    check(llm, reference(llama, head, normed=True))


def test_pickled_weights(llama: Path, eagle3: Path, tmp_path: Path) -> None:
    """As yuhuili's checkpoints have them, with ``model.`` in front as others do."""
    tensors = {f"model.{name}": t for name, t in load_file(eagle3 / "model.safetensors").items()}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((eagle3 / "config.json").read_text())
    check(small_llm(llama, speculation=heads.speculation_by(tmp_path)), reference(llama, eagle3))


@pytest.mark.parametrize(
    ("fields", "layers"),
    [
        ({"eagle_aux_hidden_state_layer_ids": [1, 3, 7]}, (1, 3, 7)),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 4, 5]}}, (2, 5, 6)),
    ],
)
def test_the_layers_that_it_reads(
    llama: Path, eagle3: Path, tmp_path: Path, fields: dict[str, Any], layers: tuple[int, ...]
) -> None:
    """vLLM's key names those in front of which it reads, SGLang's those behind which it does."""
    tensors = load_file(eagle3 / "model.safetensors")
    config = json.loads((eagle3 / "config.json").read_text())
    head = heads.save_head(tmp_path, tensors, config | fields)
    expected = reference(llama, head)
    expected.read_layers = layers
    check(small_llm(llama, speculation=heads.speculation_by(head)), expected)


def test_the_layer_of_mimo(tmp_path: Path) -> None:
    model = heads.mimo(tmp_path)
    llm = small_llm(model, chunk=20, speculation=heads.speculation_by(model))
    assert check(llm, reference(model, model)) == {0}
    assert llm.capabilities["speculation"]["name"] == "MTP head, prompt lookup"


def test_layer_by_layer(llama: Path, eagle3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the target is computed by torch operations."""
    monkeypatch.setattr("server.ops.cpu.backend.FEATURES", frozenset())
    monkeypatch.setattr("server.ops.cpu.backend.objection", lambda *_, **__: "a test")
    llm = small_llm(llama, speculation=heads.speculation_by(eagle3))
    assert not llm.capabilities["kernels"]["name"].startswith("native")
    check(llm, reference(llama, eagle3))


def test_a_cached_prefix(llama: Path, eagle3: Path) -> None:
    """The head begins where states are computed again."""
    llm = small_llm(llama, speculation=heads.speculation_by(eagle3))
    expected, prompts = reference(llama, eagle3), [PROMPTS[3]]
    assert check(llm, expected, prompts) == {0}
    assert check(llm, expected, prompts) == {88}


def test_several_answers(llama: Path, eagle3: Path) -> None:
    """The first one goes on from the prompt, the others begin where they part from it."""
    llm = small_llm(llama, speculation=heads.speculation_by(eagle3))
    expected, prompts = reference(llama, eagle3), PROMPTS[2:]
    starts = check(llm, expected, prompts, n=3, do_sample=True, seed=5)
    assert starts == {0, len(PROMPTS[2]) - 1, len(PROMPTS[3]) - 1}


def test_after_a_rest(llama: Path, eagle3: Path) -> None:
    """More tokens than states are kept of: the head goes on from the oldest that it has."""
    llm = small_llm(llama, speculation=heads.speculation_by(eagle3))
    drafter, expected = drafting(llm), reference(llama, eagle3)
    drafts, propose, steps = recorded(drafter), drafter.propose, [0]

    def rest(sequences: Any, count: int) -> Any:
        steps[0] += 1
        if 3 < steps[0] < 60:
            return Proposal([[] for _ in sequences], 0.0, caught_up=True)
        return propose(sequences, count)

    drafter.propose = rest  # type: ignore[method-assign]
    llm.generate([PROMPTS[0]], greedy(120))
    assert {start for *_, start in drafts} == {0, len(drafts[3][0]) - 1 - KEPT}
    for tokens, count, guesses, start in drafts:
        assert guesses == expected.drafts(tokens, count, start)
