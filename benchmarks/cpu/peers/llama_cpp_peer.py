"""llama.cpp through its C interface: one `llama_decode` a step for all sequences, as its server does."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass, field
from typing import Any

import llama_cpp
import numpy as np

from benchmarks.cpu.peers.worker import serve
from benchmarks.cpu.workloads import Request

BATCH, SEQUENCES, CONTEXT, THREADS = 2048, 32, 640, 2


@dataclass(slots=True)
class Running:
    """A request in a slot of the cache."""

    request: int
    slot: int
    position: int
    last: int = 0
    made: int = 0


@dataclass(slots=True)
class Server:
    """A model with its context, and arrays over the memory of its batch."""

    context: Any
    memory: Any
    vocab: int
    batch: Any
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str, threads: int) -> Server:
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = SEQUENCES * CONTEXT, SEQUENCES
        params.n_batch, params.n_ubatch = BATCH, 512
        params.n_threads = params.n_threads_batch = threads
        context = llama_cpp.llama_init_from_model(model, params)
        if not model or not context:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        server = cls(context, llama_cpp.llama_get_memory(context), vocab, batch)
        for name, kind in (("token", "int32"), ("pos", "int32"), ("n_seq_id", "int32"), ("logits", "int8")):
            pointer = ctypes.cast(
                getattr(batch, name), ctypes.POINTER(np.ctypeslib.as_ctypes_type(np.dtype(kind)))
            )
            server.arrays[name] = np.ctypeslib.as_array(pointer, (BATCH,))
        server.arrays["n_seq_id"][:] = 1
        return server

    def put(self, row: int, tokens: list[int], position: int, slot: int) -> int:
        """Add tokens of a sequence at `row`; the last one's logits are wanted. Returns the next row."""
        end = row + len(tokens)
        self.arrays["token"][row:end] = tokens
        self.arrays["pos"][row:end] = range(position, position + len(tokens))
        self.arrays["logits"][row:end] = 0
        self.arrays["logits"][end - 1] = 1
        for at in range(row, end):
            self.batch.seq_id[at][0] = slot
        return end

    def best(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self.context, row)
        return int(np.ctypeslib.as_array(logits, (self.vocab,)).argmax())

    def run(self, work: list[Request]) -> list[int]:
        llama_cpp.llama_memory_clear(self.memory, False)
        waiting, free = list(range(len(work)))[::-1], list(range(SEQUENCES))
        running: list[Running] = []
        made = [0] * len(work)
        while waiting or running:
            row, last_rows = 0, []
            for one in running:
                row = self.put(row, [one.last], one.position, one.slot)
                one.position += 1
                last_rows.append(row - 1)
            while waiting and free and row + len(work[waiting[-1]][0]) <= BATCH:
                request = waiting.pop()
                prompt, slot = work[request][0], free.pop()
                row = self.put(row, prompt, 0, slot)
                running.append(Running(request, slot, len(prompt)))
                last_rows.append(row - 1)
            self.batch.n_tokens = row
            if llama_cpp.llama_decode(self.context, self.batch):
                raise RuntimeError("llama_decode failed")
            for one, at in zip(running, last_rows, strict=True):
                one.last = self.best(at)
                one.made += 1
                made[one.request] = one.made
                if one.made == work[one.request][1]:
                    llama_cpp.llama_memory_seq_rm(self.memory, one.slot, -1, -1)
                    free.append(one.slot)
            running = [one for one in running if one.made < work[one.request][1]]
        return made


def main() -> None:
    threads = int(sys.argv[2]) if len(sys.argv) > 2 else THREADS
    serve(Server.load(sys.argv[1], threads).run, "llama-cpp-python")


if __name__ == "__main__":
    main()
