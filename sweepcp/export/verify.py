"""Run a peer's own parser, in the Python in which it is installed, on what was exported, and compare."""

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweepcp.errors import InvalidInput
from sweepcp.export.export_plan import ExportInput, ExportPlan
from sweepcp.export.recipe_facts import FACTS, Finding, compare_facts, recipe_facts

READERS = Path(__file__).parent / "readers"
READER_SECONDS = 600
"""Seconds for a reader; imports of a trainer can take a minute."""


@dataclass(frozen=True)
class Verification:
    """What a peer's parser made of an export."""

    peer: str
    """Name and version."""
    findings: tuple[Finding, ...]
    differences: tuple[str, ...]
    """Facts that differ as the export says they do."""

    @property
    def wrong(self) -> tuple[Finding, ...]:
        """What differs, and was not said to."""
        return tuple(
            f for f in self.findings if f.agrees is False and f.what not in self.differences
        )

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


def run_reader(python: str, name: str, folders: Sequence[Path]) -> dict[str, Any]:
    """What the reader of a peer says of folders; `missing`, and why, where the peer is not installed.

    Raises `BadInput` where the reader does not run.
    """
    reader = READERS / f"{name.replace('-', '_')}.py"
    program = (
        str(Path(python).absolute()) if "/" in python else python
    )  # it is run in another folder
    with tempfile.TemporaryDirectory() as work:
        result = Path(work) / "result.json"
        command = [program, str(reader), *map(str, folders), str(result)]
        env = {
            "OMP_NUM_THREADS": "1"
        } | os.environ  # tiny tensors, for which more threads only wait for each other
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                cwd=work,
                env=env,
                timeout=READER_SECONDS,
                check=False,
            )
        except OSError as error:
            raise InvalidInput(
                file="export",
                key="--verify",
                found=python,
                rule="a Python interpreter",
                fix=str(error.strerror),
            ) from None
        except subprocess.TimeoutExpired:
            rule = f"its parser answers within {READER_SECONDS} s"
            raise InvalidInput(
                file="export",
                key="--verify",
                found=python,
                rule=rule,
                fix="see whether it can be imported there",
            ) from None
        if not result.is_file():
            last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            rule = f"the parser of {name} runs there"
            raise InvalidInput(
                file="export",
                key="--verify",
                found=f"{python}: {last}",
                rule=rule,
                fix="install it there, with what it needs",
            )
        content: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return content


def verify_trainer(
    source: ExportInput, handoff: ExportPlan, name: str, python: str
) -> Verification | str:
    """Compare what a trainer parsed with the recipe; why not, where it is not installed."""
    content = run_reader(python, name, [source.out])
    return content.get("missing") or compare_parsed(
        source, handoff, content["peer"], content["read"][0]
    )


def compare_parsed(
    source: ExportInput, handoff: ExportPlan, peer: str, content: dict[str, Any]
) -> Verification:
    """Compare what a trainer parsed with the recipe."""
    stated = tuple(difference.fact for difference in handoff.differences)
    if "error" in content:
        return Verification(peer, (Finding("the file", False, content["error"]),), stated)
    unlike = set(content["facts"]) - FACTS.keys()
    assert not unlike, unlike
    settings = json.loads(json.dumps(handoff.settings))
    findings = compare_facts(
        recipe_facts(source.bundle), content["facts"], settings, content["settings"]
    )
    return Verification(peer, tuple(findings), stated)


def verify_launcher(source: ExportInput, name: str, python: str) -> Verification | None:
    """Whether a launcher's own parser takes its file, None where it is not installed or has none."""
    if not (READERS / f"{name}.py").is_file():
        return None
    content = run_reader(python, name, [source.out])
    if "missing" in content:
        return None
    found = content["read"][0]
    detail = str(found.get("error", ""))
    return Verification(content["peer"], (Finding("the file", not detail, detail),), ())
