"""Compiles the kernels once a machine, and keeps the library in the user's cache directory.

The library is plain C to the outside and includes nothing of torch, so that this needs a C++ compiler only.
Each source file is compiled on a processor of its own. What the library is kept under is a hash of all that
went into it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from server.ops.cpu.variants import VARIANTS, Variant

SOURCES = Path(__file__).parent / "src"
PREBUILT = Path(__file__).parent / "prebuilt"
"""Of an image whose user can write nowhere (`build_ahead`)."""
_FLAGS = ("-std=c++20", "-O3", "-fPIC", "-fopenmp", "-ffp-contract=off", "-fno-math-errno")
"""Without contraction: fma() is written where it is meant, so that no copy of a loop rounds differently."""
_TIMEOUT_SECONDS = 300
_OPENMP_RUNTIMES = ("libgomp", "libiomp5", "libomp")


class NativeError(Exception):
    """The kernels cannot be had; the message is one line for the operator."""


def find_compiler() -> list[str]:
    """The command of a C++ compiler: ``$CXX``, or the first that is installed.

    Raises:
        NativeError: there is none.
    """
    wanted = shlex.split(os.environ.get("CXX", ""))
    for command in [wanted] if wanted else [["g++"], ["c++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    raise NativeError("no C++ compiler is installed" + (f" (CXX is {wanted[0]!r})" if wanted else ""))


def cache_directory() -> Path:
    """Where built libraries are kept, a directory that exists.

    It is below ``$XDG_CACHE_HOME`` or ``~/.cache``; where there is no home that can be written, as in a
    container whose user has no entry in ``/etc/passwd``, it is in the directory for temporary files.

    Raises:
        NativeError: none can be written.
    """
    below = Path("inference-stack") / "native"
    if base := os.environ.get("XDG_CACHE_HOME"):
        return _made(Path(base) / below)
    try:
        return _made(Path.home() / ".cache" / below)
    except (RuntimeError, NativeError):  # the first: nobody knows where it is
        return _made(_private(Path(tempfile.gettempdir()) / f"inference-stack-{os.geteuid()}"))


def _made(directory: Path) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NativeError(f"{directory} cannot be written: {error.strerror}") from error
    if not os.access(directory, os.W_OK):
        raise NativeError(f"{directory} cannot be written")
    return directory


def _private(directory: Path) -> Path:
    """`directory`, which nobody else can have put there: code is loaded from it."""
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        found = directory.lstat()
    except OSError as error:
        raise NativeError(f"{directory} cannot be written: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise NativeError(f"{directory} is not a directory of this user alone")
    return directory


def build(variant: Variant) -> Path:
    """The library of `variant`, compiled if it is neither built ahead nor in the cache.

    Raises:
        NativeError: it cannot be compiled; says why.
    """
    ahead = PREBUILT / _name(variant)
    if ahead.is_file():
        return ahead
    compiler = find_compiler()
    version = _run([*compiler, "--version"])
    library = cache_directory() / _name(variant, compiler, version)
    if not library.is_file():
        with _alone(library.parent):
            if not library.is_file():
                _compile(compiler, variant, library)
    return library


def build_ahead() -> None:
    """Compile all variants for machines without a compiler, which have the same packages at the same place.

    Raises:
        NativeError: one cannot be compiled.
    """
    PREBUILT.mkdir(exist_ok=True)
    for variant in VARIANTS:
        _compile(find_compiler(), variant, PREBUILT / _name(variant))


def _name(variant: Variant, *compiled_by: object) -> str:
    """Of a library: another one for whatever would change it."""
    content = hashlib.sha256(repr((compiled_by, _FLAGS, variant.flags, _loaded_openmp())).encode())
    for source in sorted(SOURCES.iterdir()):
        content.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return f"kernels-{variant.name}-{content.hexdigest()[:16]}.so"


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Let one process at a time compile: servers that start together need the same library."""
    try:
        with (directory / "lock").open("w") as lock:
            with suppress(OSError):  # on a file system without locks each compiles, and the last one's stays
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise NativeError(f"{directory} cannot be written: {error.strerror}") from error


def _compile(compiler: list[str], variant: Variant, library: Path) -> None:
    directory = library.parent
    try:
        with tempfile.TemporaryDirectory(dir=directory) as scratch:

            def compiled(source: Path) -> str:
                target = str(Path(scratch) / f"{source.stem}.o")
                _run([*compiler, *_FLAGS, *variant.flags, "-c", str(source), "-o", target])
                return target

            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                # from the last on, so that those that take longest come first
                objects = list(pool.map(compiled, sorted(SOURCES.glob("*.cpp"), reverse=True)))
            linked = Path(scratch) / "kernels.so"
            _run([*compiler, "-shared", *objects, _loaded_openmp() or "-fopenmp", "-o", str(linked)])
            linked.replace(library)  # atomic: it is there as a whole or not
    except OSError as error:
        raise NativeError(f"{directory} cannot be written: {error.strerror}") from error


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeError(f"{command[0]} does not run: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise NativeError(f"{command[0]} fails: {lines[0].strip() if lines else done.returncode}")
    return done.stdout


def _loaded_openmp() -> str | None:
    """The OpenMP library that torch has loaded, if this system tells: with the same one there is one
    pool of threads, not two that wait for each other's processors."""
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return None
    paths = {line.split(maxsplit=5)[-1].strip() for line in maps.read_text().splitlines() if "/" in line}
    for runtime in _OPENMP_RUNTIMES:
        for path in sorted(paths):
            if Path(path).name.startswith(runtime):
                return path
    return None
