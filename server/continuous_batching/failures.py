"""The error of a request that the engine gave up."""

from __future__ import annotations

from protocol.errors import ApiError, internal, queue_full, queue_timeout, unavailable, unprocessable
from server.api.refusals import fault_of
from server.api.service import Job
from server.continuous_batching.outputs import RequestFailure


def api_error(failure: RequestFailure, job: Job) -> ApiError:
    """The error that `failure` of `job` is on the wire."""
    if failure.status == 408:
        return queue_timeout(failure.message)
    if failure.status == 429:
        return queue_full(failure.message)
    if failure.status == 503:
        return unavailable(failure.message, code="engine_lost")
    if failure.status != 422:
        return internal(failure.message)
    if failure.param is None:
        return unprocessable(failure.message, code=failure.code)
    return fault_of(job, failure.param, failure.message, failure.code)
