"""Web pages that a service gives out from its own files, and the page that shows its OpenAPI document."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

DOCS = "/docs"
DOCS_PAGE = Path(__file__).parent / "docs_page"
HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Of every page: nothing comes from elsewhere, and no other site shows it in a frame."""


def add_page(router: APIRouter, path: str, directory: Path, assets: str) -> None:
    """Let `router` give out ``index.html`` of `directory` at `path`, and its other files below `assets`."""
    _add_file(router, path, directory / "index.html")
    for file in sorted(directory.iterdir()):
        if file.suffix != ".html":
            _add_file(router, f"{assets}/{file.name}", file)


def _add_file(router: APIRouter, path: str, file: Path) -> None:
    @router.get(path, include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(file, headers=HEADERS)


def docs_router() -> APIRouter:
    """The page that shows ``/openapi.json``. It needs nothing of the network, where FastAPI's own loads
    its scripts from elsewhere, to run them where the API key is kept."""
    router = APIRouter()
    add_page(router, DOCS, DOCS_PAGE, DOCS)
    return router
