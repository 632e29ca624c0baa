"""Imports that the contracts of import-linter (pyproject.toml) cannot express."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sweepcp

PACKAGE = Path(sweepcp.__file__).parent
HEAVY = ("torch", "ray", "transformers", "pandas", "lm_eval", "optuna", "deepspeed", "datasets")
LIGHT = (
    "cli",
    "console.bundle",
    "console.check",
    "console.export",
    "console.front",
    "console.plan",
    "console.progress",
    "corpora.check",
    "corpora.experiment",
    "corpora.stores",
    "data.build",
    "export.verify",
    "export.write",
    "full_run.preflight",
    "promote.candidate",
    "promote.translate",
    "report.tables",
    "runs.run_folder",
    "search.plan",
    "search.search",
)
"""Modules behind commands that answer at once. They import neither of `HEAVY` when imported."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts), ast.parse(path.read_text())


def external_imports(tree: ast.Module) -> set[str]:
    """The top-level packages that a module imports, wherever in it."""
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            roots.add(str(node.module).split(".")[0])
        elif isinstance(node, ast.Import):
            roots.update(alias.name.split(".")[0] for alias in node.names)
    return roots


@pytest.mark.parametrize(
    ("package", "importers"),
    [
        (
            "ray",
            {
                "search.cluster",
                "search.ray_driver",
                "search.worker",
                "full_run.ray_launcher",
                "util.parallel",
            },
        ),
        ("deepspeed", {"training.zero_engine"}),
        (
            "lm_eval",
            {
                "scoring.lm_eval_encoding",
                "scoring.lm_eval_loading",
                "scoring.lm_eval_model",
                "scoring.lm_eval_tasks",
            },
        ),
        ("optuna", {"search.proposals", "search.importance"}),
    ],
)
def test_who_imports_the_large_frameworks(package: str, importers: set[str]):
    found = {name for name, tree in modules() if package in external_imports(tree)}
    # Readers are scripts that run in the environments of other trainers.
    assert {name for name in found if not name.startswith("export.readers.")} == importers


@pytest.mark.parametrize(
    ("light", "allowed"), [(LIGHT, set()), (("report.page", "report.server"), {"pandas"})]
)
def test_light_modules_import_nothing_heavy(light: tuple[str, ...], allowed: set[str]):
    names = ", ".join(f"sweepcp.{name}" for name in light)
    heavy = [name for name in HEAVY if name not in allowed]
    code = f"import sys, {names}\nprint([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_only_three_modules_stand_at_the_root():
    assert {path.name for path in PACKAGE.glob("*.py")} == {
        "__init__.py",
        "__main__.py",
        "errors.py",
    }


def test_every_parameter_has_a_type():
    untyped = []
    for name, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                arguments += [a for a in (node.args.vararg, node.args.kwarg) if a]
                named = [a for a in arguments if a.arg not in ("self", "cls")]
                untyped += [f"{name}.{node.name}" for a in named if a.annotation is None]
    assert untyped == []
