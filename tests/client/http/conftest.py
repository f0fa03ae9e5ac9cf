"""Fixtures of the gateway's HTTP tests."""

from tests.client.http.browser import browser, chromium

__all__ = ["browser", "chromium"]
