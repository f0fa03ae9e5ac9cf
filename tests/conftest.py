"""What must stand before any test module is imported."""

from __future__ import annotations

import os
import shutil

if shutil.which("nvidia-smi") is None:
    # Triton's kernels run in its interpreter; read when triton is imported, by whomever
    os.environ["TRITON_INTERPRET"] = "1"
