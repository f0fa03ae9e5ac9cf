"""Which instructions the kernels may be built with on a processor."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma")


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to build the kernels.

    Attributes:
        name: for the operator.
        features: what the processor must have, as in ``/proc/cpuinfo``.
        flags: for the compiler.
    """

    name: str
    features: frozenset[str]
    flags: tuple[str, ...]


def _variant(name: str, features: tuple[str, ...], renamed: dict[str, str]) -> Variant:
    flags = tuple(f"-m{renamed.get(feature, feature)}" for feature in features)
    return Variant(name, frozenset(features), flags)


_GCC_NAMES = {
    "avx512_bf16": "avx512bf16",
    "avx512_vnni": "avx512vnni",
    "avx_vnni": "avxvnni",
    "amx_tile": "amx-tile",
    "amx_bf16": "amx-bf16",
}

VARIANTS = (
    _variant("amx", (*_AVX512, "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16"), _GCC_NAMES),
    _variant("avx512_bf16", (*_AVX512, "avx512_vnni", "avx512_bf16"), _GCC_NAMES),
    _variant("avx512_vnni", (*_AVX512, "avx512_vnni"), _GCC_NAMES),
    _variant("avx512", _AVX512, _GCC_NAMES),
    _variant("avx_vnni", ("avx2", "fma", "avx_vnni"), _GCC_NAMES),
    _variant("avx2", ("avx2", "fma"), _GCC_NAMES),
    _variant("portable", (), _GCC_NAMES),
)
"""Best first; the last one runs on everything that the compiler builds for."""


def cpu_features() -> frozenset[str]:
    """The features of this processor; empty where the system does not list them."""
    info = Path("/proc/cpuinfo")
    if platform.machine() not in ("x86_64", "AMD64") or not info.is_file():
        return frozenset()
    found = re.search(r"^flags\s*:(.*)$", info.read_text(), re.MULTILINE)
    return frozenset(found.group(1).split()) if found else frozenset()


def usable_variants() -> Iterator[Variant]:
    """What this processor can run, best first."""
    features = cpu_features()
    return (variant for variant in VARIANTS if variant.features <= features)
