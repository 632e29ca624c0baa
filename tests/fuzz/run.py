"""A structure-aware fuzzer over every file that the program reads.

    python tests/fuzz/run.py --cases 20000 --seed 1

Each case damages one file of a small workspace and has the program read it, by a command in this
process or by the function that the commands call. It must end with status 0 or 2, and with 2 it
must leave nothing behind. A case is named by seed and number: `--seed 1 --only 4711` repeats one.
"""

import argparse
import contextlib
import functools
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))

from sweepcp.errors import InvalidInput
from tests.fuzz import mutate
from tests.fuzz.subjects import Entry, Subject, all_subjects
from tests.fuzz.workspace import make_workspace

CHANGED_BY_ENTRIES = (
    "bundle/manifest.json",
    "stores/docs/store.json",
    "full_run/run.json",
    "full_run/ended.json",
)
SECONDS_PER_CASE = 60
"""A case that takes longer counts as one that hangs."""


@dataclass(frozen=True)
class Result:
    """How a case ended."""

    number: int
    subject: str
    entry: str
    status: int | str
    seconds: float
    message: str
    """Empty if it ended as it must."""


@dataclass
class Campaign:
    """The results of many cases."""

    seed: int
    results: list[Result] = field(default_factory=list)

    @property
    def failures(self) -> list[Result]:
        """Cases that ended in another way than they must."""
        return [result for result in self.results if result.message]

    def summary(self) -> str:
        """Return the counts of files, cases, statuses, and the slowest case."""
        statuses = Counter(str(result.status) for result in self.results)
        entries = Counter(result.entry for result in self.results)
        slowest = max(self.results, key=lambda result: result.seconds)
        return "\n".join(
            [
                f"files: {len({result.subject for result in self.results})}",
                f"cases: {len(self.results)} (seed {self.seed})",
                f"entries: {dict(entries.most_common())}",
                f"statuses: {dict(statuses.most_common())}",
                f"slowest: {slowest.seconds:.2f} s, case {slowest.number}: "
                f"{slowest.subject}, {slowest.entry}",
                f"failures: {len(self.failures)}",
            ]
        )


def run_campaign(
    work: Path, *, cases: range, seed: int, verbs: float, subjects: list[Subject]
) -> Campaign:
    """Run cases in a workspace.

    Args:
        work: What `make_workspace` wrote.
        cases: Their numbers.
        seed: Of all of them.
        verbs: Share of the cases that go through the command line.
        subjects: The files to damage.
    """
    campaign = Campaign(seed)
    for number in cases:
        rng = random.Random(f"{seed}:{number}")
        subject = subjects[number % len(subjects)]
        by_verb = subject.verbs and rng.random() < verbs
        entry = rng.choice(subject.verbs if by_verb else subject.fast)
        campaign.results.append(_run_case(work, subject, entry, number, rng))
    return campaign


def _run_case(
    work: Path, subject: Subject, entry: Entry, number: int, rng: random.Random
) -> Result:
    path, out = work / subject.path, work / "out"
    kept = {path: path.read_bytes()}
    kept |= {work / other: (work / other).read_bytes() for other in CHANGED_BY_ENTRIES}
    before = _names(work)
    began = time.perf_counter()
    try:
        damage(path, subject.format, kept[path], rng)
        if subject.rehash is not None and rng.random() < 0.7:
            with contextlib.suppress(OSError, ValueError):
                subject.rehash(work)
        status, message = _end_of(entry, work, number)
        left = sorted(_names(work) - before - {"out"})
        if not message and left:
            message = f"left behind: {left}"
        if not message and status == 2 and out.exists():
            message = "status 2, and --out exists"
    finally:
        mutate.remove(out)
        for file, content in kept.items():
            mutate.restore_file(file, content)
    seconds = time.perf_counter() - began
    name = getattr(entry, "__qualname__", "entry").split(".")[0].strip("_")
    return Result(number, subject.path, name, status, seconds, message)


def damage(path: Path, kind: str, content: bytes, rng: random.Random) -> None:
    """Damage a file: its place, its bytes or the structure of its content."""
    draw = rng.random()
    if draw < 0.04:
        mutate.damage_file(path, rng)
    elif draw < 0.35 or kind == "bytes":
        path.write_bytes(mutate.mutate_bytes(content, rng))
    else:
        path.write_bytes(_STRUCTURES[kind](content, rng))


def _mutate_json(content: bytes, rng: random.Random) -> bytes:
    return _encode(mutate.mutate_value(json.loads(content), rng, mutate.JSON_TEXTS))


def _mutate_yaml(content: bytes, rng: random.Random) -> bytes:
    return _encode(mutate.mutate_value(_parse_yaml(content), rng, mutate.YAML_TEXTS))


@functools.cache
def _parse_yaml(content: bytes) -> Any:
    return yaml.safe_load(content)


def _mutate_lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    index = rng.randrange(len(lines))
    change = rng.randrange(6)
    if change == 0:
        del lines[index]
    elif change == 1:
        lines.insert(index, lines[index])
    elif change == 2:
        lines[index] = b"\n"
    else:
        lines[index] = _mutate_json(lines[index], rng) + b"\n"
    return b"".join(lines)


def _mutate_safetensors(content: bytes, rng: random.Random) -> bytes:
    size = int.from_bytes(content[:8], "little")
    header, tensors = content[8 : 8 + size], content[8 + size :]
    if rng.random() < 0.2:
        return (
            rng.choice([0, 1, size - 1, size + 1, 2**31, 2**63, 2**64 - 1]).to_bytes(8, "little")
            + content[8:]
        )
    header = _mutate_json(header, rng)
    return len(header).to_bytes(8, "little") + header + tensors


def _encode(value: object) -> bytes:
    return mutate.emit(value).encode("utf-8", errors="surrogatepass")


_STRUCTURES = {
    "json": _mutate_json,
    "yaml": _mutate_yaml,
    "jsonl": _mutate_lines,
    "safetensors": _mutate_safetensors,
}


def _end_of(entry: Entry, work: Path, number: int) -> tuple[int | str, str]:
    """Return the status that an entry ends with, and what is wrong with it."""
    output = io.StringIO()
    status: int | str = 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), _alarm():
        try:
            entry(work, number)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0
        except InvalidInput as error:
            output.write(f"Error: {error}")
            status = 2
        except BaseException as error:
            return type(error).__name__, traceback.format_exc()
    text = output.getvalue()
    if status not in (0, 2):
        return status, f"{text[-500:]}\n{_traceback_in(text)}"
    if status == 2 and not all(word in text for word in ("Error", "found:", "rule:", "fix:")):
        return status, f"a message without found, rule and fix: {text[-500:]}"
    return status, ""


def _traceback_in(text: str) -> str:
    """Return the file with a traceback that the message of an unforeseen error names."""
    name = text.rpartition(" with ")[2].strip().rstrip(")")
    file = Path(name)
    try:
        content = file.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return ""
    file.unlink()
    return content[-2500:]


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    """Raise `TimeoutError` in a case that hangs."""

    def hang(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS_PER_CASE} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS_PER_CASE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _names(work: Path) -> set[str]:
    return {entry.name for entry in os.scandir(work)}


def choose_subjects(path: str = "", *, heavy: bool = False) -> list[Subject]:
    """Return the files whose path contains a text, with the functions that read them.

    Args:
        path: The text.
        heavy: Only the functions that import torch.
    """
    subjects = [subject for subject in all_subjects() if path in subject.path]
    if heavy:
        return [replace(s, fast=s.heavy, verbs=()) for s in subjects if s.heavy]
    return [subject for subject in subjects if subject.fast]


def main() -> None:
    """Run a campaign and print its counts and its failures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one case")
    parser.add_argument("--heavy", action="store_true", help="load models and checkpoints")
    parser.add_argument("--path", default="", help="damage only files whose path contains this")
    parser.add_argument("--verbs", type=float, default=0.5, help="share of cases by command line")
    options = parser.parse_args()
    cases = range(options.cases) if options.only is None else range(options.only, options.only + 1)
    with tempfile.TemporaryDirectory(prefix="sweepcp-fuzz-") as folder:
        os.environ["SWEEPCP_CACHE"] = f"{folder}/cache"
        work = Path(folder) / "work"
        work.mkdir()
        make_workspace(work)
        subjects = choose_subjects(options.path, heavy=options.heavy)
        campaign = run_campaign(
            work, cases=cases, seed=options.seed, verbs=options.verbs, subjects=subjects
        )
    for result in campaign.failures:
        print(f"case {result.number}: {result.subject}, {result.entry}: {result.status}")
        print(result.message)
    print(campaign.summary())
    sys.exit(1 if campaign.failures else 0)


if __name__ == "__main__":
    main()
