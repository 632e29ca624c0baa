"""Run a peer's own parser, in the Python in which it is installed, on what was exported, and compare."""

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweepcp.errors import BadInput
from sweepcp.export.facts import FACTS, Finding, compare, facts_of
from sweepcp.export.handoff import Handoff, Source

READERS = Path(__file__).parent / "readers"
LIMIT = 600
"""Seconds for a reader; imports of a trainer can take a minute."""


@dataclass(frozen=True)
class Checked:
    """What a peer's parser made of an export."""

    peer: str
    """Name and version."""
    findings: tuple[Finding, ...]
    differences: tuple[str, ...]
    """Facts that differ as the export says they do."""

    @property
    def wrong(self) -> tuple[Finding, ...]:
        """What differs, and was not said to."""
        return tuple(f for f in self.findings if f.agrees is False and f.what not in self.differences)

    @property
    def open(self) -> tuple[Finding, ...]:
        """What cannot be told yet."""
        return tuple(f for f in self.findings if f.agrees is None)

    @property
    def missing(self) -> tuple[str, ...]:
        """Differences that were stated and are none; the export would say more than is so."""
        agreeing = {f.what for f in self.findings if f.agrees}
        return tuple(d for d in self.differences if d in agreeing)

    @property
    def good(self) -> bool:
        return not self.wrong and not self.missing


def read(python: str, name: str, folders: Sequence[Path]) -> dict[str, Any]:
    """What the reader of a peer says of folders; `missing`, and why, where the peer is not installed.

    Raises `BadInput` where the reader does not run.
    """
    reader = READERS / f"{name.replace('-', '_')}.py"
    program = str(Path(python).absolute()) if "/" in python else python  # it is run in another folder
    with tempfile.TemporaryDirectory() as work:
        result = Path(work) / "result.json"
        command = [program, str(reader), *map(str, folders), str(result)]
        env = {"OMP_NUM_THREADS": "1"} | os.environ  # tiny tensors, for which more threads only wait for each other
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, cwd=work, env=env, timeout=LIMIT, check=False
            )
        except OSError as error:
            raise BadInput("export", "--verify", python, "a Python interpreter", str(error.strerror)) from None
        except subprocess.TimeoutExpired:
            rule = f"its parser answers within {LIMIT} s"
            raise BadInput("export", "--verify", python, rule, "see whether it can be imported there") from None
        if not result.is_file():
            last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            rule = f"the parser of {name} runs there"
            raise BadInput("export", "--verify", f"{python}: {last}", rule, "install it there, with what it needs")
        content: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return content


def check_trainer(source: Source, handoff: Handoff, name: str, python: str) -> Checked | str:
    """Compare what a trainer parsed with the recipe; why not, where it is not installed."""
    content = read(python, name, [source.out])
    return content.get("missing") or judge(source, handoff, content["peer"], content["read"][0])


def judge(source: Source, handoff: Handoff, peer: str, content: dict[str, Any]) -> Checked:
    """Compare what a trainer parsed with the recipe."""
    stated = tuple(difference.fact for difference in handoff.differences)
    if "error" in content:
        return Checked(peer, (Finding("the file", False, content["error"]),), stated)
    unlike = set(content["facts"]) - FACTS.keys()
    assert not unlike, unlike
    settings = json.loads(json.dumps(handoff.settings))
    findings = compare(facts_of(source.bundle), content["facts"], settings, content["settings"])
    return Checked(peer, tuple(findings), stated)


def check_launcher(source: Source, name: str, python: str) -> Checked | None:
    """Whether a launcher's own parser takes its file, None where it is not installed or has none."""
    if not (READERS / f"{name}.py").is_file():
        return None
    content = read(python, name, [source.out])
    if "missing" in content:
        return None
    found = content["read"][0]
    detail = str(found.get("error", ""))
    return Checked(content["peer"], (Finding("the file", not detail, detail),), ())
