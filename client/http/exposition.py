"""The gateway's counters in Prometheus' terms."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from client.gateway import Gateway
from client.health.breaker import BreakerState
from client.health.replica import ReplicaState


def metrics_registry(gateway: Gateway) -> CollectorRegistry:
    """A registry that reads the counters of `gateway` whenever it is asked."""
    registry = CollectorRegistry()
    registry.register(_GatewayCollector(gateway))
    return registry


class _GatewayCollector(Collector):
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def collect(self) -> Iterator[Metric]:
        yield from self._requests()
        yield from self._latencies()
        yield from self._attempts()
        yield from self._replicas()
        yield from self._accounts()

    def _requests(self) -> Iterator[Metric]:
        gateway, metrics = self._gateway, self._gateway.metrics
        received = CounterMetricFamily(
            "gateway_requests_received",
            "Completion requests, counted before anything else.",
            labels=["route"],
        )
        for route, count in metrics.received.items():
            received.add_metric([route], count)
        finished = CounterMetricFamily(
            "gateway_requests_finished",
            "Completion requests that ended, by status; 499 is a client that left.",
            labels=["route", "status"],
        )
        for (route, status), count in metrics.finished.items():
            finished.add_metric([route, str(status)], count)
        yield received
        yield finished
        yield _gauge(
            "gateway_requests_in_flight", "Requests being answered.", len(gateway.deadlines.in_flight)
        )
        yield _gauge("gateway_requests_waiting", "Requests without a server.", gateway.router.waiting)
        yield _counter("gateway_generated_tokens", "Tokens generated for clients.", metrics.tokens)

    def _latencies(self) -> Iterator[Metric]:
        latency = HistogramMetricFamily(
            "gateway_request_seconds", "From a request's first byte to its answer's last.", labels=["route"]
        )
        for route, histogram in self._gateway.metrics.latency.items():
            latency.add_metric([route], *histogram.export())
        yield latency
        first = HistogramMetricFamily(
            "gateway_time_to_first_event_seconds", "From a request to the first event of its stream."
        )
        first.add_metric([], *self._gateway.metrics.first_event.export())
        yield first

    def _attempts(self) -> Iterator[Metric]:
        metrics = self._gateway.metrics
        attempts = CounterMetricFamily(
            "gateway_attempts",
            "Requests sent to servers, by result.",
            labels=["server", "outcome"],
        )
        for (url, outcome), count in metrics.outcomes.items():
            attempts.add_metric([url, outcome], count)
        yield attempts
        yield _counter("gateway_retries", "Attempts after a failed one.", metrics.retries)
        yield _counter("gateway_resumed_streams", "Streams continued on another connection.", metrics.resumes)

    def _replicas(self) -> Iterator[Metric]:
        now = self._gateway.clock()
        labels = ["server", "kind", "model_name"]
        state = GaugeMetricFamily("gateway_server_state", "1 for the state.", labels=[*labels, "state"])
        breaker = GaugeMetricFamily("gateway_server_breaker_open", "1 unless closed.", labels=labels)
        leased = GaugeMetricFamily("gateway_server_tokens", "Work given to the server.", labels=labels)
        expected = GaugeMetricFamily(
            "gateway_server_expected_tokens", "The same, corrected by its reports.", labels=labels
        )
        flying = GaugeMetricFamily("gateway_server_requests", "Requests that it works on.", labels=labels)
        for replica in self._gateway.registry:
            values = [replica.url, replica.kind, replica.model_id or ""]
            for name in ReplicaState:
                state.add_metric([*values, name], float(replica.state is name))
            breaker.add_metric(values, float(replica.breaker.state(now) is not BreakerState.CLOSED))
            leased.add_metric(values, replica.load.tokens)
            expected.add_metric(values, replica.load.expected_tokens(now))
            flying.add_metric(values, len(replica.load.leases))
        yield from (state, breaker, leased, expected, flying)

    def _accounts(self) -> Iterator[Metric]:
        now = self._gateway.clock()
        tokens = CounterMetricFamily("gateway_account_tokens", "Tokens used.", labels=["account"])
        awake = GaugeMetricFamily("gateway_account_available", "0 while it rests.", labels=["account"])
        for account in self._gateway.jumpers:
            tokens.add_metric([account.name], account.tokens_used)
            awake.add_metric([account.name], float(account.rests_until <= now))
        yield from (tokens, awake)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)
