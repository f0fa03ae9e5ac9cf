"""What is asked of FastAPI's routers."""

from __future__ import annotations

from fastapi import APIRouter


def paths(router: APIRouter) -> list[str]:
    """The paths of its routes, each once."""
    return list(dict.fromkeys(getattr(route, "path") for route in router.routes))  # noqa: B009  # untyped
