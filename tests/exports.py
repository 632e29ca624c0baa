"""What the tests of exports share: bundles at fixed places, and files with one key altered."""

import ast
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from sweepcp.config.site import load_site
from sweepcp.config.target import load_target
from sweepcp.export.export_plan import ExportInput
from sweepcp.export.verify import Verification, compare_parsed, run_reader
from sweepcp.export.write import TRAINERS, choose_targets, render_files
from sweepcp.promote.bundle import LoadedBundle, load_bundle
from sweepcp.promote.candidate import candidate_from_publication
from sweepcp.promote.translate import promote
from sweepcp.util.files import shipped_folder

HASH = "b" * 64


def promoted(folder: Path, target: str, recipe: str = "e-llama", **changes: Any) -> LoadedBundle:
    """A published recipe on a shipped target; `changes` are those of the recipe."""
    candidate = candidate_from_publication(recipe)
    if changes:
        candidate = replace(candidate, method=candidate.method.model_copy(update=changes))
    loaded, file = load_target(target)
    promote(candidate, loaded, file, folder / "bundle")
    return load_bundle(folder / "bundle")


def short(folder: Path, recipe: str = "e-llama", **changes: Any) -> LoadedBundle:
    """e-Llama's recipe on Llama 3.1 8B for 100 steps, with a tracker."""
    content = yaml.safe_load(
        (shipped_folder("experiments") / "targets" / "llama-3.1-8b-4x8.yaml").read_text()
    )
    folder.mkdir(exist_ok=True)
    content |= {"tokens": 100 * content["batch_tokens"], "tracking": ["wandb"]}
    (folder / "short.yaml").write_text(yaml.safe_dump(content))
    return promoted(folder, str(folder / "short.yaml"), recipe, **changes)


CASES: dict[str, dict[str, Any]] = {
    "cosine": {},
    "linear": {"schedule": "linear"},
    "wsd": {"schedule": "wsd", "warmup": 0.1, "decay": 0.2},
    "constant": {"schedule": "constant"},
    "wsd to a high end": {"schedule": "wsd", "warmup": 0.1, "decay": 0.2, "final_fraction": 0.3},
    "to zero": {"final_fraction": 0.0},
    "no warmup": {"warmup": 0.0},
    "another AdamW": {"betas": (0.8, 0.99), "weight_decay": 0.0, "clip": 0.5},
    "across documents": {"cross_documents": True},
}
"""Changes of e-Llama's recipe; those trainers that cannot follow one have to say so, and the others not."""


def cases_of(folder: Path, trainer: str) -> list[tuple[ExportInput, dict[str, str]]]:
    """The files of every case."""
    found = []
    for number, changes in enumerate(CASES.values()):
        made = source(short(folder / f"bundle-{number}", **changes), folder / f"case-{number}")
        found.append((made, rendered(made, trainer)))
    return found


def verdicts(
    python: str, trainer: str, sources: list[tuple[ExportInput, dict[str, str]]]
) -> list[Verification]:
    """What a trainer's own parser makes of files, each written for its own folder; in one process."""
    for made, files in sources:
        made.out.mkdir(parents=True)
        for name, text in files.items():
            (made.out / name).write_text(text)
    content = run_reader(python, trainer, [made.out for made, _ in sources])
    assert "missing" not in content, content
    handoffs = [TRAINERS[trainer].write(made) for made, _ in sources]
    found = zip(sources, handoffs, content["read"], strict=True)
    return [
        compare_parsed(made, handoff, content["peer"], parsed)
        for (made, _), handoff, parsed in found
    ]


def with_each_key_altered(
    folder: Path, opened: LoadedBundle, trainer: str
) -> dict[str, tuple[ExportInput, dict[str, str]]]:
    """What is altered → files for a folder of their own; "nothing" is among them."""
    read_files = set(TRAINERS[trainer].write(source(opened, folder)).files)
    found = {"nothing": (source(opened, folder / "none"), {})}
    found["nothing"] = (found["nothing"][0], rendered(found["nothing"][0], trainer))
    count = len(list(altered(found["nothing"][1], read_files)))
    for i in range(count):
        made = source(opened, folder / str(i))
        what, files = list(altered(rendered(made, trainer), read_files))[i]
        found[what.replace(str(made.out), "OUT")] = (made, files)
    assert len(found) == count + 1
    return found


def source(opened: LoadedBundle, out: Path, site: str | None = None) -> ExportInput:
    placed, file = load_site(site)
    return ExportInput(
        opened, placed, out, Path("site.yaml") if file else opened.path / "bundle.json"
    )


def at_fixed_places(opened: LoadedBundle) -> ExportInput:
    """The source of golden files: nothing in them depends on where and when the bundle was made."""
    return source(
        replace(opened, path=Path("/shared/bundle"), id=HASH), Path("/shared/export"), "example"
    )


def rendered(made: ExportInput, *names: str) -> dict[str, str]:
    trainer, launcher = choose_targets(names)
    return render_files(made, trainer, launcher, TRAINERS[trainer].write(made), {})


def altered(files: dict[str, str], read: set[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Every key of the files that a peer reads, one at a time: what it is, and all files with it altered."""
    for name in sorted(read):
        text = files[name]
        changes = _python(text) if name.endswith(".py") else _mapping(name, text)
        for key, changed in changes:
            yield f"{name} {key}", files | {name: changed}


def _mapping(name: str, text: str) -> Iterator[tuple[str, str]]:
    content = json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
    write = json.dumps if name.endswith(".json") else yaml.safe_dump
    for place in _leaves({key: value for key, value in content.items() if key != "sweepcp"}):
        changed = json.loads(json.dumps(content))
        here = changed
        for key in place[:-1]:
            here = here[key]
        here[place[-1]] = other(here[place[-1]])
        yield ".".join(map(str, place)), write(changed)


def _leaves(content: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(content, dict | list) and content:
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _leaves(value, (*place, key))
    else:
        yield place


def _python(text: str) -> Iterator[tuple[str, str]]:
    """Constants that are assigned, the elements of lists that are assigned, and the arguments of `run`."""
    lines = text.splitlines(keepends=True)
    for label, node in _constants(ast.parse(text)):
        assert node.lineno == node.end_lineno
        line = lines[node.lineno - 1].encode()
        new = repr(other(node.value)).encode()
        changed = line[: node.col_offset] + new + line[node.end_col_offset :]
        yield label, "".join([*lines[: node.lineno - 1], changed.decode(), *lines[node.lineno :]])


def _constants(tree: ast.Module) -> Iterator[tuple[str, ast.Constant]]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            values = node.value.elts if isinstance(node.value, ast.List) else [node.value]
            yield from (
                (f"{name}[{i}] {v.value}", v)
                for i, v in enumerate(values)
                if isinstance(v, ast.Constant)
            )
        if isinstance(node, ast.FunctionDef) and node.name == "run":
            found = [n for n in ast.walk(node) if isinstance(n, ast.Constant)]
            yield from ((f"line {n.lineno}: {n.value}", n) for n in found)


def other(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1 if value else 7
    if isinstance(value, float):
        return value * 1.5 if value else 0.25
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return f"{value}x"
        return str(int(number) + 1) if value.lstrip("-").isdigit() else str(number * 1.5 or 0.25)
    return "x"
