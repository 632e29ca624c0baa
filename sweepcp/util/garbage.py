"""Python's garbage collection: the search for unused objects that refer to each other."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep Python from searching for garbage while objects are created that are all kept.

    It would visit all of them again and again, which doubles the time of reading a large run, and
    takes a fifth of the time of importing a large library.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        # Together they move all objects to the oldest generation, which is rarely visited. What
        # somebody has frozen stays so.
        if not gc.get_freeze_count():
            gc.freeze()
            gc.unfreeze()
        gc.enable()
