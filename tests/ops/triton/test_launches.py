"""What is prepared before the first launch of a kernel."""

from __future__ import annotations

import pytest

from tests.scripts import run_script

pytest.importorskip("triton")

_PREPARE = """
import sys
from server.device.triton_support import prepare_launches

gluon = "triton.experimental.gluon.nvidia.hopper"
before = gluon in sys.modules
for thread in prepare_launches():
    thread.join()
from triton.runtime.cache import triton_key

print(before, gluon in sys.modules, triton_key.cache_info().currsize)
"""


def test_triton_has_hashed_itself_and_imported_gluon() -> None:
    """Both are Triton's own and may move in another release, which would make starts slower again."""
    assert run_script(_PREPARE, timeout=120).split() == ["False", "True", "1"]
