"""The memory that a process may use."""

import os
from pathlib import Path

GIB = 2**30
"""Bytes."""
MEMORY_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Bytes that a container may use, or `max`; under cgroup v2 and v1."""


def usable_memory() -> int:
    """Return the bytes of the machine's memory, or of its container's limit if that is less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in MEMORY_LIMITS:
        try:
            memory = min(memory, int(file.read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such file, or a limit of `max`
            continue
    return memory
