"""What a draft model gives: ``.venv/bin/python -m benchmarks.gpu.draft_model SHAPE DRAFT_SHAPE OUT.json``.

Both models have random weights and forced texts, as in `benchmarks.gpu.speculation`, and the large one's
vocabulary. The draft model is forced to guess a wrong token at random places, so that the acceptance rate
asked for holds in every 128 tokens. The same greedy requests are answered with drafts and without, by
turns. Beside the figures stands what they would be by the formula (Leviathan et al., 2023): a step with k
draft tokens yields (1 - rate^(k+1)) / (1 - rate) tokens, and takes the time of a step of that many lines
and of a draft of k tokens. Both times are the medians that the engine learned.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.checkpoints import SHAPES, describe_llama
from benchmarks.gpu import speculation, timing
from benchmarks.gpu.versions import versions
from server.continuous_batching import LLM
from server.models.decoder import Decoder
from server.scheduling.speculation.by_model import ModelSpeculator
from utils.commands import with_interpreter

BLOCKS_OF_A_ROW = 80
"""Of the cache: other engines find room beside this one."""
STRETCH = 128
"""Tokens of a text that have the rate exactly; texts of multiples of them do, too."""
RATES = (0.9, 0.8, 0.6, 0.0)
Load = Callable[[str, str, Path, int, int], LLM]
Force = Callable[[ModelSpeculator, float], None]


def guesses(vocab: int, rate: float) -> torch.Tensor:
    """int64 [vocab]: the follower of a share `rate` of all tokens, and of the others one that is none.

    The share is exact in each stretch of `STRETCH` tokens, so that it is that of every text, too.
    """
    follow, dice = speculation.followers(vocab), torch.Generator().manual_seed(1)
    before = speculation.CIRCLES + speculation.PROMPT_TOKENS - 1  # the first text begins behind them
    wrong = torch.zeros(vocab, dtype=torch.bool)
    places = (before + torch.arange(vocab)) % vocab
    for stretch in places.split(STRETCH):
        chosen = torch.randperm(len(stretch), generator=dice)[: round((1.0 - rate) * len(stretch))]
        wrong[stretch[chosen]] = True
    follow[wrong] = follow[follow[wrong]]
    return follow


def force_drafts(speculator: ModelSpeculator, rate: float) -> None:
    """Let the draft model say what `guesses` has."""
    model: Decoder = speculator._model._worker.runner.model  # type: ignore[attr-defined]
    weights = model.weights()
    embedding, head = weights["model.embed_tokens.weight"].tensor, weights["lm_head.weight"].tensor
    follow = guesses(len(head), rate)
    scale = speculation.EMBEDDED * embedding.shape[1] ** 0.5
    head.zero_()
    head.index_add_(0, follow.to(head.device), embedding / scale)


def load(shape: str, draft: str, directory: Path, rows: int, drafted: int) -> LLM:
    """An `LLM` of that shape with a draft model of another one."""
    large, small = directory / shape, directory / f"{draft}-for-{shape}"
    describe_llama(large, SHAPES[shape])
    describe_llama(small, replace(SHAPES[draft], vocab=SHAPES[shape].vocab))
    return load_forced(large, rows, draft_model=str(small), draft_num_tokens=drafted)


def load_forced(path: Path, rows: int, **speculation_config: Any) -> LLM:
    """An `LLM` with forced texts, for `rows` requests at once."""
    with mock.patch("server.models.load.load_weights", speculation.forced_weights):
        return LLM(
            path,
            model_loading_config={"torch_dtype": "bfloat16", "model_max_length": 4096},
            batcher_config={"batch_max_tokens": 16384, "batch_max_beams": rows},
            cache_config={
                "enable_prefix_cache": False, "num_blocks_cpu": 0, "num_blocks": BLOCKS_OF_A_ROW * rows,
            },
            speculation_config=speculation_config,
        )  # fmt: skip


def by_formula(speculator: ModelSpeculator, rate: float, rows: int, drafted: int) -> dict[str, float]:
    """Milliseconds for a token of each row, for the best number of drafted tokens up to `drafted`."""
    cost, found = speculator.cost, []
    for count in range(drafted + 1):
        tokens = sum(rate**place for place in range(count + 1))
        seconds = cost.seconds(rows * (count + 1)) + speculator.draft_cost.seconds(rows, count)
        found.append((1e3 * seconds / tokens, count))
    ms, count = min(found)
    return {"ms": ms, "drafted": count}


def compare(llm: LLM, force: Force, rate: float, rows: int, options: argparse.Namespace) -> dict[str, Any]:
    """Figures with and without drafts, by turns."""
    speculator = llm.engine.scheduler.speculator
    assert isinstance(speculator, ModelSpeculator)
    force(speculator, rate)
    asked = speculation.prompts("new", rows, SHAPES[options.shape].vocab)
    turns: dict[str, list[dict[str, Any]]] = {"plain": [], "drafts": []}
    equal = True
    for turn in range(-1, options.repeats):  # the first one warms up
        with mock.patch.object(speculator, "watch"):  # of these requests it never hears
            plain = speculation.answer(llm, "new", asked, options.tokens, 0)
        drafts = speculation.answer(llm, "new", asked, options.tokens, 0)
        equal &= plain.pop("answers") == drafts.pop("answers")
        if turn >= 0:
            turns["plain"].append(plain)
            turns["drafts"].append(drafts)
    plain_ms, ms = (statistics.median(turn["ms"] for turn in turns[kind]) for kind in turns)
    return {
        "rate": rate, "rows": rows, "plain_ms": plain_ms, "ms": ms, "speedup": plain_ms / ms,
        "by_formula": by_formula(speculator, rate, rows, options.drafted),
        "draft_ms": 1e3 * speculator.draft_cost.seconds(rows, options.drafted),
        "equal": equal, "turns": turns,
    }  # fmt: skip


def options_of(about: str | None, drafts: str, known: Collection[str] | None) -> argparse.Namespace:
    """The options of a comparison.

    Args:
        about: what the command says of itself.
        drafts: what the second argument is.
        known: what it may be; None: a number.
    """
    parser = argparse.ArgumentParser(
        description=with_interpreter(about), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("draft", choices=known, help=drafts)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", type=Path, default=Path("/tmp/models"))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=512, help="of each answer")
    parser.add_argument("--drafted", type=int, default=6, help="tokens of a draft at most")
    timing.add_gate(parser)
    return parser.parse_args()


def main() -> None:
    """Measure, show a line for each case, and write all there is so far."""
    options = options_of(__doc__, "shape of the draft model", SHAPES)
    measure(options, load, force_drafts, "MODEL")


def measure(options: argparse.Namespace, load_engine: Load, force: Force, workload: str) -> None:
    """Every case, in a line and in the file.

    Args:
        load_engine: as `load`.
        force: lets what drafts be right with a rate.
        workload: its name in reports.
    """
    compiled = speculation.watch_compiler()
    llm = load_engine(options.shape, options.draft, options.models, max(options.rows), options.drafted)
    compiled.clear()
    result: dict[str, Any] = {
        "versions": versions(), "engine": "own", "shape": options.shape, "draft": options.draft, "cases": [],
        "compiled_while_serving": compiled,
    }  # fmt: skip
    for _ in timing.turns(options.gate):
        for rows in options.rows:
            for rate in options.rates:
                case = compare(llm, force, rate, rows, options)
                result["cases"].append({"name": f"{workload} {rate}, {rows} rows", **case})
                speculation.save(result, options.out)
                _show(case, compiled)
        speculation.save(result, options.out, workload)


def _show(case: dict[str, Any], compiled: Collection[str]) -> None:
    drafted, accepted = speculation.drafted_and_accepted(case)
    print(
        f"rate {case['rate']:.1f} {case['rows']:3} rows  {case['plain_ms']:7.3f} ms  "
        f"drafts {case['ms']:7.3f} {case['speedup']:5.2f} ×  by formula {case['by_formula']['ms']:7.3f} ms  "
        f"{accepted} of {drafted} accepted  equal {case['equal']}  compiled {len(compiled)}",
        flush=True,
    )


if __name__ == "__main__":
    main()
