"""What signals do to a process."""

from __future__ import annotations

import signal


def end_at_ctrl_c() -> None:
    """Let Ctrl-C end this process as SIGTERM does: at once, without a traceback, whatever its threads do.

    An HTTP server handles it while it runs, and raises it again when it is done. Where it is ignored, as in
    the jobs of a shell script, it stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
