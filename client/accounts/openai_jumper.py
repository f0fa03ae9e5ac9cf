"""Requests to accounts at OpenAI, or at any endpoint that speaks its API.

A request goes to the account that has used the fewest tokens. One that refuses (429, 401, 402, 503)
or is not reached rests for a while, and the request jumps to the next. One that fails otherwise (500, an
answer that breaks off or takes too long) rests only where the next one answers the same request. One that
refuses the model (403, 404) is not asked for it for a while, where another account answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import httpx2
import openai
from yarl import URL

from client.accounts.account import REST_AFTER_REFUSAL, Account, pick_account
from client.accounts.endpoint import (
    blames_key,
    blames_request,
    call,
    endpoint_error,
    is_final,
    login,
    patience,
    read_whole,
    reason,
    refuses_model,
    total_tokens,
    usage_tokens,
)
from client.config import GatewayConfig, OpenAIJumperConfig, Settings
from client.metrics.counters import Metrics
from client.requests.deadline import ClientStalled, Deadline
from client.requests.reply import Reply
from client.requests.request import InferenceRequest
from client.upstream.classify import AnswerTimeout, BadAnswer
from protocol.errors import (
    SERVER_ERROR,
    TIMEOUT,
    ApiError,
    model_not_found,
    unavailable,
)
from protocol.routes import CHAT_COMPLETION_V1
from protocol.sse import MEDIA_TYPE
from utils.config import ConfigError
from utils.messages import one_line

OPENAI_URL = "https://api.openai.com/v1"

OPINIONS = 2
"""Accounts that may fail a request before it is the request that is held to be at fault."""

_FAILURES = (openai.APIStatusError, openai.APIConnectionError, httpx2.HTTPError, AnswerTimeout, BadAnswer)


class Jumpers:
    """All accounts of the configuration.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, settings: Settings, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._accounts: list[Account] = []
        self._http: httpx2.AsyncClient | None = None
        """Made with the first account: it reads the environment's proxies, which may be none of ours."""

    async def close(self) -> None:
        if self._http is not None:
            await self._http.aclose()

    def __iter__(self) -> Iterator[Account]:
        return iter(self._accounts)

    def configure(self, config: GatewayConfig) -> None:
        """Use the accounts of `config`; ones that stay keep their counts and are woken.

        Raises:
            ConfigError: no account can be called; nothing has changed then.
        """
        if config.openai_jumper_configs and self._http is None:
            self._http = _open_client()
        known = {account.identity: account for account in self._accounts}
        self._accounts = []
        for number, one in enumerate(config.openai_jumper_configs):
            name = f"{number} at {URL(one.base_url or OPENAI_URL).host}"
            account = Account(name, one, self._client(one, config.connect_timeout_seconds))
            if before := known.pop(account.identity, None):
                before.reconfigure(name, one, account.client)
                account = before
            self._accounts.append(account)

    def _client(self, config: OpenAIJumperConfig, connect_timeout: float) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            api_key=config.api_key.get_secret_value(),
            organization=config.org_id,
            base_url=config.base_url or OPENAI_URL,
            default_headers=login(config),
            http_client=self._http,
            max_retries=0,  # the next account is tried instead
            timeout=openai.Timeout(None, connect=connect_timeout),
        )

    def available(self, model: str | None = None) -> bool:
        """Whether an account can take a request now; one for `model`, where it lists that."""
        suited = [a for a in self._accounts if model is None or a.suits(model, unlisted=False)]
        return pick_account(suited, (), self._clock(), model) is not None

    def models(self) -> list[str]:
        """Models for which an account is listed that does not rest."""
        now = self._clock()
        awake = [account for account in self._accounts if account.rests_until <= now]
        return sorted({model for account in awake for model in account.config.models or ()})

    def serves(self, model: str) -> bool:
        """Whether an account lists `model`."""
        return any(account.suits(model, unlisted=False) for account in self._accounts)

    async def answer(self, request: InferenceRequest, deadline: Deadline, reply: Reply) -> None:
        """Answer `request` on `reply`.

        Raises:
            ApiError: no account can take it.
            ClientGone: the client left.
            ClientStalled: the client stopped reading.
        """
        unlisted = request.route == CHAT_COMPLETION_V1
        suited = [a for a in self._accounts if a.suits(request.model, unlisted=unlisted)]
        tried: set[Account] = set()
        suspects: dict[Account, Exception] = {}
        refusals: dict[Account, Exception] = {}
        sent_at = self._clock()
        while len(suspects) < OPINIONS and (
            account := pick_account(suited, tried, self._clock(), request.model)
        ):
            tried.add(account)
            try:
                with account.load.lease(request.work, request.rows, lambda: None), deadline:
                    tokens = await self._attempt(account, request, deadline, reply)
                self._metrics.generated(tokens)
                account.succeeded(tokens, sent_at=sent_at)
                self._blame(request.model, suspects, refusals, sent_at)
                return
            except _FAILURES as error:
                if blames_request(error):
                    await self._pass_on(error, deadline, reply)
                    return
                if refuses_model(error):
                    refusals[account] = error
                elif not self._about_account(account, error, sent_at):
                    suspects[account] = error
            if reply.status:
                raise unavailable("the endpoint broke off its answer", code="upstream_failed")
        failed = [*suspects.values(), *refusals.values()]
        if not failed:
            raise self._refusal(request.model, suited)
        await self._fail(failed[0], deadline, reply)

    def _blame(
        self,
        model: str,
        suspects: Mapping[Account, Exception],
        refusals: Mapping[Account, Exception],
        sent_at: float,
    ) -> None:
        """Another account answered: the failures of the others are theirs, not the request's."""
        now = self._clock()
        for account, error in suspects.items():
            account.rest(now, None, reason(error), sent_at=sent_at)
        for account, error in refusals.items():
            account.refuse(now, model, reason(error))

    async def _attempt(
        self, account: Account, request: InferenceRequest, deadline: Deadline, reply: Reply
    ) -> int:
        """Relay the answer of `account`; returns the tokens that it took."""
        config, clock = self._settings.config, self._clock
        deadline.phase(clock(), config.first_byte_timeout_seconds, AnswerTimeout)
        async with call(account.client, request) as response:
            if response.status_code != 200:
                raise BadAnswer(f"answered with status {response.status_code}")
            if not response.headers.get("content-type", "").startswith(MEDIA_TYPE):
                body = await read_whole(response)
                tokens = total_tokens(body, default=request.work)
                deadline.phase(clock(), config.client_timeout_seconds, ClientStalled)
                await reply.whole(200, body)
                return tokens
            pieces = response.iter_bytes()
            events, usage = 0, b""
            while (piece := await anext(pieces, None)) is not None:
                events += piece.count(b"data: ")
                if b'"usage":{' in piece:
                    usage = piece
                deadline.phase(clock(), config.client_timeout_seconds, ClientStalled)
                await reply.piece(piece)
                deadline.phase(clock(), config.idle_timeout_seconds, AnswerTimeout)
            await reply.end()
            return usage_tokens(usage.partition(b"data: ")[2].partition(b"\n")[0], default=events)

    def _about_account(self, account: Account, error: Exception, sent_at: float) -> bool:
        """Let `account` rest if it, and no request, is what `error` is about."""
        now = self._clock()
        if isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout):
            account.rest(now, None, reason(error), sent_at=sent_at)
            return True
        if not isinstance(error, openai.APIStatusError):
            return False
        status = error.status_code
        if (why := blames_key(error)) is not None:
            account.rest(now, REST_AFTER_REFUSAL, why, sent_at=sent_at)
        elif status == 429:
            account.rest(now, patience(error), "rate limit (429)", sent_at=sent_at)
        elif status == 503 and not is_final(error):
            account.rest(now, patience(error), "unavailable (503)", sent_at=sent_at)
        else:
            return False
        return True

    async def _fail(self, error: Exception, deadline: Deadline, reply: Reply) -> None:
        """Tell the client of what it may have caused itself, as every account asked failed with it."""
        if isinstance(error, openai.APIStatusError):
            await self._pass_on(error, deadline, reply)
        elif isinstance(error, AnswerTimeout):
            raise ApiError(504, "the endpoint took too long", type=TIMEOUT, code="upstream_timeout")
        else:
            raise unavailable("the endpoint failed to answer", code="upstream_failed")

    async def _pass_on(self, error: openai.APIStatusError, deadline: Deadline, reply: Reply) -> None:
        """Answer with the endpoint's own error about the request."""
        deadline.phase(self._clock(), self._settings.config.client_timeout_seconds, ClientStalled)
        with deadline:
            await reply.error(endpoint_error(error))

    def _refusal(self, model: str, suited: Sequence[Account]) -> ApiError:
        """503: all suitable accounts are paused; says when the first is back."""
        if not self._accounts:
            return ApiError(503, "no OpenAI account is configured", type=SERVER_ERROR, code="no_account")
        if not suited:
            return model_not_found(model, self.models())
        wait = min(account.awake_at(model) for account in suited) - self._clock()
        reasons = sorted({account.last_error or "it refuses the model" for account in suited})
        return unavailable(
            "all OpenAI accounts for this model rest: " + "; ".join(reasons),
            code="no_account",
            retry_after=max(1, math.ceil(wait)),
        )


def _open_client() -> httpx2.AsyncClient:
    """The HTTP client for all accounts.

    Raises:
        ConfigError: a proxy of the environment cannot be used.
    """
    try:
        return openai.DefaultAsyncHttpxClient()
    except (ImportError, ValueError) as error:
        raise ConfigError(
            "openai_jumper_configs: the accounts cannot be called through the proxy that the environment "
            f"names (ALL_PROXY, HTTPS_PROXY, HTTP_PROXY): {one_line(error)}"
        ) from None
