"""Text that every Python installation carries: documentation and code of its packages."""

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

EXCLUDED_FOLDERS = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "__pycache__",
    "pydoc_data",
}  # tests; pydoc_data is read as docs
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def find_modules(text: PythonText, where: object, key: str) -> list[Path]:
    """The files to read; `BadInput` for a package that is not installed."""
    found = [path for name in text.packages for path in _package_files(name, where, key)]
    if text.part == "docs" and "stdlib" in text.packages:
        found.append(Path(sysconfig.get_path("stdlib")) / "pydoc_data" / "topics.py")
    return found


def _package_files(package: str, where: object, key: str) -> list[Path]:
    if package == "stdlib":
        return _python_files(Path(sysconfig.get_path("stdlib")))
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not (spec.submodule_search_locations or spec.origin):
        fix = f"install it, or correct the name; `stdlib` is always here (Python {sys.version.split()[0]})"
        raise InvalidInput(
            file=where, key=key, found=package, rule="an importable package", fix=fix
        )
    if not spec.submodule_search_locations:
        return [Path(str(spec.origin))]
    return [path for root in spec.submodule_search_locations for path in _python_files(Path(root))]


def _python_files(root: Path) -> list[Path]:
    found: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - EXCLUDED_FOLDERS)
        found += [Path(folder) / name for name in sorted(names) if name.endswith(".py")]
    return found


def module_documents(text: PythonText, path: Path) -> Iterator[str]:
    """The documents of one module: its docstrings or its code as one, pydoc's chapters one by one; may be empty."""
    if path.parent.name == "pydoc_data":
        from pydoc_data.topics import topics

        yield from (topics[name] for name in sorted(topics))
    else:
        yield _docstrings_of(path) if text.part == "docs" else _code_of(path)


def _parse_module(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # a template or a file for another Python
        return ast.Module(body=[], type_ignores=[])


def _docstrings_of(path: Path) -> str:
    found = [
        ast.get_docstring(node)
        for node in ast.walk(_parse_module(path))
        if isinstance(node, DOCUMENTED)
    ]
    return "\n\n".join(inspect.cleandoc(text) for text in found if text)


def _code_of(path: Path) -> str:
    tree = _parse_module(path)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
