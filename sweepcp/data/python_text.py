"""Text that every Python installation has: the documentation and the code of its packages."""

import ast
import inspect
import os
import sys
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from sweepcp.config.source import PythonText
from sweepcp.errors import InvalidInput

# Tests are not typical code, and the chapters of pydoc_data are read as documentation.
EXCLUDED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "__pycache__", "pydoc_data"}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
"""Nodes that may have a docstring."""


def find_modules(text: PythonText) -> list[Path]:
    """Return the files of all modules to read.

    Raises:
        InvalidInput: A package is not installed; the key is `packages`.
    """
    modules: list[Path] = []
    for package in text.packages:
        modules += _package_files(package)
    if text.part == "docs" and "stdlib" in text.packages:
        modules.append(Path(sysconfig.get_path("stdlib")) / "pydoc_data" / "topics.py")
    return modules


def module_documents(text: PythonText, path: Path) -> Iterator[str]:
    """Yield the documents of one module, which may be empty.

    They are its docstrings or its code as one document, or each chapter of the language reference.
    """
    if path.parent.name == "pydoc_data":
        from pydoc_data.topics import topics

        yield from (topics[name] for name in sorted(topics))
    elif text.part == "docs":
        yield _docstrings_of(path)
    else:
        yield _code_of(path)


def _package_files(package: str) -> list[Path]:
    if package == "stdlib":
        return _python_files(Path(sysconfig.get_path("stdlib")))
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not (spec.submodule_search_locations or spec.origin):
        version = sys.version.split()[0]
        fix = f"install it, or correct the name; `stdlib` is always available (Python {version})"
        raise InvalidInput(key="packages", found=package, rule="an importable package", fix=fix)
    if not spec.submodule_search_locations:
        if not (spec.has_location and str(spec.origin).endswith(".py")):
            rule = "a package or module of Python files; this one is built in, frozen or compiled"
            fix = "leave it out; `stdlib` has all modules that Python brings"
            raise InvalidInput(key="packages", found=package, rule=rule, fix=fix)
        return [Path(str(spec.origin))]
    files: list[Path] = []
    for root in spec.submodule_search_locations:
        files += _python_files(Path(root))
    return files


def _python_files(root: Path) -> list[Path]:
    files: list[Path] = []
    for folder, folders, names in os.walk(root):
        # os.walk descends into what is left in `folders`, in that order.
        folders[:] = sorted(set(folders) - EXCLUDED_FOLDERS)
        files += [Path(folder) / name for name in sorted(names) if name.endswith(".py")]
    return files


def _parse_module(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        # Packages ship templates, and files for other versions of Python.
        return ast.Module(body=[], type_ignores=[])


def _docstrings_of(path: Path) -> str:
    docstrings: list[str] = []
    for node in ast.walk(_parse_module(path)):
        if isinstance(node, DOCUMENTED):
            docstring = ast.get_docstring(node)
            if docstring:
                docstrings.append(inspect.cleandoc(docstring))
    return "\n\n".join(docstrings)


def _code_of(path: Path) -> str:
    tree = _parse_module(path)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            # A body may not be empty.
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
