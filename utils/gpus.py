"""The GPUs of this machine, as NVIDIA's own program lists them."""

from __future__ import annotations

import re
import subprocess

_LINE = re.compile(r"^\s*(?:GPU (?P<number>\d+):|MIG ).*\(UUID: (?P<uuid>[^)]+)\)", re.M)


def gpus() -> set[str]:
    """Numbers and UUIDs of the GPUs, and UUIDs of their MIG devices; empty where there are none."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return set()
    found = set()
    for match in _LINE.finditer(listed.stdout):
        found |= {match["uuid"], match["number"]} - {None}
    return found
