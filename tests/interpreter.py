"""Triton's interpreter, made faster.

It puts its own functions in the place of `triton.language`'s when a kernel is launched, and again at every
call of a function within it, which takes up to half of its time. Once a launch is enough: they are taken away
at its end.

Half of the remaining time goes into integer overflow checks, whose result is used in debug mode only, and
into building the same type objects again for every value.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from typing import Any

KNOWN = "3.7."
"""The release of Triton whose interpreter is patched here."""
_faster: list[Any] = []


def make_faster() -> None:
    """Where a test or what it imports has loaded the interpreter, and it is one that is known here."""
    interpreter: Any = sys.modules.get("triton.runtime.interpreter")
    if interpreter is None or _faster:
        return
    _faster.append(interpreter)
    if not interpreter.triton.__version__.startswith(KNOWN):
        return
    _patch_once_a_launch(interpreter)
    _leave_out_unread_checks(interpreter)
    _remember_types(interpreter)
    _broadcast_only_where_shapes_differ(interpreter)


def _patch_once_a_launch(interpreter: Any) -> None:
    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    languages = interpreter.tl, interpreter.tl.core
    seen: dict[Any, set[int]] = {}
    patched: set[int] = set()
    builtins: dict[int, list[tuple[str, Any]]] = {}

    def patch_once(fn: Any) -> Any:
        if fn not in seen:
            known = {id(value) for value in fn.__globals__.values()}
            seen[fn] = {i for i, language in enumerate(languages) if id(language) in known}
        if seen[fn] <= patched:
            return None  # which a call within a kernel does not look at
        patched.update(seen[fn])
        return patch(fn)

    def launch_anew(executor: Any, *args: Any, **kwargs: Any) -> Any:
        patched.clear()
        return launch(executor, *args, **kwargs)

    def patch_builtin(package: Any, builder: Any, scope: Any) -> None:
        if id(package) not in builtins:
            members = inspect.getmembers(package, interpreter.tl.core.is_builtin)
            builtins[id(package)] = [
                (name, getattr(member, "__wrapped__", member)) for name, member in members
            ]
        for name, member in builtins[id(package)]:
            scope.set_attr(package, name, with_semantic(member))

    def with_semantic(member: Any) -> Any:
        semantic = interpreter.interpreter_semantic

        def call(*args: Any, **kwargs: Any) -> Any:
            kwargs["_semantic"] = semantic
            return member(*args, **kwargs)

        return call

    interpreter._patch_lang = patch_once
    interpreter._patch_builtin = patch_builtin
    interpreter.GridExecutor.__call__ = launch_anew


def _leave_out_unread_checks(interpreter: Any) -> None:
    """Integer overflow checks, whose result only debug mode uses."""
    builder = interpreter.interpreter_builder
    if not builder.options.debug:
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


def _remember_types(interpreter: Any) -> None:
    """Types of values, of their blocks and of their arrays, and the shapes of blocks."""
    core = interpreter.tl.core
    arrays: dict[str, Any] = {}
    blocks: dict[tuple[str, tuple[int, ...]], Any] = {}
    shapes: dict[tuple[int, ...], tuple[Any, Any]] = {}
    numpy_type, to_ir = interpreter._get_np_dtype, core.block_type.to_ir

    def type_of_array(of: Any) -> Any:
        scalar = of.scalar
        found = arrays.get(scalar.name)
        if found is None:
            found = arrays[scalar.name] = numpy_type(scalar)
        return found

    def with_element_type(block: Any, scalar: Any) -> Any:
        key = (scalar.name, tuple(block.shape.values))
        found = blocks.get(key)
        if found is None:
            found = blocks[key] = core.block_type(scalar, block.shape)
        return found

    def type_as_it_is(block: Any, builder: Any) -> Any:
        return block if builder is interpreter.interpreter_builder else to_ir(block, builder)

    def describe(value: Any, handle: Any, type: Any) -> None:
        shape = tuple(type.shape.values) if type.is_block() else ()
        found = shapes.get(shape)
        if found is None:
            numel = type.numel if shape else 1
            found = shapes[shape] = core.constexpr(numel), core.tuple([core.constexpr(n) for n in shape])
        value.handle, value.type, value.dtype = handle, type, type.scalar
        value.numel, value.shape = found

    interpreter._get_np_dtype = type_of_array
    core.block_type.with_element_ty = with_element_type
    core.block_type.to_ir = type_as_it_is
    core.tensor.__init__ = describe


def _broadcast_only_where_shapes_differ(interpreter: Any) -> None:
    semantic = type(interpreter.interpreter_semantic)
    broadcast = semantic.broadcast_impl_value

    def broadcast_if_needed(self: Any, left: Any, right: Any) -> Any:
        own, other = left.type, right.type
        if own.is_block() != other.is_block() or (own.is_block() and own.shape.values != other.shape.values):
            return broadcast(self, left, right)
        return left, right

    semantic.broadcast_impl_value = broadcast_if_needed
