"""No layer imports a higher one, and what must start fast imports neither torch nor ray."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sweepcp

PACKAGE = Path(sweepcp.__file__).parent

LAYERS = [
    {"errors", "schedule"},
    {"files"},
    {"schema"},
    {"recipe", "shape", "model_files"},
    {"scorecard", "promote.target"},
    {"trial"},
    {"space", "front"},
    {"run"},
    {
        "data.template",
        "data.python_text",
        "data.language",
        "data.encode",
        "data.shuffle",
        "data.apportion",
    },
    {"data.sources", "data.store", "data.spread", "data.duplicates", "data.prevalence"},
    {"data.records", "data.overlap", "data.stream"},
    {"data.read"},
    {"data.build", "data.estimate", "data.mine", "data.mix"},
    {"base", "suites"},
    {"promote.bundle"},
    {"promote.budget", "promote.ds_config"},
    {"export.safe", "export.facts"},
    {"export.site"},
    {"export.handoff"},
    {"export.transformers_keys", "export.launchers.shell"},
    {"export.launchers.kubernetes"},
    {f"export.trainers.{name}" for name in ("deepspeed", "hf_trainer", "axolotl", "llama_factory")},
    {"export.trainers.megatron_lm", "export.trainers.torchtitan"},
    {f"export.launchers.{name}" for name in ("torchrun", "slurm", "ray", "kubeflow", "skypilot")},
    {"export.verify"},
    {"export.write"},
    {"ranks", "job"},
    {"engine", "full.weights"},
    {"train", "full.checkpoint", "full.zero"},
    {"models", "score.held_out", "score.tasks"},
    {"score.scorer"},
    {"bench"},
    {"search"},
    {"search.propose", "search.watch"},
    {"search.driver", "search.importance", "report.tables", "report.chart", "doubts"},
    {"experiment"},
    {"repetition", "origin", "report.frames", "report.resample", "report.trend"},
    {"report.words", "report.interactive", "report.image"},
    {"report.charts", "report.sections"},
    {"report.look"},
    {"report.page"},
    {"report.watch"},
    {"promote.candidate", "full.ready", "full.log"},
    {"promote.translate"},
    {"full.run"},
    {"full.with_ray"},
    {"sweep", "plan"},
    {"check"},
    {"display", "promote.show", "export.show"},
    {"cli"},
    {"__main__"},
]
PACKAGES = (
    "data",
    "score",
    "promote",
    "full",
    "export",
    "export.trainers",
    "export.launchers",
    "report",
)
"""Whose own file imports nothing."""
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}
LIGHT = (
    "errors",
    "files",
    "schedule",
    "schema",
    "recipe",
    "scorecard",
    "trial",
    "space",
    "front",
    "run",
    "report.tables",
)
LIGHT = (
    *LIGHT,
    "experiment",
    "plan",
    "display",
    "base",
    "suites",
    "data.build",
    "data.estimate",
    "job",
    "search",
)
LIGHT = (
    *LIGHT,
    "check",
    "repetition",
    "sweep",
    "shape",
    "model_files",
    "origin",
    "full.ready",
    "promote.show",
)
LIGHT = (
    *LIGHT,
    *(
        f"promote.{name}"
        for name in ("target", "bundle", "candidate", "translate", "budget", "ds_config")
    ),
)

LIGHT = (*LIGHT, "export.write", "export.verify", "export.show")


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name.startswith("export.readers"):
            continue  # scripts for other interpreters
        if name and name not in PACKAGES:
            found[name] = path
    return found


def imports(path: Path) -> set[str]:
    """The package's modules that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sweepcp."):
            name = node.module.removeprefix("sweepcp.")
            found |= (
                {f"{name}.{alias.name}" for alias in node.names} if name in PACKAGES else {name}
            )
    return found


def test_every_module_has_its_layer():
    assert set(modules()) == set(HEIGHT)


@pytest.mark.parametrize("name", sorted(modules()))
def test_no_layer_imports_a_higher_one(name: str):
    higher = {other for other in imports(modules()[name]) if HEIGHT[other] > HEIGHT[name]}
    assert not higher


def test_who_may_import_what():
    outside: dict[str, set[str]] = {
        "ray": set(),
        "lm_eval": set(),
        "optuna": set(),
        "deepspeed": set(),
    }
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                roots = [str(node.module).split(".")[0]]
            elif isinstance(node, ast.Import):
                roots = [alias.name.split(".")[0] for alias in node.names]
            else:
                continue
            for root in set(roots) & set(outside):
                outside[root].add(name)
    assert outside == {
        "ray": {"search.driver", "data.spread", "full.with_ray"},
        "deepspeed": {"full.zero"},
        "lm_eval": {"score.tasks"},
        "optuna": {"search.propose", "search.importance"},
    }


@pytest.mark.parametrize(
    ("light", "allowed"), [(LIGHT, ()), (("report.page", "report.watch"), ("pandas",))]
)
def test_light_modules_import_neither_torch_nor_ray(
    light: tuple[str, ...], allowed: tuple[str, ...]
):
    names = ", ".join(f"sweepcp.{name}" for name in light)
    heavy = sorted(
        {"torch", "ray", "transformers", "pandas", "lm_eval", "optuna", "deepspeed"} - set(allowed)
    )
    code = f"import sys, {names}\nprint([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
