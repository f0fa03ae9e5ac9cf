"""When Python collects garbage."""

from __future__ import annotations

import gc

import pytest

from utils.garbage import without_collections


def test_imports_are_not_interrupted_and_stay() -> None:
    before = gc.get_freeze_count()
    try:
        with without_collections():
            assert not gc.isenabled()
            kept = [[] for _ in range(1000)]
        assert gc.isenabled() and gc.get_freeze_count() >= before + len(kept)
    finally:
        gc.unfreeze()


def test_collections_go_on_after_an_import_that_failed() -> None:
    try:
        with pytest.raises(ImportError), without_collections():
            raise ImportError
        assert gc.isenabled()
    finally:
        gc.unfreeze()
