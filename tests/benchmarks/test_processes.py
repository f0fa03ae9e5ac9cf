"""What is measured ends with whoever measures."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.processes import ROOT
from utils.process import wait_until

MEASURE = """
import signal, sys, time
from pathlib import Path
from benchmarks.processes import running
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
with running(["sleep", "60"], Path(sys.argv[1])) as process:
    print(process.pid, flush=True)
    while True:  # a signal that comes just before a sleep does not end that sleep
        time.sleep(0.1)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_behind(tmp_path: Path, how: signal.Signals) -> None:
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "log")]
    measuring = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert measuring.stdout is not None
    started = int(measuring.stdout.readline())
    measuring.send_signal(how)
    assert "KeyboardInterrupt" in measuring.communicate(timeout=30)[1]
    assert wait_until(lambda: not Path(f"/proc/{started}").exists(), 30)
