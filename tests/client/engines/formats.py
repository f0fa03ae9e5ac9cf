"""The formats of vLLM, SGLang and llama.cpp, as their documentation and sources have them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """How one engine writes what the gateway reads."""

    name: str
    owner: str
    gauges: tuple[str, str]
    about: str
    tells_ids: bool
    open: tuple[str, ...]
    """Beginnings of the paths that need no key."""

    def card(self, model: str) -> Json:
        card: Json = {"id": model, "object": "model", "created": 1, "owned_by": self.owner}
        if self.owner == "llamacpp":
            return card | {"aliases": ["short"], "tags": [], "meta": {"n_ctx": 512, "n_ctx_train": 4096}}
        return card | {"root": model, "parent": None, "max_model_len": 512}

    def metrics(self, running: int, waiting: int) -> str:
        labels = "" if self.owner == "llamacpp" else '{engine="0",model_name="odd \\"}name"}'
        lines = []
        for name, value in zip(self.gauges, (running, waiting), strict=True):
            lines += [
                f"# HELP {name} some words {name} 7",
                f"# TYPE {name} gauge",
                f"{name}{labels} {value}.0",
            ]
            lines += [f'{name}_by_reason{{reason="capacity"}} 900.0']
        return "\n".join(lines) + "\n"

    def told(self) -> Json:
        """The answer of `about`."""
        told: dict[str, Json] = {
            "vllm": {"version": "0.32.0"},
            "sglang": {
                "version": "0.5.23",
                "max_running_requests": None,
                "internal_states": [{"effective_max_running_requests_per_dp": 6}] * 2,
            },
            "llamacpp": {"build_info": "b11434-abc", "total_slots": 4, "default_generation_settings": {}},
        }
        return told[self.owner]

    def choice(self, text: str, reason: str | None, ids: list[int] | None, prompt: list[int] | None) -> Json:
        """A choice of a completion's chunk."""
        choice: Json = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
        if self.owner == "vllm":
            return choice | {"stop_reason": None, "prompt_token_ids": prompt, "token_ids": ids}
        if self.owner == "sglang":
            choice |= {"matched_stop": None}
            choice |= {} if ids is None else {"token_ids": ids}
            choice |= {} if prompt is None else {"prompt_token_ids": prompt}
        return choice

    def chunk(
        self, created: int, request_id: str, model: str, choices: list[Json], usage: Json | None
    ) -> Json:
        chunk: Json = {"id": f"cmpl-{request_id}", "object": "text_completion", "created": created}
        chunk |= {"model": model, "choices": choices}
        if usage is not None:
            return chunk | {"usage": usage}
        return chunk | ({"usage": None} if self.owner == "sglang" else {})

    def error(self, status: int, message: str, param: str | None = None) -> bytes:
        """The body of an answer that is an error."""
        kind = {400: "BadRequestError", 404: "NotFoundError"}.get(status, "InternalServerError")
        if self.owner == "llamacpp":
            return json.dumps(
                {"error": {"code": status, "message": message, "type": "server_error"}}
            ).encode()
        told = {"message": message, "type": kind, "param": param, "code": status}
        if self.owner == "sglang":
            return json.dumps({"object": "error", **told}).encode()
        return json.dumps({"error": told}).encode()

    def stream_error(self, message: str) -> bytes:
        """The last events of a stream that failed."""
        told = {"message": message, "type": "InternalServerError", "param": None, "code": 500}
        return f"data: {json.dumps({'error': told})}\n\n".encode() + b"data: [DONE]\n\n"


VLLM = Format(
    name="vLLM",
    owner="vllm",
    gauges=("vllm:num_requests_running", "vllm:num_requests_waiting"),
    about="/version",
    tells_ids=True,
    open=("/version", "/health", "/metrics", "/tokenize"),
)
SGLANG = Format(
    name="SGLang",
    owner="sglang",
    gauges=("sglang:num_running_reqs", "sglang:num_queue_reqs"),
    about="/server_info",
    tells_ids=True,
    open=("/health", "/ready", "/metrics"),
)
LLAMA_CPP = Format(
    name="llama.cpp",
    owner="llamacpp",
    gauges=("llamacpp:requests_processing", "llamacpp:requests_deferred"),
    about="/props",
    tells_ids=False,
    open=("/health",),
)
FORMATS = (VLLM, SGLANG, LLAMA_CPP)
