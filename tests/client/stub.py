"""A server of the stack without a model, on real sockets, whose every misbehaviour can be scripted.

What it generates is a function of the prompt alone, so answers can be compared across servers, deaths and
retries. It speaks HTTP by hand: what it sends when it misbehaves is no HTTP library's idea of an answer.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from benchmarks.ports import free_port
from protocol.accepts import Accepts
from protocol.completion import Resume
from protocol.errors import ApiError, model_not_found, unavailable
from protocol.sse import DONE, checkpoint, event
from protocol.status import ServerLoad, ServerState, ServerStatus, ServiceKind
from tests.client.calls import OF_STATIC, Call, text_of, tokens_of, usage_of

CREATED = 1_700_000_000
BUSY = 20
"""`others` of a server that is not to be the first choice."""


@dataclass
class Stub:
    """The server; attributes below the line script it, at any time."""

    model: str = "m"
    kind: ServiceKind = "continuous_batching"
    # ---
    state: ServerState = ServerState.READY
    seconds_per_token: float = 0.0
    others: int = 0
    """Requests of other gateways that it reports."""
    refusal: ApiError | None = None
    """Answer to every completion."""
    die_after: int | None = None
    """Abort the connection after this number of events, or before a whole answer, once."""
    stream_error: ApiError | None = None
    """Ends the next stream after two tokens."""
    raw: bytes | None = None
    """Sent in place of every completion answer; then the connection is closed."""
    says: dict[str, Any] = field(default_factory=dict)
    """Stands in its status in place of what is true."""
    raw_status: bytes | None = None
    """The same in place of the status."""
    late_end: float = 0.0
    """Seconds between the last event of a stream and the end of its HTTP message."""
    padding: str = ""
    """Follows every token's text in a stream."""
    accepts: Accepts | None = None
    weights: str | None = None
    """Its fingerprint; without one it is a server that tells none, and knows nothing of it."""
    hung: bool = False
    """Read everything, answer nothing."""
    # ---
    calls: list[Call] = field(default_factory=list)
    probes: int = 0
    port: int = field(default_factory=free_port)
    connections: set[asyncio.StreamWriter] = field(default_factory=set)
    _server: asyncio.Server | None = None
    _hang_over: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        if self.accepts is None and self.kind == "static_batching":
            self.accepts = OF_STATIC

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def live(self) -> int:
        """Completions being answered."""
        return sum(not call.finished for call in self.calls)

    async def start(self) -> None:
        """Listen, on the same port each time."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=2**25)

    async def kill(self) -> None:
        """Do as kill -9: refuse new connections, reset the open ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self.connections):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # cancelled when the test's loop ends
        finally:
            self.connections.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False to close the connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        request, *lines = head.split("\r\n")
        method, path, _ = request.split(" ")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if self.hung:
            await reader.read()
            return False
        if method == "GET":
            self.probes += 1
            return await self._get(path, headers, writer)
        call = Call(path, headers, json.loads(body))
        self.calls.append(call)
        work = asyncio.create_task(self._complete(call, writer))
        gone = asyncio.create_task(reader.read(1))  # nothing is pipelined: a byte is the end
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        left = gone.done()
        work.cancel()
        gone.cancel()
        done, _ = await asyncio.gather(work, gone, return_exceptions=True)
        call.finished = True
        if isinstance(done, Exception) and not isinstance(done, ConnectionError):
            raise done  # a fault of the stub or of what it was asked
        return done is True and not left

    async def _get(self, path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> bool:
        return await self._status(writer)

    async def _status(self, writer: asyncio.StreamWriter) -> bool:
        if self.raw_status is not None:
            writer.write(self.raw_status)
            return False
        status = ServerStatus(
            service=self.kind,
            state=self.state,
            model_id=self.model,
            version="stub",
            uptime_seconds=1.0,
            load=ServerLoad(running=self.live + self.others),
            accepts=self.accepts,
            fingerprint=self.weights,
        )
        said = status.model_dump(mode="json") | self.says
        await self._whole(writer, 200, json.dumps(said).encode())
        return True

    async def _complete(self, call: Call, writer: asyncio.StreamWriter) -> bool:
        if self.raw is not None:
            writer.write(self.raw)
            await writer.drain()
            return False
        refusal = self.refusal
        if call.body["model"] != self.model:
            refusal = model_not_found(call.body["model"], [self.model])
        if refusal is not None:
            await self._whole(writer, refusal.status, refusal.json(), refusal.headers)
            return True
        if call.body.get("stream"):
            return await self._stream(call, writer)
        await asyncio.sleep(self.seconds_per_token * call.count)
        if self._dies(0):
            writer.transport.abort()
            return False
        text = text_of(tokens_of(call.prompt, call.count))
        answer = self._envelope(call, [self._choice(call, text, "length")], CREATED) | usage_of(call)
        await self._whole(writer, 200, json.dumps(answer).encode())
        return True

    async def _stream(self, call: Call, writer: asyncio.StreamWriter) -> bool:
        resume = Resume.model_validate(call.body["resume"]) if "resume" in call.body else None
        ids = tokens_of(call.prompt, call.count)
        done = len(resume.choices[0].token_ids) if resume else 0
        if resume and resume.weights not in (None, self.weights):
            error = unavailable("other weights", code="other_weights")
            await self._whole(writer, error.status, error.json(), error.headers)
            return True
        if resume and resume.choices[0].token_ids != ids[:done]:
            raise AssertionError("resumed from other tokens than were sent")
        created = resume.created if resume else CREATED
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
            b"Transfer-Encoding: chunked\r\n"
            + (b"" if self.weights is None else f"x-server-weights: {self.weights}\r\n".encode())
            + b"\r\n"
        )
        for sent, i in enumerate(range(done, len(ids))):
            if self._dies(sent):
                writer.write(b"40\r\n: tokens 0 77\ndata: {")  # in the middle of an event
                await asyncio.sleep(0.02)  # or those before it are lost with the connection
                writer.transport.abort()
                return False
            if self.stream_error is not None and sent == 2:
                error, self.stream_error = self.stream_error, None
                self._piece(writer, event(error.json(), name="error"))
                break
            await asyncio.sleep(self.seconds_per_token)
            last = i == len(ids) - 1
            comments = b""
            if call.headers.get("x-stream-checkpoint") == "1":
                comments = checkpoint(0, [ids[i]], last)
            choice = self._choice(call, text_of([ids[i]]) + self.padding, "length" if last else None)
            data = self._envelope(call, [choice], created)
            self._piece(writer, event(json.dumps(data).encode(), comments=comments))
            await writer.drain()
        else:
            data = self._envelope(call, [], created) | usage_of(call)
            self._piece(writer, event(json.dumps(data).encode()) + DONE)
        await asyncio.sleep(self.late_end)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    def _dies(self, sent: int) -> bool:
        if self.die_after is None or sent < self.die_after:
            return False
        self.die_after = None
        return True

    def _choice(self, call: Call, text: str, reason: str | None) -> dict[str, Any]:
        content: dict[str, Any] = {"text": text}
        if call.chat and call.body.get("stream"):
            content = {"delta": {"content": text}}
        elif call.chat:
            content = {"message": {"role": "assistant", "content": text, "refusal": None}}
        return {"index": 0, **content, "finish_reason": reason}

    def _envelope(self, call: Call, choices: list[dict[str, Any]], created: int) -> dict[str, Any]:
        if call.path.startswith("/completion"):
            return {"choices": choices}
        kind = "text_completion"
        if call.chat:
            kind = "chat.completion.chunk" if call.body.get("stream") else "chat.completion"
        return {
            "id": f"cmpl-{call.headers.get('x-request-id')}",
            "object": kind,
            "created": created,
            "model": self.model,
            "choices": choices,
        }

    def _piece(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))

    async def _whole(
        self, writer: asyncio.StreamWriter, status: int, body: bytes, headers: dict[str, str] | None = None
    ) -> None:
        head = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {len(body)}"]
        head += [f"{name}: {value}" for name, value in (headers or {}).items()]
        writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
        await writer.drain()


@asynccontextmanager
async def stubs(*servers: Stub) -> AsyncIterator[None]:
    """`servers` listening while the block lasts."""
    for server in servers:
        await server.start()
    try:
        yield
    finally:
        for server in servers:
            await server.kill()


@asynccontextmanager
async def short_lives(servers: Sequence[Stub], events: int) -> AsyncIterator[None]:
    """Each of `servers` dies whenever it has sent `events` events, or was about to answer whole."""

    async def keep_killing() -> None:
        while True:
            for server in servers:
                if server.die_after is None:
                    server.die_after = events
            await asyncio.sleep(0.001)

    killing = asyncio.create_task(keep_killing())
    try:
        yield
    finally:
        killing.cancel()


async def _main() -> None:
    """A stub as a process, to be killed: ``python -m tests.client.stub PORT SECONDS_PER_TOKEN``."""
    server = Stub(port=int(sys.argv[1]), seconds_per_token=float(sys.argv[2]))
    await server.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
