"""The builds of the C++ kernels that tests run, as parameters."""

from __future__ import annotations

import pytest

from server.ops.cpu.variants import Variant, usable_variants

_VARIANTS = list(usable_variants())
_OF_EVERY_RUN = {_VARIANTS[0].name, "avx2", "portable"}


def _marks(variant: Variant) -> list[pytest.MarkDecorator]:
    return [] if variant.name in _OF_EVERY_RUN else [pytest.mark.slow]


BUILDS = [pytest.param(variant, marks=_marks(variant), id=variant.name) for variant in _VARIANTS]
"""All that this processor runs. All but the best, and one for each way to write vectors, are marked
slow: they take long to compile."""
