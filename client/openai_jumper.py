"""Requests to accounts at OpenAI, or at any endpoint that speaks its API.

A request goes to the account that has used the fewest tokens. One that is refused (429, 401, 403)
or not reached rests for a while, and the request jumps to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import httpx2
import openai
import orjson
from openai import AsyncAPIResponse
from openai._response import AsyncResponseContextManager
from yarl import URL

from client.accounts import REST_AFTER_REFUSAL, Account, pick_account
from client.classify import AnswerTimeout
from client.config import OpenAIJumperConfig, Settings
from client.metrics import Metrics
from client.reply import Reply
from client.request import InferenceRequest
from client.watch import ClientStalled, Watch
from protocol.errors import (
    INVALID_REQUEST,
    LOOP_DETECTED,
    SERVER_ERROR,
    ApiError,
    model_not_found,
    unavailable,
)
from protocol.headers import HOPS, RETRY_AFTER, SHOULD_RETRY
from protocol.routes import CHAT_COMPLETION_V1, OPENAI_COMPLETIONS
from protocol.sse import MEDIA_TYPE

OPENAI_URL = "https://api.openai.com/v1"

_Call = AsyncResponseContextManager[AsyncAPIResponse[Any]]


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
        self._http = openai.DefaultAsyncHttpxClient()

    async def close(self) -> None:
        await self._http.aclose()

    def __iter__(self) -> Iterator[Account]:
        return iter(self._accounts)

    def configure(self, configs: Iterable[OpenAIJumperConfig]) -> None:
        """Use the accounts of `configs`; ones that stay keep their counts and are woken."""
        known = {account.identity: account for account in self._accounts}
        self._accounts = []
        for number, config in enumerate(configs):
            name = f"{number} at {URL(config.base_url or OPENAI_URL).host}"
            account = Account(name, config, self._client(config))
            if before := known.get(account.identity):
                account.tokens_used = before.tokens_used
            self._accounts.append(account)

    def _client(self, config: OpenAIJumperConfig) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            api_key=config.api_key.get_secret_value(),
            organization=config.org_id,
            base_url=config.base_url or OPENAI_URL,
            http_client=self._http,
            max_retries=0,  # the next account is tried instead
            timeout=openai.Timeout(None, connect=self._settings.config.connect_timeout_seconds),
        )

    def available(self) -> bool:
        """Whether an account can take a request now."""
        return pick_account(self._accounts, (), self._clock()) is not None

    def models(self) -> list[str]:
        """Models for which an account is listed that does not rest."""
        now = self._clock()
        awake = [account for account in self._accounts if account.rests_until <= now]
        return sorted({model for account in awake for model in account.config.models or ()})

    def serves(self, model: str) -> bool:
        """Whether an account lists `model`."""
        return any(account.suits(model, unlisted=False) for account in self._accounts)

    async def answer(self, request: InferenceRequest, watch: Watch, reply: Reply) -> None:
        """Answer `request` on `reply`.

        Raises:
            ApiError: no account can take it.
            ClientGone: the client left.
            ClientStalled: the client stopped reading.
        """
        unlisted = request.route == CHAT_COMPLETION_V1
        suited = [a for a in self._accounts if a.suits(request.model, unlisted=unlisted)]
        tried: set[Account] = set()
        while account := pick_account(suited, tried, self._clock()):
            tried.add(account)
            try:
                with account.load.lease(request.work, request.rows, lambda: None), watch:
                    tokens = await self._attempt(account, request, watch, reply)
                self._metrics.generated(tokens)
                return account.succeeded(tokens)
            except openai.APIStatusError as error:
                if not self._about_account(account, error):
                    return await self._pass_on(error, watch, reply)
            except (openai.APIConnectionError, httpx2.HTTPError, AnswerTimeout) as error:
                account.rest(self._clock(), None, type(error).__name__)
            if reply.status:
                raise unavailable("the endpoint broke off its answer", code="upstream_failed")
        raise self._refusal(request.model, suited)

    async def _attempt(self, account: Account, request: InferenceRequest, watch: Watch, reply: Reply) -> int:
        """Relay the answer of `account`; returns the tokens that it took."""
        config, clock = self._settings.config, self._clock
        watch.phase(clock(), config.first_byte_timeout_seconds, AnswerTimeout)
        async with _call(account.client, request) as response:
            if not response.headers.get("content-type", "").startswith(MEDIA_TYPE):
                body = await response.read()
                watch.phase(clock(), config.client_timeout_seconds, ClientStalled)
                await reply.whole(response.status_code, body)
                return _tokens(body, default=request.work)
            pieces = response.iter_bytes()
            events, usage = 0, b""
            while (piece := await anext(pieces, None)) is not None:
                events += piece.count(b"data: ")
                if b'"usage":{' in piece:
                    usage = piece
                watch.phase(clock(), config.client_timeout_seconds, ClientStalled)
                await reply.piece(piece)
                watch.phase(clock(), config.idle_timeout_seconds, AnswerTimeout)
            await reply.end()
            return _tokens(usage.partition(b"data: ")[2].partition(b"\n")[0], default=events)

    def _about_account(self, account: Account, error: openai.APIStatusError) -> bool:
        """Let `account` rest if the refusal is about it; False if it is about the request."""
        now, status = self._clock(), error.status_code
        if status == 429:
            account.rest(now, _retry_after(error), "rate limit (429)")
        elif status in (401, 403):
            account.rest(now, REST_AFTER_REFUSAL, f"its key is not accepted ({status})")
        elif status >= 500 and status != LOOP_DETECTED:
            account.rest(now, None, f"answered {status}")
        else:
            return False
        return True

    async def _pass_on(self, error: openai.APIStatusError, watch: Watch, reply: Reply) -> None:
        """Tell the client what the endpoint found wrong with its request."""
        watch.phase(self._clock(), self._settings.config.client_timeout_seconds, ClientStalled)
        with watch:
            await reply.error(_said(error))

    def _refusal(self, model: str, suited: Sequence[Account]) -> ApiError:
        """All suited accounts rest: say when the first one wakes."""
        if not self._accounts:
            return ApiError(503, "no OpenAI account is configured", type=SERVER_ERROR, code="no_account")
        if not suited:
            return model_not_found(model, self.models())
        wait = min(account.rests_until for account in suited) - self._clock()
        return unavailable(
            "all OpenAI accounts for this model rest: " + "; ".join({a.last_error or "" for a in suited}),
            code="no_account",
            retry_after=max(1, math.ceil(wait)),
        )


def _call(client: openai.AsyncOpenAI, request: InferenceRequest) -> _Call:
    """The SDK's call for `request`: the required fields as arguments, all others as they came."""
    fields = dict(request.fields)
    model, headers = fields.pop("model"), {HOPS: str(request.hops + 1)}
    if request.route == OPENAI_COMPLETIONS:
        completions = client.completions.with_streaming_response
        prompt = fields.pop("prompt", None)
        return completions.create(model=model, prompt=prompt, extra_body=fields, extra_headers=headers)
    chats = client.chat.completions.with_streaming_response
    messages = fields.pop("messages", [])
    return chats.create(model=model, messages=messages, extra_body=fields, extra_headers=headers)


def _said(error: openai.APIStatusError) -> ApiError:
    """What the endpoint said, as far as it is of the protocol; the SDK's own message has more around it."""
    fields = error.body if isinstance(error.body, dict) else {"message": error.body}

    def text(name: str) -> str | None:
        value = fields.get(name)
        return value if isinstance(value, str) and value else None

    return ApiError(
        error.status_code,
        text("message") or text("detail") or error.message,
        type=text("type") or INVALID_REQUEST,
        param=text("param"),
        code=error.code,
        final=error.response.headers.get(SHOULD_RETRY) == "false",
    )


def _retry_after(error: openai.APIStatusError) -> float | None:
    try:
        return float(error.response.headers[RETRY_AFTER])
    except (KeyError, ValueError):
        return None


def _tokens(body: bytes, default: int) -> int:
    """`total_tokens` of the usage in `body`, or `default` where it has none."""
    try:
        tokens = orjson.loads(body)["usage"]["total_tokens"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return default
    return tokens if isinstance(tokens, int) else default
