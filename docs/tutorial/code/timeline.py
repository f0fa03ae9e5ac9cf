"""Chapter 3: the same eight requests, batched as a package and step by step.

.venv/bin/python -m docs.tutorial.code.timeline
"""

from __future__ import annotations

from docs.tutorial.code.common import DEMO, table
from docs.tutorial.steps.model import Llama
from docs.tutorial.steps.step2_static import generate
from docs.tutorial.steps.step3_iteration import Engine, Request

PROMPT = [1, *range(100, 111)]
LIMITS = [4, 30, 8, 12, 4, 10, 6, 20]
ROWS = 4


class Recorder(Engine):
    """Keeps a picture of every step."""

    def __init__(self, model: Llama, requests: list[Request], **limits: int) -> None:
        super().__init__(model, **limits)
        self.lines = dict.fromkeys(requests, "")

    def step(self) -> None:
        before = {request: sum(s.computed for s in request.sequences) for request in self.lines}
        super().step()
        for request, line in self.lines.items():
            now = sum(s.computed for s in request.sequences)
            if request.answers:
                sign = "·" if line.endswith(("■", "·")) and now == 0 and before[request] == 0 else "■"
            else:
                sign = " " if now == 0 else "▒" if now <= len(PROMPT) else "■"
            self.lines[request] += sign


def main(argv: list[str] | None = None) -> None:
    model = Llama(DEMO)
    model.eos = -1  # the lengths are given here
    static_passes = static_steps = useful = 0
    expected = []
    for start in range(0, len(LIMITS), ROWS):
        limits = LIMITS[start : start + ROWS]
        answers, work = generate(model, [PROMPT] * ROWS, limits)
        expected += answers
        static_passes += max(limits)
        static_steps += work.decoded
        useful += work.useful
    requests = [Request(PROMPT, limit) for limit in LIMITS]
    engine = Recorder(model, requests, max_rows=ROWS, max_tokens=16)
    answers = [one for (one,) in engine.run(*requests)]
    for number, line in enumerate(engine.lines.values()):
        print(f"request {number}  {line.rstrip('·')}")
    print(f"▒ prompt, ■ decoding; the answers are the same: {answers == expected}")
    decoded = sum(map(len, answers))
    rows = sum(map(len, engine.trace))
    table(
        ["", "forward passes", "row-steps", "useful"],
        [
            ["packages of 4", static_passes, static_steps, f"{useful / static_steps:.0%}"],
            ["step by step", len(engine.trace), rows, f"{decoded / rows:.0%}"],
        ],
    )


if __name__ == "__main__":
    main()
