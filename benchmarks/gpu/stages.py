"""What the command of this package measures: every process of every engine, with its workloads."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from benchmarks.checkpoints import SHAPES
from benchmarks.gpu.room import BLOCK_TOKENS, gigabytes_of
from benchmarks.gpu.workloads import peak_blocks, workload

PLAIN = ["W1", "W2", "W3", "W4"]
SAMPLED = ["TOPP", "OPTIONS"]
LONG = ["L1", "L2", "H1", "P1"]
SERVED = ["AT4", "AT12", "AT20", "AT28"]
DRAFTS = ["LOOKUP", "HEAD", "MODEL"]
"""Tokens are drafted by prompt lookup, by an EAGLE-3 head, by a small model."""
OTHERS = ["W1", "W2", "S1"]
"""Of shapes that nothing was tuned for."""
EXTRA = [*SAMPLED, "SWAP", "BEAM", "FULL", "HTTP", "STREAM", "S1", *LONG, *SERVED, *DRAFTS, "TESTS"]
ENGINES = {
    **dict.fromkeys(("own", "over_http", "speculation", "draft_head", "draft_model"), "own"),
    **dict.fromkeys(("peer_vllm", "peer_vllm_speculation"), "vllm"),
    "peer_transformers": "transformers",
}
"""Which engine each module of this package measures; ``served`` measures the one that its flag says."""
LASTS = {
    **dict.fromkeys(("W1", "TOPP", "OPTIONS", "FULL", "HTTP", "STREAM"), 5), "SWAP": 3, "BEAM": 2,
    "L1": 4, "H1": 5, "P1": 3, "AT4": 7, "AT12": 2,
}  # fmt: skip
"""How many times as long a workload takes as W2 does, about; 1: those that are not here."""
DRAFTING_GIGABYTES = 20.0
"""Of a draft model or head, and its cache."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One process of one engine.

    Attributes:
        module: in this package.
        workloads: what it runs.
        start: seconds, about, until it begins to measure.
        repeat: seconds, about, that all its workloads take once.
        label: tells it from other stages of the engine.
        flags: of its command line; `blocks`, the size of its cache.
        asked: second argument of its command; empty: the names of the workloads.
        alone: no other engine is loaded beside it: it takes all memory, or the host's time counts.
    """

    module: str
    workloads: list[str]
    start: int
    repeat: int
    label: str = ""
    flags: dict[str, int | str] = field(default_factory=dict)
    asked: str = ""
    alone: bool = False

    def gigabytes(self, shape: str) -> float:
        """What it takes of a GPU's memory at most, if it is not `alone`."""
        drafting = DRAFTING_GIGABYTES if self.module in ("draft_head", "draft_model") else 0.0
        return gigabytes_of(SHAPES[shape], int(self.flags.get("blocks", 0))) + drafting

    def seconds(self, names: Iterable[str]) -> float:
        """What it takes, about, to run some of its workloads once."""
        lasts, every = (sum(LASTS.get(name, 1) for name in each) for each in (names, self.workloads))
        return self.repeat * lasts / every

    @property
    def engine(self) -> str:
        """What is measured."""
        return str(self.flags.get("engine") or ENGINES[self.module])


def stages(shape: str, engines: Collection[str]) -> list[Stage]:
    """What there is to measure of `engines` on a shape, the bars' own figures and their peers' first."""
    if shape not in ("1b", "8b"):
        return [
            stage
            for stage in (
                Stage("own", OTHERS, 90, 90, flags=_room(OTHERS)),
                Stage("peer_vllm", OTHERS, 120, 90, flags=_room(OTHERS)),
            )
            if stage.engine in engines
        ]
    large = shape == "8b"
    small = not large  # vLLM launched steps of 2 ms more slowly beside three idle engines
    own = [*PLAIN, *SAMPLED, "SWAP", *(["BEAM"] if large else [])]
    room = _room(PLAIN)
    found = [
        Stage(
            "own", own, *((60, 75) if large else (45, 15)), flags=room | {"host_blocks": 1000}, alone=small
        ),
        Stage("peer_vllm", [*PLAIN, *SAMPLED], *((100, 65) if large else (100, 30)), flags=room, alone=small),
    ]
    if large:
        blocks = peak_blocks(workload("FULL"), BLOCK_TOKENS) // 4
        found.append(Stage("own", ["FULL"], 30, 30, "-full", {"blocks": blocks, "host_blocks": 4000}))
        found.append(Stage("peer_vllm", ["FULL"], 90, 40, "-full", {"blocks": blocks}))
        long = _room(["L1", "L2", "H1"]) | {"long": 1}  # what P1 needs most of is shared
        found.append(Stage("own", LONG, 60, 60, "-long", long))
        found.append(Stage("peer_vllm", LONG, 100, 70, "-long", long))
        for engine, start in (("own", 45), ("vllm", 90)):
            flags: dict[str, int | str] = {"engine": engine, "seconds": 250}  # of which 4 a second make 1,000
            found.append(Stage("served", SERVED, start, 430, f"-{engine}", flags, alone=True))
        found += _with_drafts()
    found.append(Stage("peer_transformers", PLAIN, *((40, 90) if large else (30, 45)), alone=True))
    found.append(Stage("over_http", ["HTTP", "STREAM"], 45, 40 if large else 20, alone=True))
    return [stage for stage in found if stage.engine in engines]


def _room(workloads: Iterable[str]) -> dict[str, int | str]:
    """The flag for a cache that holds each of `workloads` at its peak, and some blocks to spare."""
    peak = max(peak_blocks(workload(name), BLOCK_TOKENS) for name in workloads)
    return {"blocks": peak * 5 // 4}


def _with_drafts() -> list[Stage]:
    """Each command compares with and without by turns, but vLLM's, which runs one of both."""
    blocks: dict[str, int | str] = {"blocks": 8_000}  # 256 rows of 384 tokens, and what they draft
    plain = blocks | {"drafted": 0}
    return [
        Stage("speculation", ["LOOKUP"], 60, 30, flags=blocks, asked="repeats,new,noise"),
        Stage("peer_vllm_speculation", ["LOOKUP"], 110, 40, "-drafts", blocks, "repeats,new"),
        Stage("peer_vllm_speculation", ["LOOKUP"], 110, 40, "-plain", plain, "repeats,new"),
        Stage("draft_head", ["HEAD"], 60, 75, asked="32000"),
        Stage("draft_model", ["MODEL"], 70, 75, asked="1b"),
    ]
