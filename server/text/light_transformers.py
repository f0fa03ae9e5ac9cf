"""transformers without torch: its tokenizers and configurations need none."""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import cast

from utils.garbage import without_collections


def import_transformers_without_torch() -> None:
    """Import transformers' tokenizers and configurations as on a machine that has no torch.

    Where transformers finds torch, it imports torch's compiler and distributed packages as well: 2 to
    12 seconds and 340 MB, for nothing that a tokenizer uses. It looks once, so that torch can be
    imported before and afterwards; transformers' models are then out of reach of this process.

    Does nothing where transformers is imported already.
    """
    if "transformers" in sys.modules:
        return
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # of models that cannot be used
    torch = sys.modules.get("torch")
    sys.modules["torch"] = cast(ModuleType, None)  # Python's way of saying that there is no such module
    try:
        with without_collections():
            from transformers import AutoConfig, AutoTokenizer  # noqa: F401
    finally:
        sys.modules.pop("torch", None)
        if torch is not None:
            sys.modules["torch"] = torch
