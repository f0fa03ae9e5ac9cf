"""What transformers says of continuations: the oracle of lm-eval's rows, run by the stack's Python.

    python -m tests.clients.score CHECKPOINT < PAIRS > SCORES

`PAIRS` is JSON, ``[[context token ids, continuation token ids], …]``; `SCORES` has for each the log
probability of the continuation in float32, and whether each of its tokens is the likeliest.
"""

from __future__ import annotations

import json
import sys

import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
    scores = []
    with torch.inference_mode():
        for context, continuation in json.load(sys.stdin):
            ids = torch.tensor([context + continuation])
            logs = model(ids).logits[0, len(context) - 1 : -1].log_softmax(dim=-1)
            chosen = torch.tensor(continuation)
            logprob = logs.gather(1, chosen.unsqueeze(1)).sum().item()
            scores.append([logprob, bool((logs.argmax(dim=-1) == chosen).all())])
    json.dump(scores, sys.stdout)


if __name__ == "__main__":
    main()
