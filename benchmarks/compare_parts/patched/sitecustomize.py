"""Switches off the levers that COMPARE_LEVERS names, in every process of an arm.

Python imports this module at its start where PYTHONPATH names this folder: in the driver, and in
the workers that Ray starts. A patch is applied to a module as soon as that has been imported.
"""

import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from compare_parts.levers import LEVERS

PATCHES = {
    module: patch
    for lever in os.environ["COMPARE_LEVERS"].split()
    for module, patch in LEVERS[lever].items()
}


class PatchingFinder(MetaPathFinder):
    """Finds the modules that are patched, and applies the patch after they are executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module that is patched, or None."""
        if fullname not in PATCHES:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        assert spec is not None
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            PATCHES[fullname](module)

        loader.exec_module = execute_and_patch
        return spec


sys.meta_path.insert(0, PatchingFinder())
