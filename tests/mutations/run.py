"""Apply hand-made faults to a copy of the project, and check that the tests named for each fail.

    python tests/mutations/run.py                   # all of them, two at a time
    python tests/mutations/run.py -k "bits|spike"   # those whose names match
    python tests/mutations/run.py --jobs 1 --log FOLDER

`mutations.toml` has one table for each fault: a name, the file, the text that is replaced, its
replacement, and the tests that must then fail. First all of these tests run without a fault, and
must pass. The exit status is 1 if a fault survives its tests.
"""

import argparse
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from queue import Queue

import pytest

ROOT = Path(__file__).parents[2]
MUTATIONS = Path(__file__).with_name("mutations.toml")
TIMEOUT = 600
"""Seconds for the tests of one fault; a fault that makes them hang counts as caught."""
PASSED, FAILED = 0, 1
"""Exit statuses of pytest; any other means that no test ran or that pytest itself failed."""
VERDICTS = {PASSED: "SURVIVES", FAILED: "caught"}
IMPORTED = ("lm_eval.models.huggingface", "optuna", "sklearn", "scipy.stats", "transformers")
"""What most tests import: imported once, before the processes that run them are forked."""


@dataclass(frozen=True)
class Mutation:
    """A fault, and the tests that find it."""

    name: str
    file: str
    old: str
    """Occurs exactly once in the file."""
    new: str
    tests: tuple[str, ...]
    """Node ids of pytest."""

    def mutated_text(self, root: Path) -> str:
        """Return the file of the project at `root` with the fault in it."""
        text = (root / self.file).read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: {self.file} has the text {text.count(self.old)} times")
        return text.replace(self.old, self.new)


def read_mutations() -> list[Mutation]:
    """Read `mutations.toml`."""
    tables = tomllib.loads(MUTATIONS.read_text(encoding="utf-8"))["mutation"]
    return [Mutation(**{**table, "tests": tuple(table["tests"])}) for table in tables]


def run_tests(root: Path, tests: Sequence[str], log: Path) -> int:
    """Run tests on the copy at `root` until one fails; return pytest's exit status."""
    # A forked process has imported what takes seconds to import, but nothing of the project.
    process = multiprocessing.get_context("fork").Process(
        target=_run_pytest, args=(root, tests, log), daemon=False
    )
    process.start()
    process.join(TIMEOUT)
    if process.exitcode is None:
        process.kill()
        process.join()
        return FAILED
    return process.exitcode


def _run_pytest(root: Path, tests: Sequence[str], log: Path) -> None:
    with log.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(root)
    sys.path.insert(0, str(root))
    os.environ |= {"PYTHONPATH": str(root), "SWEEPCP_CACHE": str(root / ".cache")}
    # Slow tests are named by their ids, so the marker that leaves them out is overridden.
    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "slow or not slow"]
    status = pytest.main([*options, *tests])
    # Exit handlers of libraries would wait for threads, which a forked process does not have.
    os._exit(int(status))


def copy_project(folder: Path) -> Path:
    """Copy the project's files, except those that git ignores, into a new folder below `folder`."""
    root = Path(tempfile.mkdtemp(dir=folder))
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    output = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in output.split("\0"):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, root / name)
    return root


def main() -> int:
    """Run the mutations that are asked for; return 1 if one survives."""
    parser = argparse.ArgumentParser(description="Check that tests find hand-made faults.")
    parser.add_argument("-k", default="", metavar="PATTERN", help="a regular expression of names")
    parser.add_argument("--jobs", type=int, default=2, help="faults tried at a time (default: 2)")
    parser.add_argument("--log", type=Path, help="keep the output of the tests in this folder")
    options = parser.parse_args()
    chosen = [m for m in read_mutations() if re.search(options.k, m.name)]
    for mutation in chosen:
        mutation.mutated_text(ROOT)
    started = time.monotonic()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    for name in IMPORTED:
        import_module(name)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        logs = options.log or work / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        copies: Queue[Path] = Queue()
        for _ in range(options.jobs):
            copies.put(copy_project(work))
        tests = sorted({test for mutation in chosen for test in mutation.tests})
        root = copies.get()
        if run_tests(root, tests, logs / "unchanged.log") != PASSED:
            print((logs / "unchanged.log").read_text(encoding="utf-8")[-3000:])
            print("the tests do not pass without a fault")
            return 1
        copies.put(root)
        print(f"{len(tests)} tests pass without a fault, {time.monotonic() - started:.0f} s")

        def try_mutation(numbered: tuple[int, Mutation]) -> bool:
            number, mutation = numbered
            root = copies.get()
            original = (root / mutation.file).read_bytes()
            begin = time.monotonic()
            try:
                text = mutation.mutated_text(root)
                (root / mutation.file).write_text(text, encoding="utf-8")
                status = run_tests(root, mutation.tests, logs / f"{number:03}.log")
            finally:
                (root / mutation.file).write_bytes(original)
                copies.put(root)
            seconds = time.monotonic() - begin
            print(
                f"{VERDICTS.get(status, 'ERROR'):<8} {seconds:5.1f} s  {mutation.name}", flush=True
            )
            return status == FAILED

        with ThreadPoolExecutor(options.jobs) as pool:
            caught = list(pool.map(try_mutation, enumerate(chosen)))
    print(f"{sum(caught)} of {len(chosen)} caught, {time.monotonic() - started:.0f} s")
    return 0 if all(caught) else 1


if __name__ == "__main__":
    sys.exit(main())
