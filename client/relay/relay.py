"""The way of a request to a replica and of the answer back, with as many attempts as are safe."""

from __future__ import annotations

import asyncio
import functools
import logging
import random
from collections.abc import Callable

import aiohttp

from client.config import GatewayConfig, Settings
from client.health.replica import Replica
from client.health.replicas import Registry
from client.metrics.counters import Metrics
from client.relay.assemble import Assembly, Recovery
from client.relay.engine_request import sent_body
from client.relay.engine_stream import engine_stream
from client.relay.exchange import Answer, Exchange, Sink
from client.relay.lost import has_died
from client.relay.resume import Journal
from client.relay.retry import MAX_ENGINES_LOST, Attempts, RetryBudget
from client.requests.deadline import ClientStalled, Deadline
from client.requests.reply import RawHeaders, Reply
from client.requests.request import InferenceRequest
from client.routing.router import Fits, Router, fits_any
from client.upstream.classify import (
    FAULTY,
    OK,
    AnswerTimeout,
    AttemptFailed,
    Diverged,
    Outcome,
    ReplicaHung,
    StreamFailed,
    Suspicion,
    Verdict,
    describe,
    of_error,
)
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
        self._opinions = RetryBudget()
        """Second opinions on server errors, apart: who causes many takes no retry from others."""

    @property
    def config(self) -> GatewayConfig:
        return self._settings.config

    async def answer(
        self, request: InferenceRequest, deadline: Deadline, reply: Reply, *, waits: bool = True
    ) -> None:
        """Answer `request` on `reply`.

        Args:
            request: what is asked.
            deadline: its clock.
            reply: where to answer.
            waits: wait for lost servers to come back before anything is answered.

        Raises:
            ApiError: no server could answer.
            ClientGone: the client left.
            ClientStalled: the client stopped reading.
        """
        self._budget.earn(self.config.retry_ratio)
        self._opinions.earn(self.config.retry_ratio)
        attempts = Attempts(waits=waits)
        try:
            result = await self._try(request, attempts, deadline, reply)
        finally:
            attempts.end()
        if result is not None:
            deadline.phase(self._clock(), self.config.client_timeout_seconds, ClientStalled)
            with deadline:
                await self._close(reply, result)

    async def _try(
        self, request: InferenceRequest, attempts: Attempts, deadline: Deadline, reply: Reply
    ) -> Answer | Exception | None:
        """The result of the last attempt; None after a complete stream."""
        journal: Journal | None = None
        recovery: Recovery | None = None
        result: Answer | Exception | None = None
        while True:
            pieces = journal.pieces if journal else 0
            fits: Fits = fits_any
            if request.stream and journal is not None and pieces:
                fits = functools.partial(journal.goes_on, request)
            replica = self._router.next_replica(request, attempts.tried, fits)
            if attempts.fault is not None and (replica is None or not self._opinions.spend()):
                return attempts.fault
            if replica is None:
                if isinstance(result, Answer) and result.status == 429 and not pieces:
                    return result  # all are full, and say so; an answer that was cut waits for room
                replica = await self._wait(request, attempts, deadline, fits, begun=pieces > 0)
            self._metrics.retries += attempts.failed > 0
            if request.stream and not pieces:
                journal = Journal() if replica.engine is None else engine_stream(request, replica.engine)
            if recovery is None or recovery.assembly is None:
                result = await self._attempt(request, replica, attempts, deadline, reply, journal)
            else:
                result = await self._assemble(request, replica, attempts, deadline, reply, recovery.assembly)
            verdict = self._judge(replica, attempts, result)
            if result is None or not verdict.retry:
                return result
            attempts.note(replica, verdict, progressed=journal is not None and journal.pieces > pieces)
            if attempts.fault is not None:
                return attempts.fault  # nor could the second replica answer
            broke_off = isinstance(result, Exception) and attempts.is_lost_again(verdict)
            died = broke_off and await has_died(self._registry, replica)
            if not attempts.may_go_on(verdict, self.config.max_attempts, self._budget, died=died):
                if attempts.engines_lost == MAX_ENGINES_LOST:
                    raise _too_many_engines_lost()
                return result
            if request.stream and not _resumable(journal, request):
                return result
            if verdict is FAULTY:
                attempts.fault = result
                continue
            if not request.stream:
                recovery = recovery or Recovery(request)
                recovery.note(result, verdict)
                journal = recovery.assembly.journal if recovery.assembly else None
            deadline.phase(self._clock(), float("inf"), ClientStalled)
            with deadline:
                await asyncio.sleep(attempts.delay(random.random()))

    async def _attempt(
        self,
        request: InferenceRequest,
        replica: Replica,
        attempts: Attempts,
        deadline: Deadline,
        sink: Sink,
        journal: Journal | None,
    ) -> Answer | Exception | None:
        """Ask `replica`: a whole answer, or what went wrong, or None after a stream that went well."""
        if journal is not None:
            journal.new_connection()
            self._metrics.resumes += journal.pieces > 0
            body = journal.body(request, replica)
        else:
            body = request.body if replica.engine is None else sent_body(request, replica.engine, {})
        attempts.ticket = replica.breaker.sent()
        try:
            lease = replica.load.lease(request.work, request.rows, lambda: deadline.give_up(ReplicaHung()))
            with lease, deadline:
                exchange = Exchange(
                    self._session,
                    self.config,
                    self._clock,
                    request,
                    replica,
                    lease,
                    deadline,
                    self._metrics,
                    lambda: attempts.answered(self._clock()),
                )
                return await exchange.run(body, sink, journal)
        except AnswerTimeout as error:
            error.busy = replica.served_at > deadline.since
            return error
        except (aiohttp.ClientError, OSError, AttemptFailed) as error:
            return error
        except BaseException:
            replica.breaker.neutral(attempts.ticket)  # the client left: nothing is known of the server
            raise

    async def _assemble(
        self,
        request: InferenceRequest,
        replica: Replica,
        attempts: Attempts,
        deadline: Deadline,
        reply: Reply,
        assembly: Assembly,
    ) -> Answer | Exception | None:
        """`_attempt` for a whole answer that was lost before: as a stream, if `replica` can."""
        if not assembly.suits(replica):
            return await self._attempt(request, replica, attempts, deadline, reply, None)
        journal = assembly.journal
        result = await self._attempt(assembly.request, replica, attempts, deadline, assembly, journal)
        return assembly.outcome(result)

    async def _wait(
        self, request: InferenceRequest, attempts: Attempts, deadline: Deadline, fits: Fits, *, begun: bool
    ) -> Replica:
        """A replica for `request`, of which those that are ready failed it already, if any.

        A server that refused is asked again if there is no other: it may have room by then.

        Args:
            fits: as for `Router.next_replica`.
            begun: some of the answer has come already.
        """
        patience = self.config.stream_wait_seconds if begun else self.config.replica_wait_seconds
        if not (begun or attempts.waits):
            patience = 0.0
        attempts.tried.clear()
        return await self._router.wait(request, deadline, patience, fits)

    def _judge(self, replica: Replica, attempts: Attempts, result: Answer | Exception | None) -> Verdict:
        """Classify the result of an attempt, and update the replica."""
        verdict = _verdict(result)
        self._metrics.attempt(replica, verdict.outcome)
        if verdict.outcome is Outcome.SUCCESS:
            replica.breaker.success(attempts.ticket)
            return verdict
        reason = describe(result) if isinstance(result, Exception) else str(result)
        if verdict.outcome is Outcome.FAILURE:
            logger.warning("%s: %s", replica.url, reason)
        if verdict.explicable:
            attempts.suspects[replica] = attempts.ticket
        elif verdict.outcome is Outcome.FAILURE:
            replica.breaker.failure(attempts.ticket, self._clock())
        else:
            replica.breaker.neutral(attempts.ticket)
        if verdict.suspicion is Suspicion.DOWN:
            self._registry.refused(replica, reason)
        elif verdict.suspicion is Suspicion.PROBE:
            self._registry.suspect(replica, reason)
        return verdict

    async def _close(self, reply: Reply, result: Answer | Exception) -> None:
        """Send the client the result of the last attempt."""
        if isinstance(result, StreamFailed) and not result.retryable:
            await reply.error_event(result.body)
        elif isinstance(result, Answer) and reply.status:
            logger.error("a stream was not continued: %s %r", result, result.body[:500])
            raise unavailable("the stream was cut and no server went on with it", code="upstream_failed")
        elif isinstance(result, Answer) and result.is_json:
            await reply.whole(result.status, result.body, result.headers or _HEADERS.get(result.status, []))
        elif isinstance(result, Diverged):
            raise unavailable(str(result), code="upstream_failed")
        elif isinstance(result, AnswerTimeout):
            raise ApiError(504, str(result), type=TIMEOUT, code="upstream_timeout")
        elif isinstance(result, Answer):
            raise internal(f"the server answered {result.status} without saying why")
        else:
            raise unavailable("the servers of this model failed to answer", code="upstream_failed")


def _verdict(result: Answer | Exception | None) -> Verdict:
    if result is None:
        return OK
    return result.verdict() if isinstance(result, Answer) else of_error(result)


def _resumable(journal: Journal | None, request: InferenceRequest) -> bool:
    """Whether another replica can go on where the stream was cut."""
    if journal is None or not journal.pieces:
        return True
    return journal.resumable(request.choices)


def _too_many_engines_lost() -> ApiError:
    """503 without a retry: the request itself may be what ends the engines."""
    message = f"{MAX_ENGINES_LOST} engines were lost while they worked on this request"
    return ApiError(503, message, type=SERVER_ERROR, code="engine_lost", final=True)
