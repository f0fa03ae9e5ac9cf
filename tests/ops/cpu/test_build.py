"""Building, keeping and doing without the kernels."""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import stat
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import pytest

from server.ops.cpu import build as build_module
from server.ops.cpu.build import NativeError, build, cache_directory
from server.ops.cpu.library import load
from server.ops.cpu.variants import VARIANTS, Variant, usable_variants
from tests.checkpoints import tiny_llama
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.reference import Reference, mixed_requests
from tests.continuous_batching.test_exactness import assert_exact

PORTABLE = VARIANTS[-1]


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def small_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two files in place of the kernels, which take long to compile and are built for other tests."""
    sources = tmp_path / "src"
    sources.mkdir()
    (sources / "one.cpp").write_text('#include "two.h"\nextern "C" int doubled(int x) { return twice(x); }\n')
    (sources / "two.cpp").write_text('#include "two.h"\nint twice(int x) { return 2 * x; }\n')
    (sources / "two.h").write_text("int twice(int x);\n")
    monkeypatch.setattr(build_module, "SOURCES", sources)
    return sources


def doubled(library: Path, x: int) -> int:
    return int(ctypes.CDLL(str(library)).doubled(x))


@pytest.mark.usefixtures("small_sources")
def test_built_once_and_found_again(empty_cache: Path) -> None:
    first = build(PORTABLE)
    modified = first.stat().st_mtime_ns
    assert build(PORTABLE) == first and first.stat().st_mtime_ns == modified
    assert list(empty_cache.rglob("*.so")) == [first]
    assert doubled(first, 21) == 42


@pytest.mark.parametrize("name", ["two.cpp", "two.h"])
@pytest.mark.usefixtures("empty_cache")
def test_a_changed_source_is_built_anew(small_sources: Path, name: str) -> None:
    first = build(PORTABLE)
    (small_sources / name).write_text((small_sources / name).read_text() + "// changed\n")
    assert build(PORTABLE) != first


@pytest.mark.usefixtures("small_sources")
def test_servers_that_start_together_compile_once(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Variant] = []
    compile_ = build_module._compile

    def slowly(compiler: list[str], variant: Variant, library: Path) -> None:
        compiled.append(variant)
        time.sleep(0.5)  # time for the others to find that there is no library
        compile_(compiler, variant, library)

    monkeypatch.setattr(build_module, "_compile", slowly)
    with ThreadPoolExecutor(3) as pool:
        libraries = list(pool.map(build, [PORTABLE] * 3))
    assert compiled == [PORTABLE]
    assert {*libraries} == {*empty_cache.rglob("*.so")} and doubled(libraries[0], 2) == 4


@pytest.mark.usefixtures("small_sources", "empty_cache")
def test_a_file_system_without_locks_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_available(*_: object) -> NoReturn:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", none_available)
    assert doubled(build(PORTABLE), 4) == 8


@pytest.mark.usefixtures("small_sources")
def test_what_is_built_ahead_needs_no_compiler_and_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "VARIANTS", [PORTABLE])
    monkeypatch.setattr(build_module, "PREBUILT", tmp_path / "prebuilt")
    build_module.build_ahead()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/1")
    found = build(PORTABLE)
    assert list((tmp_path / "prebuilt").iterdir()) == [found]
    assert doubled(found, 3) == 6


def test_best_first_and_one_for_every_processor() -> None:
    names = [variant.name for variant in usable_variants()]
    assert names == [variant.name for variant in VARIANTS if variant.name in names]
    assert names[-1] == "portable"


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        (None, "no C++ compiler is installed"),
        ("exit 1", "fails"),
        ("echo broken.h: error: no >&2; exit 1", "no"),
    ],
)
def test_without_a_working_compiler(
    empty_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compiler: str | None,
    message: str,
) -> None:
    """The engine says why, serves by torch on packed weights, and is as exact."""
    monkeypatch.delenv("CXX", raising=False)
    if compiler is None:
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        script = tmp_path / "broken-c++"
        script.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit 0\n{compiler}\n')
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
    with pytest.raises(NativeError, match=message.replace("+", r"\+")):
        load()
    model = tiny_llama(tmp_path / "model")
    llm = small_llm(model)
    assert llm.capabilities["kernels"]["name"] == "torch (packed by oneDNN)"
    assert message in llm.capabilities["kernels"]["reason"]
    assert llm.capabilities["attention"]["name"] == "torch"
    assert message in llm.capabilities["attention"]["reason"]
    reference = Reference(model)
    assert_exact(llm, reference, mixed_requests(reference, 10, seed=4, longest=20, longest_prompt=40))


def test_what_the_kernels_cannot_do_is_named(tmp_path: Path) -> None:
    llm = small_llm(tiny_llama(tmp_path), dtype="float16")
    assert "not float16" in llm.capabilities["kernels"]["reason"]
    assert "not float16" in llm.capabilities["attention"]["reason"]


def test_a_cache_directory_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.raises(NativeError, match="cannot be written"):
        build(PORTABLE)
    assert os.listdir(tmp_path) == ["file"]


def homeless(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    """As in a container that runs under a number without a name."""
    for name in ("HOME", "XDG_CACHE_HOME", "USER", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid: int) -> NoReturn:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))


def test_without_a_home_libraries_are_kept_in_a_private_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    homeless(monkeypatch, tmp_path)
    directory = cache_directory()
    assert directory == tmp_path / f"inference-stack-{os.geteuid()}"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert cache_directory() == directory  # the second start finds it


@pytest.mark.parametrize("home", ["file", "/proc/nowhere"])
def test_a_home_that_cannot_be_written_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    homeless(monkeypatch, tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / home))
    assert cache_directory().parent == tmp_path


@pytest.mark.parametrize("planted", ["open to all", "link", "file"])
def test_what_others_may_have_put_there_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    homeless(monkeypatch, tmp_path)
    place = tmp_path / f"inference-stack-{os.geteuid()}"
    if planted == "open to all":
        place.mkdir()
        place.chmod(0o777)
    elif planted == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.write_text("")
    with pytest.raises(
        NativeError, match=f"{place.name} (is not a directory of this user|cannot be written)"
    ):
        cache_directory()
