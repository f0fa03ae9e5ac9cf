"""Scripts in a Python process of their own: nothing that other tests imported, set or compiled is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_script(code: str, *arguments: str, timeout: float, **environment: str) -> str:
    """Run `code` at the project's root, with `environment` on top of ours; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=Path(__file__).parents[1],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
