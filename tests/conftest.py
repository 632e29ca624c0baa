"""Shared fixtures. Every test session has a cache of its own."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache folder of this session, or the one that SWEEPCP_TEST_CACHE names."""
    path = Path(os.environ.get("SWEEPCP_TEST_CACHE") or tmp_path_factory.mktemp("cache"))
    os.environ["SWEEPCP_CACHE"] = str(path)
    return path
