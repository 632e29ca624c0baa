"""Compare what two checkouts of the project compute and write on this machine.

    python benchmarks/compare_checkouts.py BEFORE AFTER [--work FOLDER] [--trials 16]

For changes that must keep the behaviour. Four stages run for each checkout, with the interpreter
that runs this script:

trials    `sweepcp search quickstart`, with a cache of its own
golden    `python -m tests.integration.test_full_run`
bundles   `sweepcp promote`, of the run above and of a published recipe
exports   `sweepcp export`, every bundle for every trainer on every launcher, without a site and
          with the example

Values must be equal to the last bit. Differences of prose (messages, comments, docstrings) are
counted but do not fail the comparison. The exit status is 1 if anything else differs. The committed
golden losses may come from another machine, so the distance from them is only reported.

Each checkout is copied into FOLDER (the files that git tracks or does not ignore), and only the
copy runs. A stage is skipped where FOLDER holds its outputs from the same files, so FOLDER may be
used again with another AFTER. The outputs of BEFORE are never replaced. FOLDER is by default a new
temporary folder, which is kept.
"""

import argparse
import ast
import difflib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import product, zip_longest
from pathlib import Path
from typing import Any

import yaml

BUNDLES = {
    "quickstart-cpu": ("RUN",),
    "smollm2-135m-1gpu": ("RUN",),
    "llama-3.1-8b-4x8": ("--recipe", "e-llama"),
    "llama-3.1-70b-60x8": ("--recipe", "e-llama"),
}
"""Shipped target → what is promoted to it."""
TRAINERS = ("deepspeed", "hf-trainer", "axolotl", "llama-factory", "megatron-lm", "torchtitan")
LAUNCHERS = ("torchrun", "slurm", "ray", "kubeflow", "skypilot")

INPUTS = ("sweepcp/", "experiments/", "search_spaces/")
"""Folders of a checkout that decide the outputs of every stage."""
LEFT_OUT = ("driver.lock", "manifest.json", "SUMMARY.md")
"""Files that are not compared: the lock of a run, hashes of files that hold paths, prose."""
IGNORED = {
    "base.json": ("versions",),
    "trial.json": ("cost", "finished", "versions"),
    "bundle.json": ("made", "commit", "versions.sweepcp"),
}
"""File → patterns of keys that say when, where and by which version it was made."""
PROSE = {
    "trial.json": ("reason",),
    "front.json": ("choice.rule",),
    "bundle.json": ("assumptions", "lineage.chosen_by"),
    "export.json": ("differences", "status"),
    "outcomes.json": ("*.said",),
}
"""File → patterns of keys whose values are prose."""

COMMENT_OR_QUOTED = re.compile(
    r"""('[^']*'|"(?:\\.|[^"\\])*")|(?:^|(?<=\s))#(?!!|SBATCH)([^\n]*)""", re.MULTILINE
)
SHELL_MESSAGE = re.compile(r"""(?<=:\?)[^}]*(?=\})|(?<=echo ")[^"]*\s[^"]*(?=")""")
ENDS = ("sys.exit", "exit", "print")
"""Calls whose texts are messages."""
PATH = re.compile(r"/[A-Za-z0-9_.@+=,/-]*")
"""What `sweepcp export` accepts as a path."""
NUMBER = re.compile(r"\d+")
MISSING = object()
SHOWN, WIDTH = 20, 120
"""Lines about differences of a stage, and characters of a value there."""


# Producing the outputs of a checkout


@dataclass(frozen=True)
class Side:
    """One of the two checkouts, and the folder of its outputs."""

    name: str
    checkout: Path
    folder: Path
    trials: int

    @property
    def copy(self) -> Path:
        """Name the copy of the checkout that runs."""
        return self.folder / "checkout"

    @property
    def run(self) -> Path:
        """Name the run folder of the search."""
        return self.folder / "trials" / "run"

    @property
    def bundles(self) -> Path:
        """Name the folder of the bundles."""
        return self.folder / "bundles"

    def python(self, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run this interpreter with the modules of the copied checkout."""
        own = ("PYTHON", "SWEEPCP")
        inherited = {key: text for key, text in os.environ.items() if not key.startswith(own)}
        stated = {
            "PYTHONPATH": str(self.copy),
            "PYTHONPYCACHEPREFIX": str(self.folder / "pycache"),
            "SWEEPCP_CACHE": str(self.folder / "trials" / "cache"),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "120",
        }
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(
            command, cwd=cwd, env=inherited | stated, capture_output=True, text=True, check=False
        )

    def run_or_exit(self, *arguments: object, cwd: Path) -> str:
        """Run this interpreter and return what it prints, or end the comparison when it fails."""
        done = self.python(*arguments, cwd=cwd)
        if done.returncode:
            asked = " ".join(map(str, arguments))
            sys.exit(f"{self.name}: status {done.returncode} of {asked}\n{done.stderr[-4000:]}")
        return done.stdout


def make_trials(side: Side, folder: Path) -> None:
    """Search the quickstart, one trial at a time."""
    budget = ("--trials", side.trials, "--set", "budget.concurrency=1")
    side.run_or_exit("-m", "sweepcp", "search", "quickstart", *budget, "--out", "run", cwd=folder)


def make_golden(side: Side, folder: Path) -> None:
    """Compute the golden losses in the copied checkout, and put the committed ones back there."""
    golden = side.copy / "tests" / "golden" / "full_run.json"
    shutil.copy(golden, folder / "committed.json")
    golden.unlink()
    side.run_or_exit("-m", "tests.integration.test_full_run", cwd=side.copy)
    shutil.copy(golden, folder / "written.json")
    shutil.copy(folder / "committed.json", golden)


def make_bundles(side: Side, folder: Path) -> None:
    """Promote the run and the published recipe to the shipped targets."""
    calls = {}
    for target, source in BUNDLES.items():
        what = [str(side.run) if word == "RUN" else word for word in source]
        calls[target] = ["promote", *what, "--target", target, "--out", str(folder / target)]
    write_outcomes(side, folder, calls)


def make_exports(side: Side, folder: Path) -> None:
    """Export every bundle for every trainer on every launcher, without a site and with one."""
    sites = {"": [], "+site": ["--site", str(write_site(side, folder))]}
    calls = {}
    for bundle, trainer, launcher, site in product(BUNDLES, TRAINERS, LAUNCHERS, sites):
        name = f"{bundle}/{trainer}+{launcher}{site}"
        to = ["--to", trainer, "--to", launcher, *sites[site]]
        calls[name] = ["export", str(side.bundles / bundle), *to, "--out", str(folder / name)]
    write_outcomes(side, folder, calls)


def write_site(side: Side, folder: Path) -> Path:
    """Write the shipped example of a site, with storage mounted where this side's files are."""
    content = yaml.safe_load((side.copy / "experiments" / "sites" / "example.yaml").read_text())
    for launcher in ("kubernetes", "skypilot"):
        content[launcher]["mount"] = str(side.folder)
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def write_outcomes(side: Side, folder: Path, calls: dict[str, list[str]]) -> None:
    """Call sweepcp, and write each call's status, with its message if it failed."""
    outcomes = {}
    for name, arguments in calls.items():
        done = side.python("-m", "sweepcp", *arguments, cwd=folder)
        said = done.stderr if done.returncode else ""
        outcomes[name] = {"status": done.returncode, "said": said}
    (folder / "outcomes.json").write_text(json.dumps(outcomes, indent=1))


@dataclass(frozen=True)
class Stage:
    """Outputs that both checkouts produce, and how they are compared."""

    name: str
    make: Callable[[Side, Path], None]
    compare: Callable[["Report", Path, Path], str]
    """Compare the two folders; returns how much that was."""
    inputs: tuple[str, ...] = INPUTS


def files_of(checkout: Path) -> list[str]:
    """List the files of a checkout that git tracks or does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{checkout} is no git checkout: {done.stderr.strip()}")
    return sorted({name for name in done.stdout.split("\0") if (checkout / name).is_file()})


def copy_checkout(side: Side) -> None:
    """Copy the files of a checkout, and make sure that they are the ones which are imported."""
    shutil.rmtree(side.copy, ignore_errors=True)
    for name in files_of(side.checkout):
        place = side.copy / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(side.checkout / name, place)
    found = side.run_or_exit(
        "-c", "import sweepcp; print(sweepcp.__file__)", cwd=side.folder
    ).strip()
    if not Path(found).is_relative_to(side.copy):
        sys.exit(f"{side.name}: {found} is imported, and not the one in {side.copy}")


def fingerprint(side: Side, inputs: tuple[str, ...]) -> str:
    """Hash the inputs of a stage: files, number of trials, interpreter."""
    found = hashlib.sha256(f"{side.trials} {sys.prefix} {sys.version}".encode())
    for path in sorted(side.copy.rglob("*")):
        name = str(path.relative_to(side.copy))
        if path.is_file() and name.startswith(inputs) and path.suffix != ".md":
            found.update(f"\0{name}\0".encode() + path.read_bytes())
    return found.hexdigest()


def make(side: Side, stages: tuple[Stage, ...]) -> None:
    """Run the stages without outputs, and every stage after one that was run."""
    side.folder.mkdir(parents=True, exist_ok=True)
    copy_checkout(side)
    remake = False
    for stage in stages:
        folder, done = side.folder / stage.name, side.folder / f"{stage.name}.done"
        wanted = fingerprint(side, stage.inputs)
        found = done.read_text() if done.exists() else None
        if found == wanted and not remake:
            print(f"{side.name}: {stage.name}: reused", file=sys.stderr)
            continue
        if found not in (None, wanted) and side.name == "before":
            fix = "name another --work, or remove that folder"
            sys.exit(f"{folder} is of other files or another number of trials: {fix}")
        remake = True
        done.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        started = time.perf_counter()
        stage.make(side, folder)
        done.write_text(wanted)
        seconds = time.perf_counter() - started
        print(f"{side.name}: {stage.name}: {seconds:.0f} s", file=sys.stderr)


# Comparing the outputs


@dataclass
class Report:
    """What differs in a stage."""

    placeholders: tuple[dict[str, str], dict[str, str]]
    """Of each side: its own path or hash → what stands for it."""
    differences: dict[str, list[str]] = field(default_factory=dict)
    """Kind of difference, the same in all files of a name → the differences of this kind."""
    prose: int = 0

    @property
    def count(self) -> int:
        """Count the differences, without those of prose."""
        return sum(map(len, self.differences.values()))

    def add(self, file: str, text: str, kind: str) -> None:
        """Record a difference."""
        kind = f"{Path(file).name}: {kind}"
        self.differences.setdefault(kind, []).append(f"{file}: {text}")

    def texts(self, before: Path, after: Path) -> tuple[str, str]:
        """Read a file of both sides, with each side's paths and hashes replaced by placeholders."""
        found = []
        for path, replaced in zip((before, after), self.placeholders, strict=True):
            text = path.read_text(encoding="utf-8")
            for own, placeholder in replaced.items():
                text = text.replace(own, placeholder)
            found.append(text)
        return found[0], found[1]

    def files(self, before: Path, after: Path) -> None:
        """Compare all files of two folders."""
        names = [
            {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
            for folder in (before, after)
        ]
        for name in sorted(names[0] | names[1]):
            if Path(name).name in LEFT_OUT:
                continue
            if name in names[0] and name in names[1]:
                self.file(name, before=before / name, after=after / name)
            else:
                where = f"only {'before' if name in names[0] else 'after'}"
                self.add(name, where, where)

    def file(self, name: str, *, before: Path, after: Path) -> None:
        """Compare a file by its kind."""
        texts = self.texts(before, after)
        if texts[0] == texts[1]:
            return
        kind = before.suffix
        if kind in READERS:
            values = [READERS[kind](text) for text in texts]
            self.values(name, before=values[0], after=values[1])
        else:
            simplify = code_of if kind == ".py" else shell_of
            self.lines(name, before=simplify(texts[0]), after=simplify(texts[1]))

    def values(self, name: str, *, before: Any, after: Any) -> None:
        """Compare the values in a file, key by key."""
        file = Path(name).name
        for key, old, new in differing(before, after):
            if matches(key, IGNORED.get(file, ())):
                continue
            if matches(key, PROSE.get(file, ())) and MISSING not in (old, new):
                self.prose += 1
            else:
                text = f"{key or 'all'}: {shown(old)} → {shown(new)}"
                self.add(name, text, NUMBER.sub("*", key))

    def lines(self, name: str, *, before: "Simplified", after: "Simplified") -> None:
        """Compare the lines of a program."""
        pairs = zip_longest(before.prose, after.prose)
        self.prose += sum(old != new for old, new in pairs)
        found = difflib.unified_diff(before.lines, after.lines, n=0, lineterm="")
        for line in list(found)[2:]:
            if not line.startswith("@@"):
                self.add(name, line, line)


def differing(before: Any, after: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the key and the two values of every leaf that is not the same to the last bit."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys([*before, *after]):
            inner = f"{key}.{name}" if key else str(name)
            yield from differing(before.get(name, MISSING), after.get(name, MISSING), inner)
    elif isinstance(before, list) and isinstance(after, list):
        for number, (old, new) in enumerate(zip_longest(before, after, fillvalue=MISSING)):
            yield from differing(old, new, f"{key}.{number}" if key else str(number))
    elif type(before) is not type(after) or repr(before) != repr(after):
        yield key, before, after


def matches(key: str, patterns: tuple[str, ...]) -> bool:
    """Return whether a key, or one that it is within, matches a pattern."""
    return any(fnmatchcase(key, p) or fnmatchcase(key, f"{p}.*") for p in patterns)


def shown(value: Any) -> str:
    """Show a value within a line."""
    text = "missing" if value is MISSING else repr(value)
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"


@dataclass
class Simplified:
    """A program without its prose, and the prose."""

    lines: list[str] = field(default_factory=list)
    prose: list[str] = field(default_factory=list)


def shell_of(text: str) -> Simplified:
    """Simplify a shell script: no comments, no blank lines, no messages."""
    found = Simplified()

    def without_comment(match: re.Match[str]) -> str:
        if match[1] is None:
            found.prose.append(match[2].strip())
        return match[1] or ""

    def without_text(match: re.Match[str]) -> str:
        found.prose.append(match[0])
        return "…"

    code = SHELL_MESSAGE.sub(without_text, COMMENT_OR_QUOTED.sub(without_comment, text))
    found.lines = [line.rstrip() for line in code.splitlines() if line.strip()]
    return found


def code_of(text: str) -> Simplified:
    """Simplify a Python file: no comments, docstrings and messages, names of sweepcp by number."""
    found = Simplified()
    plain = Plain(found.prose)
    tree = plain.visit(ast.parse(text))
    numbers: dict[str, int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in plain.imported:
            number = numbers.setdefault(node.id, len(numbers))
            node.id = f"sweepcp_{number}"
    found.lines = [line.strip() for line in ast.dump(tree, indent=1).splitlines()]
    return found


def is_own(module: str) -> bool:
    """Return whether a module is one of sweepcp."""
    return module.partition(".")[0] == "sweepcp"


class Plain(ast.NodeTransformer):
    """Removes docstrings, messages and imports of sweepcp from a Python file."""

    def __init__(self, prose: list[str]) -> None:
        """Start with an empty set of imported names; texts are appended to `prose`."""
        self.prose = prose
        self.imported: set[str] = set()

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Remove a docstring, then visit the children."""
        documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, documented) and (text := ast.get_docstring(node)) is not None:
            self.prose.append(text)
            del node.body[0]
        return super().generic_visit(node)

    def visit_Import(self, node: ast.Import) -> ast.AST | None:
        """Remove imports of sweepcp and remember the names they bind."""
        return self._without(node, [a for a in node.names if is_own(a.name)])

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        """Remove imports from sweepcp and remember the names they bind."""
        return self._without(node, node.names if is_own(node.module or "") else [])

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        """Remove the message of an exception."""
        if isinstance(node.exc, ast.Call):
            self._without_texts(node.exc)
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Remove the message of a call that prints it."""
        if ast.unparse(node.func) in ENDS:
            self._without_texts(node)
        return self.generic_visit(node)

    def _without(self, node: ast.Import | ast.ImportFrom, own: list[ast.alias]) -> ast.AST | None:
        self.imported |= {(a.asname or a.name).partition(".")[0] for a in own}
        node.names = [a for a in node.names if a not in own]
        return node if node.names else None

    def _without_texts(self, call: ast.Call) -> None:
        for number, argument in enumerate(call.args):
            constant = isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            if constant or isinstance(argument, ast.JoinedStr):
                self.prose.append(ast.unparse(argument))
                call.args[number] = ast.Constant("…")


def read_lines(text: str) -> list[Any]:
    """Parse JSON with one value per line."""
    return [json.loads(line) for line in text.splitlines()]


def read_json(text: str) -> Any:
    """Parse JSON, without the head of an exported file."""
    return without_head(json.loads(text))


def read_yaml(text: str) -> list[Any]:
    """Parse the documents of a YAML file, with scripts in it simplified."""
    return [simplify_scripts(without_head(document)) for document in yaml.safe_load_all(text)]


def without_head(content: Any) -> Any:
    """Remove the header of an exported file."""
    if not isinstance(content, dict):
        return content
    return {key: value for key, value in content.items() if key != "sweepcp"}


def simplify_scripts(value: Any) -> Any:
    """Replace strings of several lines by the lines of the shell script in them."""
    if isinstance(value, dict):
        return {key: simplify_scripts(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [simplify_scripts(inner) for inner in value]
    return shell_of(value).lines if isinstance(value, str) and "\n" in value else value


READERS: dict[str, Callable[[str], Any]] = {
    ".json": read_json,
    ".jsonl": read_lines,
    ".yaml": read_yaml,
}


def placeholders_of(side: Side) -> dict[str, str]:
    """Return placeholders for a side's paths, and for the bundle hashes that depend on them."""
    found = {str(side.folder): "WORK"}
    for target in BUNDLES:
        manifest = side.bundles / target / "manifest.json"
        if manifest.exists():
            found[hashlib.sha256(manifest.read_bytes()).hexdigest()] = f"HASH OF {target}"
    return found


def compare_trials(report: Report, before: Path, after: Path) -> str:
    """Compare the run folders."""
    report.files(before / "run", after / "run")
    trials, items = (
        len(list(before.glob(f"run/trials/*/{name}.json"))) for name in ("trial", "items")
    )
    steps = lines_in(before, "run/trials/*/metrics.jsonl")
    return f"{trials} trials, {items} item files, {steps} steps"


def compare_golden(report: Report, before: Path, after: Path) -> str:
    """Compare the written losses and the committed ones of both checkouts."""
    report.files(before, after)
    steps = len(json.loads((before / "written.json").read_text()))
    off = [off_committed(folder) for folder in (before, after)]
    return f"{steps} steps ({off[0]} before, {off[1]} after)"


def off_committed(folder: Path) -> str:
    """Return how far the written losses are from the committed ones."""
    committed, written = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("committed", "written")
    )
    found = list(differing(committed, written))
    if not found:
        return "as committed"
    pairs = [(old, new) for _, old, new in found if isinstance(old, float)]
    largest = max(abs(old - new) for old, new in pairs if isinstance(new, float))
    return f"{len(found)} values not as committed, by at most {largest:.1g}"


def compare_bundles(report: Report, before: Path, after: Path) -> str:
    """Compare the bundles."""
    report.files(before, after)
    plan, proxy = (lines_in(before, f"*/{name}.jsonl") for name in ("plan", "proxy"))
    return f"{statuses(before, 'bundles')}, {plan} lines of plans, {proxy} lines of proxies"


def compare_exports(report: Report, before: Path, after: Path) -> str:
    """Compare the exports."""
    report.files(before, after)
    files = sum(p.is_file() and p.name not in LEFT_OUT for p in before.glob("*/*/*"))
    return f"{statuses(before, 'exports')}, {files} files"


def lines_in(folder: Path, pattern: str) -> int:
    """Count the lines of files."""
    return sum(len(path.read_text().splitlines()) for path in folder.glob(pattern))


def statuses(folder: Path, what: str) -> str:
    """Count the calls that succeeded, were refused, or failed."""
    outcomes = json.loads((folder / "outcomes.json").read_text())
    found = [outcome["status"] for outcome in outcomes.values()]
    written, refused = found.count(0), found.count(2)
    failed = len(found) - written - refused
    return f"{written} {what} written, {refused} refused, {failed} failed"


STAGES = (
    Stage("trials", make_trials, compare_trials),
    Stage("golden", make_golden, compare_golden, inputs=(*INPUTS, "tests/")),
    Stage("bundles", make_bundles, compare_bundles),
    Stage("exports", make_exports, compare_exports),
)


def show(stage: Stage, report: Report, amount: str) -> None:
    """Print the result of a stage."""
    count = f"{report.count} differences" if report.count else "equal to the last bit"
    prose = f"; {report.prose} differences of prose" if report.prose else ""
    print(f"{stage.name}: {amount}: {count}{prose}")
    for line in listed(report)[:SHOWN]:
        print(f"    {line}")
    if len(report.differences) > SHOWN:
        print(f"    and {len(report.differences) - SHOWN} more kinds of differences")


def listed(report: Report) -> list[str]:
    """List all differences, or the first of each kind when they are many."""
    kinds = report.differences.values()
    if report.count <= SHOWN:
        return [line for lines in kinds for line in lines]
    more = (f"  (and {len(lines) - 1} more of this kind)" if lines[1:] else "" for lines in kinds)
    return [lines[0] + rest for lines, rest in zip(kinds, more, strict=True)]


def compare(before: Side, after: Side) -> int:
    """Compare the outputs of both sides, print the result, and return the number of differences."""
    placeholders = placeholders_of(before), placeholders_of(after)
    count = 0
    for stage in STAGES:
        report = Report(placeholders)
        amount = stage.compare(report, before.folder / stage.name, after.folder / stage.name)
        show(stage, report, amount)
        count += report.count
    return count


@contextmanager
def locked(work: Path) -> Iterator[None]:
    """Lock a folder, or exit if another comparison uses it."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit(f"{work} is in use by another comparison")
        yield


def main() -> None:
    """Run both checkouts and compare their outputs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", metavar="BEFORE", type=Path)
    parser.add_argument("after", metavar="AFTER", type=Path)
    parser.add_argument("--work", metavar="FOLDER", type=Path)
    parser.add_argument("--trials", type=int, default=16)
    asked = parser.parse_args()
    work = (asked.work or Path(tempfile.mkdtemp(prefix="compare-checkouts-"))).resolve()
    if not PATH.fullmatch(str(work)):
        sys.exit(f"--work {work}: `sweepcp export` takes paths that match {PATH.pattern}")
    sides = [
        Side(name, checkout.resolve(), work / name, asked.trials)
        for name, checkout in (("before", asked.before), ("after", asked.after))
    ]
    print(f"outputs are kept in {work}", file=sys.stderr)
    with locked(work):
        for side in sides:
            make(side, STAGES)
        sys.exit(1 if compare(*sides) else 0)


if __name__ == "__main__":
    main()
