"""The kernels in every build that this processor runs."""

from __future__ import annotations

import pytest

from server.ops.cpu.build import build
from server.ops.cpu.library import NativeLibrary
from server.ops.cpu.variants import Variant
from tests.builds import BUILDS


@pytest.fixture(scope="session", params=BUILDS)
def library(request: pytest.FixtureRequest) -> NativeLibrary:
    """Each build in turn; kept in the user's cache, so that only a changed source is compiled."""
    variant: Variant = request.param
    return NativeLibrary(build(variant), variant)
