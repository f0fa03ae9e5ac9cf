"""The first error of pydantic in values that are not from a file, in one line."""

from __future__ import annotations

from pydantic import ValidationError


def first_problem(error: ValidationError) -> str:
    """The first value that is not accepted: which it is, and what would be."""
    problem = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return f"{place}: unknown key"
    said = problem["msg"].removeprefix("Value error, ")
    return (
        said if not place else f"{place}: {said if problem['type'] == 'value_error' else f'expected {said}'}"
    )
