"""What figures belong to: the day, and the machine."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from pathlib import Path

_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")


def today() -> str:
    """The date, as YYYY-MM-DD."""
    return datetime.now(UTC).date().isoformat()


def processor() -> str:
    """What the system calls it, with the matrix instructions that it has."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine()
    pairs = (line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
    lines = {key.strip(): value.strip() for key, value in pairs}
    special = [name for name in _INSTRUCTIONS if name in lines.get("flags", "")]
    return f"{lines.get('model name', platform.machine())} ({', '.join(special[:2])})"
