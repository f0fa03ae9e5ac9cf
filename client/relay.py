"""The way of a request to a replica and of the answer back, with as many attempts as are safe."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable

import aiohttp

from client.assemble import STREAMING, Assembly, Recovery
from client.classify import (
    OK,
    AnswerTimeout,
    AttemptFailed,
    Outcome,
    ReplicaHung,
    StreamFailed,
    Suspicion,
    Verdict,
    describe,
    of_error,
)
from client.config import GatewayConfig, Settings
from client.exchange import Answer, Exchange, Sink
from client.metrics import Metrics
from client.replicas import Registry, Replica
from client.reply import RawHeaders, Reply
from client.request import InferenceRequest
from client.resume import Journal, resumed_body
from client.retry import MAX_ENGINES_LOST, Attempts, RetryBudget
from client.router import Router
from client.watch import ClientStalled, Watch
from protocol.errors import SERVER_ERROR, TIMEOUT, ApiError, internal, unavailable
from protocol.headers import RETRY_AFTER, SHOULD_RETRY

logger = logging.getLogger(__name__)

_COME_BACK: RawHeaders = [(RETRY_AFTER.encode(), b"1")]
_HEADERS: dict[int, RawHeaders] = {
    408: _COME_BACK,
    409: [(SHOULD_RETRY.encode(), b"false")],
    429: _COME_BACK,
    503: _COME_BACK,
}
"""Headers of errors that came without, for instance as events of a stream."""


class Relay:
    """Answers requests with the help of the servers.

    Args:
        clock: monotonic seconds.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        settings: Settings,
        registry: Registry,
        router: Router,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._session = session
        self._settings = settings
        self._registry = registry
        self._router = router
        self._metrics = metrics
        self._clock = clock
        self._budget = RetryBudget()

    @property
    def config(self) -> GatewayConfig:
        return self._settings.config

    async def answer(self, request: InferenceRequest, watch: Watch, reply: Reply) -> None:
        """Answer `request` on `reply`.

        Raises:
            ApiError: no server could answer.
            ClientGone: the client left.
            ClientStalled: the client stopped reading.
        """
        self._budget.earn(self.config.retry_ratio)
        journal = Journal(keep_checkpoints=request.checkpoints) if request.stream else None
        recovery: Recovery | None = None
        attempts = Attempts()
        result: Answer | Exception | None = None
        while True:
            pieces = journal.pieces if journal else 0
            replica = self._router.choose(request, attempts.tried)
            if replica is None:
                if isinstance(result, Answer) and result.status == 429 and not pieces:
                    break  # all are full, and say so; an answer that was cut waits for room
                replica = await self._wait(request, attempts, watch, begun=pieces > 0)
            if recovery is None or recovery.assembly is None:
                result = await self._attempt(request, replica, watch, reply, journal)
            else:
                result = await self._assemble(request, replica, watch, reply, recovery.assembly)
            if result is None:
                self._judge(replica, OK, result)
                return
            verdict = result.verdict() if isinstance(result, Answer) else of_error(result)
            self._judge(replica, verdict, result)
            if not verdict.retry:
                break
            attempts.note(replica, verdict, progressed=journal is not None and journal.pieces > pieces)
            if not attempts.may_go_on(verdict, self.config.max_attempts, self._budget):
                if attempts.engines_lost == MAX_ENGINES_LOST:
                    raise _too_many_engines_lost()
                break
            if not request.stream:
                recovery = recovery or Recovery(request)
                recovery.note(result, verdict)
                journal = recovery.assembly.journal if recovery.assembly else None
            self._metrics.retries += 1
            watch.phase(self._clock(), float("inf"), ClientStalled)
            with watch:
                await asyncio.sleep(attempts.delay(random.random()))
        watch.phase(self._clock(), self.config.client_timeout_seconds, ClientStalled)
        with watch:
            await self._close(reply, result)

    async def _attempt(
        self,
        request: InferenceRequest,
        replica: Replica,
        watch: Watch,
        sink: Sink,
        journal: Journal | None,
    ) -> Answer | Exception | None:
        """Ask `replica`: a whole answer, or what went wrong, or None after a stream that went well."""
        body = request.body
        if journal is not None:
            journal.new_connection()
            if journal.pieces:
                resume = journal.resume(request.choices, int(time.time()), request.fields.get("resume"))
                body = resumed_body(request.fields, resume)
                self._metrics.resumes += 1
        replica.breaker.sent()
        try:
            lease = replica.load.lease(request.work, request.rows, lambda: watch.give_up(ReplicaHung()))
            with lease, watch:
                exchange = Exchange(
                    self._session, self.config, self._clock, request, replica, lease, watch, self._metrics
                )
                return await exchange.run(body, sink, journal)
        except (aiohttp.ClientError, OSError, AttemptFailed) as error:
            return error
        except BaseException:
            replica.breaker.neutral()  # the client left: nothing is known of the server
            raise

    async def _assemble(
        self, request: InferenceRequest, replica: Replica, watch: Watch, reply: Reply, assembly: Assembly
    ) -> Answer | Exception | None:
        """`_attempt` for a whole answer that was lost before: as a stream, if `replica` can."""
        if replica.kind != STREAMING:
            return await self._attempt(request, replica, watch, reply, None)
        result = await self._attempt(assembly.request, replica, watch, assembly, assembly.journal)
        return assembly.outcome(result)

    async def _wait(
        self, request: InferenceRequest, attempts: Attempts, watch: Watch, *, begun: bool
    ) -> Replica:
        """A replica for `request`, of which those that are ready failed it already, if any.

        What refused once is asked again if nobody else comes: it may have room by then.

        Args:
            begun: some of the answer has come already.
        """
        patience = self.config.stream_wait_seconds if begun else self.config.replica_wait_seconds
        attempts.tried.clear()
        return await self._router.wait(request, watch, patience)

    def _judge(self, replica: Replica, verdict: Verdict, result: Answer | Exception | None) -> None:
        """Draw the consequences of an attempt for the replica."""
        self._metrics.attempt(replica, verdict.outcome)
        if verdict.outcome is Outcome.SUCCESS:
            replica.breaker.success()
            return
        reason = describe(result) if isinstance(result, Exception) else str(result)
        if verdict.outcome is Outcome.FAILURE:
            logger.warning("%s: %s", replica.url, reason)
            replica.breaker.failure(self._clock())
        else:
            replica.breaker.neutral()
        if verdict.suspicion is Suspicion.DOWN:
            self._registry.refused(replica, reason)
        elif verdict.suspicion is Suspicion.PROBE:
            self._registry.suspect(replica, reason)

    async def _close(self, reply: Reply, result: Answer | Exception) -> None:
        """Tell the client what the last attempt brought."""
        if isinstance(result, StreamFailed) and not result.retryable:
            await reply.error_event(result.event)
        elif isinstance(result, Answer) and reply.status:
            logger.error("a stream was not continued: %s %r", result, result.body[:500])
            raise unavailable("the stream was cut and no server went on with it", code="upstream_failed")
        elif isinstance(result, Answer) and result.is_json:
            await reply.whole(result.status, result.body, result.headers or _HEADERS.get(result.status, []))
        elif isinstance(result, AnswerTimeout):
            raise ApiError(504, str(result), type=TIMEOUT, code="upstream_timeout")
        elif isinstance(result, Answer):
            raise internal(f"the server answered {result.status} without saying why")
        else:
            raise unavailable("the servers of this model failed to answer", code="upstream_failed")


def _too_many_engines_lost() -> ApiError:
    """503 that no client shall answer with the same request: it may be what kills them."""
    message = f"{MAX_ENGINES_LOST} engines were lost while they worked on this request"
    return ApiError(503, message, type=SERVER_ERROR, code="engine_lost", final=True)
