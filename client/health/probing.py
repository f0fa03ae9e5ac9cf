"""What a probe asks a server, and the report that it makes of the answers.

Servers of ours tell everything in ``/status``. Engines that are not ours tell their models in ``/v1/models``,
their load in ``/metrics``, and their version and size on routes of their own (`client.engines`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import orjson
from pydantic import ValidationError

from client.engines.answers import Cards, EngineLoad, samples
from client.engines.engine import About, Engine, Gauges
from client.engines.errors import engine_error
from client.engines.registry import engine_of
from client.health.replica import Replica, ReplicaState
from client.health.report import Report
from client.upstream.parse import MAX_COUNT, count
from protocol.accepts import Accepts, Refusal, above
from protocol.errors import ErrorResponse, from_validation
from protocol.routes import METRICS, OPENAI_MODELS, STATUS
from protocol.status import ServerState, ServerStatus

Ask = Callable[[str], Awaitable[tuple[int, bytes]]]
"""Status and body of a GET of a route."""

MAX_REASON = 300
MAX_VERSION = 100
_BEAMS = Refusal(
    option="num_beams", reason="only servers of this project know it", when={"num_beams": above(1)}
)


class Unfit(Exception):
    """A server that answers, and not as one that can be given work; says why."""


async def probe(replica: Replica, ask: Ask) -> Report:
    """Ask the server of `replica` how it is.

    Raises:
        Unfit: its answers are not those of such a server.
    """
    return await (_ours(ask) if replica.kind != "openai_compatible" else _engine(replica, ask))


async def _ours(ask: Ask) -> Report:
    status, body = await ask(STATUS)
    if status in (401, 403):
        raise Unfit(_refusal(status, body))
    try:
        return Report.of(ServerStatus.model_validate_json(body))
    except ValidationError as error:
        fault = from_validation(error).body.message
        raise Unfit(f"{STATUS} answers something else than a server's status: {fault}") from None


def _refusal(status: int, body: bytes) -> str:
    """Why a server does not let this gateway in, in its own words where it is one of ours."""
    try:
        return f"answered {status}: {ErrorResponse.model_validate_json(body).error.message[:MAX_REASON]}"
    except ValidationError:
        return f"answered {status}"


async def _engine(replica: Replica, ask: Ask) -> Report:
    status, body = await ask(OPENAI_MODELS)
    if status == 503:
        return Report(kind=replica.kind, state=ServerState.LOADING, engine=replica.engine)
    if status != 200:
        raise Unfit(f"{OPENAI_MODELS} answers {status}: {engine_error(status, body)}"[:MAX_REASON])
    try:
        cards = Cards.model_validate_json(body)
    except ValidationError as error:
        raise Unfit(f"{OPENAI_MODELS} answers no list of models: {from_validation(error)}") from None
    engine = engine_of(cards.owner)
    if engine.alive is not None and (await ask(engine.alive))[0] == 503:
        raise Unfit(f"{engine.alive} answers 503")
    load = await _load(engine, ask)
    about = await _about(replica, engine, ask)
    return Report(
        kind=replica.kind,
        state=ServerState.READY,
        names=cards.names,
        version=None if about.version is None else about.version[:MAX_VERSION],
        about=about,
        load=load,
        requests=None if load is None else load.running + load.waiting,
        slots=count(about.slots) or _slots(load, replica.load.slots),
        max_length=cards.length,
        accepts=Accepts(routes=engine.routes, refusals=(_BEAMS,)),
        engine=engine,
    )


async def _load(engine: Engine, ask: Ask) -> EngineLoad | None:
    """What it is doing; None where it does not say."""
    if engine.gauges is None:
        return None
    status, body = await ask(METRICS)
    return _read_load(body.decode(errors="replace"), engine.gauges) if status == 200 else None


def _read_load(metrics: str, names: Gauges) -> EngineLoad | None:
    running, waiting = samples(metrics, names.running), samples(metrics, names.waiting)
    if not running or not waiting or sum(running + waiting) > MAX_COUNT:
        return None
    usage = samples(metrics, names.cache_usage) if names.cache_usage else []
    return EngineLoad(
        running=int(sum(running)), waiting=int(sum(waiting)), kv_cache_usage=max(usage, default=None)
    )


async def _about(replica: Replica, engine: Engine, ask: Ask) -> About:
    """Its version and size, asked for when it came (back): they stay while it runs."""
    known = replica.report
    if replica.state is ReplicaState.READY and known is not None and known.engine is engine:
        return known.about
    if engine.about is None:
        return About()
    status, body = await ask(engine.about)
    if status != 200:
        return About()
    try:
        return engine.read_about(orjson.loads(body))
    except (orjson.JSONDecodeError, LookupError, TypeError, ValueError, AttributeError):
        return About()


def _slots(load: EngineLoad | None, before: int) -> int | None:
    """Requests that an engine works on at once, where it does not say: as many as run while others wait."""
    if load is None:
        return None
    return max(1, load.running) if load.waiting else max(before, load.running)
