"""What the parts come to: the figures that say whether splitting pays."""

from __future__ import annotations

from typing import Any

from benchmarks.checkpoints import SHAPES

_UNITS = {
    "W1": "output_tokens_per_second",
    "W2": "ms_per_token",
    "W3": "output_tokens_per_second",
    "W4": "prompt_tokens_per_second",
}


def figures(found: dict[str, Any]) -> dict[str, Any]:
    """Of the parts found so far.

    Args:
        found: what each part wrote, by its name.

    Returns:
        By name: each workload of each engine, their quotients, tokens that differ, the share of collectives.
    """
    made: dict[str, Any] = {}
    for part, result in found.items():
        for name, work in (result.get("workloads") or {}).items() if isinstance(result, dict) else ():
            made[f"{part} {name}"] = work[_UNITS[name]]
        for name, trace in (result.get("traces") or {}).items() if isinstance(result, dict) else ():
            made[f"{part} {name} collectives"] = trace["collectives_share"]
    for name, unit in _UNITS.items():
        for other in ("8b-one", "8b-vllm", "8b-nccl"):
            ours, theirs = made.get(f"8b-all {name}"), made.get(f"{other} {name}")
            if ours is not None and theirs is not None:
                made[f"8b-all / {other}, {name} ({unit})"] = ours / theirs
    made |= _large(made, found)
    return made | _tokens(found)


def without_answers(part: Any) -> Any:
    """What a part found, but for the tokens themselves."""
    if not isinstance(part, dict):
        return part
    return {name: without_answers(each) for name, each in part.items() if name != "answers"}


def _large(made: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """W2 of the 70b shape beside the time in which its weights are read."""
    measured, alone = made.get("70b-all W2"), found.get("collectives", {})
    speed = alone.get("terabytes_per_second")
    if measured is None or not isinstance(speed, float):
        return {}
    reading = SHAPES["70b"].bytes_per_token / alone["ranks"] / speed / 1e9
    return {"70b reading, ms per token": reading, "70b-all W2 / reading": measured / reading}


def _tokens(found: dict[str, Any]) -> dict[str, Any]:
    """Answers of all ranks that are not those of one."""
    parts = [result for name, result in sorted(found.items()) if name.startswith("tokens-")]
    if len(parts) != 2:
        return {}
    made = {}
    for cache in parts[0].keys() & parts[1].keys() - {"status", "took_seconds"}:
        one, many = (part[cache]["answers"] for part in parts)
        made[f"tokens, {cache}: different of {len(one)}"] = sum(
            a != b for a, b in zip(one, many, strict=True)
        )
    return made
