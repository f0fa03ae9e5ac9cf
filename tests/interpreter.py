"""Triton's interpreter, made faster.

It puts its own functions in the place of `triton.language`'s when a kernel is launched, and again at every
call of a function within it, which takes up to half of its time. Once a launch is enough: they are taken away
at its end.
"""

from __future__ import annotations

import sys
from typing import Any

_faster: list[Any] = []


def make_faster() -> None:
    """Where a test or what it imports has loaded the interpreter, and it is one that is known here."""
    interpreter: Any = sys.modules.get("triton.runtime.interpreter")
    if interpreter is None or _faster:
        return
    _faster.append(interpreter)
    if not hasattr(interpreter, "_patch_lang") or not hasattr(interpreter, "GridExecutor"):
        return
    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[Any] = set()

    def patch_once(fn: Any) -> Any:
        if fn in patched:
            return None  # which a call within a kernel does not look at
        patched.add(fn)
        return patch(fn)

    def launch_anew(executor: Any, *args: Any, **kwargs: Any) -> Any:
        patched.clear()
        return launch(executor, *args, **kwargs)

    interpreter._patch_lang = patch_once
    interpreter.GridExecutor.__call__ = launch_anew
