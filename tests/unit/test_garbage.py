"""Blocks of code without garbage collection."""

import gc
from collections.abc import Iterator
from contextlib import suppress

import pytest

from sweepcp.util.garbage import no_garbage_collection


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_as_before_also_after_an_error(enabled: bool):
    if not enabled:
        gc.disable()
    with suppress(ImportError), no_garbage_collection():
        with no_garbage_collection():
            assert not gc.isenabled()
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled() == enabled
    assert gc.get_freeze_count() == 0


def test_what_is_frozen_stays_frozen():
    gc.freeze()
    frozen = gc.get_freeze_count()
    with no_garbage_collection():
        pass
    assert gc.get_freeze_count() == frozen > 0
