"""What the panels of vLLM's public Grafana dashboard ask for, and which of them would stay empty.

The dashboard is ``examples/observability/prometheus_grafana/grafana.json`` of vllm-project/vllm. Each of its
queries selects series by ``model_name``; all but those of gauges take rates or increases.
"""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

MODEL_NAME = "model_name"
"""The label by which the dashboard's variable is filled, too."""

PANELS: dict[str, tuple[str, ...]] = {
    "E2E Request Latency": (
        "e2e_request_latency_seconds_bucket",
        "e2e_request_latency_seconds_sum",
        "e2e_request_latency_seconds_count",
    ),
    "Token Throughput": ("prompt_tokens_total", "generation_tokens_total"),
    "Inter Token Latency": (
        "inter_token_latency_seconds_bucket",
        "inter_token_latency_seconds_sum",
        "inter_token_latency_seconds_count",
    ),
    "Scheduler State": ("num_requests_running", "num_requests_waiting"),
    "Time To First Token Latency": (
        "time_to_first_token_seconds_bucket",
        "time_to_first_token_seconds_sum",
        "time_to_first_token_seconds_count",
    ),
    "Cache Utilization": ("kv_cache_usage_perc",),
    "Request Prompt Length": ("request_prompt_tokens_bucket",),
    "Request Generation Length": ("request_generation_tokens_bucket",),
    "Finish Reason": ("request_success_total",),
    "Queue Time": ("request_queue_time_seconds_sum",),
    "Requests Prefill and Decode Time": (
        "request_prefill_time_seconds_sum",
        "request_decode_time_seconds_sum",
    ),
    "Max Generation Token in Sequence Group": ("request_max_num_generation_tokens_sum",),
}
"""The series of each panel, without their prefix."""

GROUPED_BY = {"_bucket": "le", "request_success_total": "finished_reason"}
"""Labels by which queries sum up, by the end of a series' name."""

GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")

Samples = dict[str, float]


def samples(metrics: str, series: str, model: str) -> Samples:
    """Values of ``vllm:series`` of `model`, by the label that its query groups by."""
    label = next((label for end, label in GROUPED_BY.items() if series.endswith(end)), MODEL_NAME)
    return {
        sample.labels[label]: sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == f"vllm:{series}" and sample.labels.get(MODEL_NAME) == model
    }


def has_data(series: str, before: Samples, after: Samples) -> bool:
    """Whether a query of the series has a value, and where it asks for a rate, one above zero."""
    if series in GAUGES:
        return bool(after)
    return any(value > before.get(label, 0.0) for label, value in after.items())


def empty_panels(before: str, after: str, model: str) -> list[str]:
    """Titles of the panels that miss a series between two answers of ``/metrics``."""
    return [
        title
        for title, names in PANELS.items()
        if not all(
            has_data(name, samples(before, name, model), samples(after, name, model)) for name in names
        )
    ]
