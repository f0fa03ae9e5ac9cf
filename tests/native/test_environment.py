"""What the engine process is started with."""

from __future__ import annotations

from server.continuous_batching.engine.environment import engine_environment


def test_the_operator_has_the_last_word() -> None:
    found = engine_environment({"GOMP_SPINCOUNT": "7", "PATH": "/bin"})
    assert found["GOMP_SPINCOUNT"] == "7"
    assert found["PATH"] == "/bin"
    assert int(found["MALLOC_TOP_PAD_"]) > 0
