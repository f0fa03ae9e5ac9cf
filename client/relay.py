"""The way of a request to a replica and of the answer back, with as many attempts as are safe."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable

import aiohttp

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
from client.exchange import Answer, Exchange
from client.metrics import Metrics
from client.replicas import Registry, Replica
from client.reply import Reply
from client.request import InferenceRequest
from client.resume import Journal, resumed_body
from client.retry import Attempts, RetryBudget
from client.router import Router
from client.watch import ClientStalled, Watch
from protocol.errors import ApiError, internal, unavailable
from protocol.headers import RETRY_AFTER

logger = logging.getLogger(__name__)


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
        attempts = Attempts()
        result: Answer | Exception | None = None
        while True:
            replica = self._router.choose(request, attempts.tried)
            if replica is None:
                if isinstance(result, Answer) and result.status == 429 and not reply.status:
                    break  # all are full, and say so; a stream that was cut waits for room
                replica = await self._wait(request, attempts, watch, journal)
            pieces = journal.pieces if journal else 0
            result = await self._attempt(request, replica, watch, reply, journal)
            if result is None:
                self._judge(replica, OK, result)
                return
            verdict = result.verdict() if isinstance(result, Answer) else of_error(result)
            self._judge(replica, verdict, result)
            if not verdict.retry:
                break
            attempts.note(replica, progressed=journal is not None and journal.pieces > pieces)
            if not attempts.may_go_on(verdict, self.config.max_attempts, self._budget):
                break
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
        reply: Reply,
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
                return await exchange.run(body, reply, journal)
        except (aiohttp.ClientError, OSError, AttemptFailed) as error:
            return error
        except BaseException:
            replica.breaker.neutral()  # the client left: nothing is known of the server
            raise

    async def _wait(
        self, request: InferenceRequest, attempts: Attempts, watch: Watch, journal: Journal | None
    ) -> Replica:
        """A replica for `request`, of which those that are ready failed it already, if any.

        What refused once is asked again if nobody else comes: it may have room by then.
        """
        streaming = journal is not None and journal.pieces > 0
        patience = self.config.stream_wait_seconds if streaming else self.config.replica_wait_seconds
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
            retry_after = result.retry_after or ("1" if result.status in (429, 503) else None)
            headers = [(RETRY_AFTER.encode(), retry_after.encode())] if retry_after else []
            await reply.whole(result.status, result.body, headers=headers)
        elif isinstance(result, AnswerTimeout):
            raise ApiError(504, str(result), type="timeout_error", code="upstream_timeout")
        elif isinstance(result, Answer):
            raise internal(f"the server answered {result.status} without saying why")
        else:
            raise unavailable("the servers of this model failed to answer", code="upstream_failed")
