"""The same requests through GuideLLM, a public load generator, and through this one.

    python3 -m venv /tmp/guidellm && /tmp/guidellm/bin/pip install guidellm==0.8.1
    .venv/bin/python -m benchmarks.loadgen.crosscheck --guidellm /tmp/guidellm/bin/guidellm \\
        --url http://127.0.0.1:8001 --model demo --tokenizer demo_model/checkpoint

Both keep the same number of streams of ``/v1/completions`` open, in turn; the figures should agree within 5 %
on a machine that does nothing else. GuideLLM starts several processes, which a small machine that
also runs the server does not have the cores for: then it, not the server, is what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import uvloop

from benchmarks.loadgen.arrivals import parse_arrivals
from benchmarks.loadgen.endpoint import Endpoint
from benchmarks.loadgen.measures import Objective, summarise
from benchmarks.loadgen.run import run
from benchmarks.loadgen.traffic import Request
from utils.commands import with_interpreter

TEXT = "the cat sat on a mat and then it ran far away to see the sun rise over hills"

Figures = dict[str, float]


def requests(count: int, seed: int = 0) -> list[Request]:
    """Text prompts of 10 to 60 words with answers of 16 to 64 tokens."""
    random, words = np.random.default_rng(seed), TEXT.split()
    return [
        Request(" ".join(random.choice(words, random.integers(10, 61))), int(random.integers(16, 65)))
        for _ in range(count)
    ]


def ours(endpoint: Endpoint, wanted: list[Request], streams: int) -> Figures:
    """The figures of this load generator."""
    records = uvloop.run(run(endpoint, wanted, parse_arrivals(f"closed:{streams}")))
    summary = summarise(records, Objective())
    if summary.errors:
        raise RuntimeError(f"requests failed: {summary.errors}")
    return {
        "requests/s": summary.requests_per_second,
        "tokens/s": summary.tokens_per_second,
        "latency p50, s": summary.latency["p50"],
        "latency p95, s": summary.latency["p95"],
        "first token p50, ms": 1000 * summary.ttft["p50"],
        "per token p50, ms": 1000 * summary.tpot["p50"],
    }


def guidellm(
    program: Path, endpoint: Endpoint, wanted: list[Request], streams: int, tokenizer: str
) -> Figures:
    """The figures of GuideLLM, from the records of its requests where it defines them otherwise."""
    with tempfile.TemporaryDirectory() as directory:
        data, output = Path(directory, "data.json"), Path(directory, "output.json")
        rows = [{"prompt": one.prompt, "output_tokens_count": one.new_tokens} for one in wanted]
        data.write_text(json.dumps(rows))
        backend = f"kind=openai_http,target={endpoint.url},model={endpoint.model}"
        command = [str(program), "run", "--backend", f"{backend},request_format=/v1/completions"]
        command += ["--profile", f"kind=concurrent,streams={streams}", "--disable-console"]
        command += ["--constraint", f"kind=max_requests,count={len(wanted)}"]
        command += ["--data", f"kind=json_file,path={data}", "--tokenizer", f"kind=hf_auto,model={tokenizer}"]
        command += ["--output", f"kind=json,path={output}"]
        subprocess.run(command, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        metrics = json.loads(output.read_text())["benchmarks"][0]["metrics"]

    def of(name: str, which: str = "median") -> float:
        values = metrics[name]["successful"]
        return float(values["percentiles"][which] if which.startswith("p") else values[which])

    return {
        "requests/s": of("requests_per_second", "mean"),
        "tokens/s": of("output_tokens_per_second", "mean"),
        "latency p50, s": of("request_latency"),
        "latency p95, s": of("request_latency", "p95"),
        "first token p50, ms": of("time_to_first_token_ms"),
        # GuideLLM's time per output token counts the first one; its inter-token latency is ours
        "per token p50, ms": of("inter_token_latency_ms"),
    }


def main() -> None:
    """Run both in turn and print the medians beside each other."""
    parser = argparse.ArgumentParser(
        description=with_interpreter(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--guidellm", type=Path, required=True, help="its program")
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokenizer", required=True, help="directory of the model's tokenizer")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    endpoint = Endpoint("server", args.url.rstrip("/"), args.model)
    wanted = requests(args.requests)
    here, there = [], []
    for _ in range(args.repeats):
        here.append(ours(endpoint, wanted, args.streams))
        there.append(guidellm(args.guidellm, endpoint, wanted, args.streams, args.tokenizer))
    for name in here[0]:
        mine, other = (statistics.median(one[name] for one in runs) for runs in (here, there))
        print(f"{name:20} {mine:10.4g} here {other:10.4g} GuideLLM  {100 * (mine / other - 1):+.1f} %")


if __name__ == "__main__":
    main()
