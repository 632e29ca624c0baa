"""Helpers for tests of exports: bundles at fixed paths, and files with one key altered."""

import ast
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from sweepcp.config.site import Site, load_site
from sweepcp.config.target import load_target
from sweepcp.config.validation import validate
from sweepcp.export.export_plan import ExportInput
from sweepcp.export.verify import Verification, compare_parsed, run_reader
from sweepcp.export.write import TRAINERS, ExportResult, choose_targets, render_files
from sweepcp.promote.bundle import LoadedBundle, load_bundle
from sweepcp.promote.candidate import candidate_from_publication
from sweepcp.promote.translate import promote
from sweepcp.util.files import shipped_folder

HASH = "b" * 64
CASES: dict[str, dict[str, Any]] = {
    "cosine": {},
    "linear": {"schedule": "linear"},
    "wsd": {"schedule": "wsd", "warmup": 0.1, "decay": 0.2},
    "constant": {"schedule": "constant"},
    "wsd to a high end": {"schedule": "wsd", "warmup": 0.1, "decay": 0.2, "final_fraction": 0.3},
    "to zero": {"final_fraction": 0.0},
    "no warmup": {"warmup": 0.0},
    "1-sqrt": {"schedule": "wsd-1-sqrt", "warmup": 0.1, "decay": 0.3, "final_fraction": 0.05},
    "warmup in steps": {"warmup_steps": 7, "warmup": None},
    "minimum LR": {"min_lr": 2e-6, "final_fraction": None},
    "minimum LR, linear": {"schedule": "linear", "min_lr": 2e-6, "final_fraction": None},
    "minimum LR, 1-sqrt": {"schedule": "wsd-1-sqrt", "min_lr": 2e-6, "final_fraction": None},
    "another AdamW": {"betas": (0.8, 0.99), "weight_decay": 0.0, "clip": 0.5, "epsilon": 1e-6},
    "across documents": {"cross_documents": True},
}
"""Changes of e-Llama's recipe. A trainer that cannot express one must state a difference."""

SECTIONS = {
    "kubernetes": {"image": "nvcr.io/nvidia/pytorch:24.01-py3", "claim": "shared"},
    "skypilot": {"volume": "shared", "gpu": "H100"},
}
"""Required keys of a site for launchers that need a section, besides `mount`."""

Exported = tuple[ExportInput, dict[str, str]]
"""What is exported, and its files by name."""


def promoted(folder: Path, target: str, recipe: str = "e-llama", **changes: Any) -> LoadedBundle:
    """Promote a published recipe, with changes, to a shipped target."""
    candidate = candidate_from_publication(recipe)
    if changes:
        candidate = replace(candidate, method=candidate.method.model_copy(update=changes))
    loaded_target, target_file = load_target(target)
    promote(candidate, loaded_target, file=target_file, out=folder / "bundle")
    return load_bundle(folder / "bundle")


def promoted_short(folder: Path, recipe: str = "e-llama", **changes: Any) -> LoadedBundle:
    """Promote a recipe to Llama 3.1 8B for 100 steps, with a tracker."""
    targets = shipped_folder("experiments") / "targets"
    content = yaml.safe_load((targets / "llama-3.1-8b-4x8.yaml").read_text())
    content |= {"tokens": 100 * content["batch_tokens"], "tracking": ["wandb"]}
    folder.mkdir(exist_ok=True)
    target_file = folder / "short.yaml"
    target_file.write_text(yaml.safe_dump(content))
    return promoted(folder, str(target_file), recipe, **changes)


def make_input(loaded: LoadedBundle, out: Path, site: str | None = None) -> ExportInput:
    """Combine a bundle with a shipped site, or none."""
    loaded_site, _ = load_site(site)
    return ExportInput(loaded, loaded_site, out)


def make_site(out: Path, **content: Any) -> Site:
    """Validate the content of a site file, with sections for all launchers."""
    for key, section in SECTIONS.items():
        content[key] = section | {"mount": f"/{out.parts[1]}"} | content.get(key, {})
    return validate(Site, {"job": "job"} | content, "site.yaml")


def at_fixed_paths(loaded: LoadedBundle) -> ExportInput:
    """Return the input of golden files, in which no path or hash depends on this machine."""
    fixed = replace(loaded, path=Path("/shared/bundle"), id=HASH)
    return make_input(fixed, Path("/shared/export"), "example")


def rendered(export_input: ExportInput, *names: str) -> dict[str, str]:
    """Render the files for a trainer, a launcher, or both."""
    trainer, launcher = choose_targets(names)
    plan = TRAINERS[trainer].make_export_plan(export_input)
    return render_files(ExportResult(export_input, trainer, launcher, plan))


def write_rendered(export_input: ExportInput, files: dict[str, str]) -> None:
    """Write rendered files to their folder."""
    export_input.out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (export_input.out / name).write_text(text)


def export_cases(folder: Path, trainer: str) -> list[Exported]:
    """Export every case for a trainer, without writing the files."""
    exports = []
    for number, changes in enumerate(CASES.values()):
        loaded = promoted_short(folder / f"bundle-{number}", **changes)
        export_input = make_input(loaded, folder / f"case-{number}")
        exports.append((export_input, rendered(export_input, trainer)))
    return exports


def verify_exports(python: str, trainer: str, exports: list[Exported]) -> list[Verification]:
    """Write exports and let the trainer's own parser read them, in one process."""
    for export_input, files in exports:
        write_rendered(export_input, files)
    folders = [export_input.out for export_input, _ in exports]
    content = run_reader(trainer, folders, python=python)
    assert "missing" not in content, content
    verifications = []
    for (export_input, _), parsed in zip(exports, content["read"], strict=True):
        plan = TRAINERS[trainer].make_export_plan(export_input)
        verifications.append(
            compare_parsed(export_input, plan, peer=content["peer"], content=parsed)
        )
    return verifications


def export_alterations(folder: Path, loaded: LoadedBundle, trainer: str) -> dict[str, Exported]:
    """Export once per key of the trainer's files, each time with that key altered.

    Returns:
        What is altered → an export to a folder of its own; "nothing" is among them.
    """
    unaltered = make_input(loaded, folder / "none")
    files = rendered(unaltered, trainer)
    parsed_files = set(TRAINERS[trainer].make_export_plan(unaltered).files)
    count = len(list(alterations(files, parsed_files)))
    exports = {"nothing": (unaltered, files)}
    for number in range(count):
        export_input = make_input(loaded, folder / str(number))
        every = list(alterations(rendered(export_input, trainer), parsed_files))
        altered_key, altered_files = every[number]
        exports[altered_key.replace(str(export_input.out), "OUT")] = (export_input, altered_files)
    assert len(exports) == count + 1
    return exports


def alterations(
    files: dict[str, str], parsed_files: set[str]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Alter every key of the files that a peer parses, one at a time.

    Yields:
        The key, and all files with it altered.
    """
    for name in sorted(parsed_files):
        text = files[name]
        changes = _altered_script(text) if name.endswith(".py") else _altered_mapping(name, text)
        for key, altered_text in changes:
            yield f"{name} {key}", files | {name: altered_text}


def another_value(value: Any) -> Any:
    """Return another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1 if value else 7
    if isinstance(value, float):
        return value * 1.5 if value else 0.25
    if isinstance(value, str):
        return _another_text(value)
    return "x"


def _another_text(text: str) -> str:
    try:
        number = float(text)
    except ValueError:
        return f"{text}x"
    return str(int(number) + 1) if text.lstrip("-").isdigit() else str(number * 1.5 or 0.25)


def _altered_mapping(name: str, text: str) -> Iterator[tuple[str, str]]:
    is_json = name.endswith(".json")
    content = json.loads(text) if is_json else yaml.safe_load(text)
    dump = json.dumps if is_json else yaml.safe_dump
    for path in _leaf_paths({key: value for key, value in content.items() if key != "sweepcp"}):
        altered = json.loads(json.dumps(content))
        parent = altered
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = another_value(parent[path[-1]])
        yield ".".join(map(str, path)), dump(altered)


def _leaf_paths(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(content, dict | list) and content:
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _leaf_paths(value, (*path, key))
    else:
        yield path


def _altered_script(text: str) -> Iterator[tuple[str, str]]:
    lines = text.splitlines(keepends=True)
    for label, node in _constants(ast.parse(text)):
        assert node.lineno == node.end_lineno
        line = lines[node.lineno - 1].encode()
        literal = repr(another_value(node.value)).encode()
        altered = (line[: node.col_offset] + literal + line[node.end_col_offset :]).decode()
        yield label, "".join([*lines[: node.lineno - 1], altered, *lines[node.lineno :]])


def _constants(tree: ast.Module) -> Iterator[tuple[str, ast.Constant]]:
    """Yield constants that are assigned, elements of assigned lists, and constants in `run`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            values = node.value.elts if isinstance(node.value, ast.List) else [node.value]
            for number, value in enumerate(values):
                if isinstance(value, ast.Constant):
                    yield f"{name}[{number}] {value.value!s}", value
        if isinstance(node, ast.FunctionDef) and node.name == "run":
            for inner in ast.walk(node):
                if isinstance(inner, ast.Constant):
                    yield f"line {inner.lineno}: {inner.value!s}", inner
