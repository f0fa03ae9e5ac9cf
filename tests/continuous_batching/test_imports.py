"""What the HTTP side may import."""

from __future__ import annotations

import subprocess
import sys


def test_the_http_side_knows_no_torch() -> None:
    """Its engine is another process; importing torch here too would delay the start by seconds."""
    code = "import continuous_batching_server_app, sys; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
