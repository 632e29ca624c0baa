"""Verification of an export by the peer's own parser, in the Python in which it is installed."""

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweepcp.errors import InvalidInput, located
from sweepcp.export.export_plan import ExportInput, ExportPlan
from sweepcp.export.recipe_facts import (
    FACTS,
    Finding,
    compare_facts,
    compare_settings,
    recipe_facts,
)

READERS = Path(__file__).parent / "readers"
READER_SECONDS = 600
"""Time limit of a reader, in seconds; importing a trainer can take a minute."""


@dataclass(frozen=True)
class Verification:
    """Comparison of what a peer parsed with what was exported."""

    peer: str
    """Name and version."""
    findings: tuple[Finding, ...]
    differences: tuple[str, ...]
    """Facts in which the export states a difference from the recipe."""

    @property
    def mismatches(self) -> tuple[Finding, ...]:
        """Findings that disagree although the export states no difference."""
        return tuple(
            finding
            for finding in self.findings
            if finding.agrees is False and finding.name not in self.differences
        )

    @property
    def pending(self) -> tuple[Finding, ...]:
        """Findings that cannot be compared yet."""
        return tuple(finding for finding in self.findings if finding.agrees is None)

    @property
    def unfounded_differences(self) -> tuple[str, ...]:
        """Stated differences in which the peer agrees with the recipe after all."""
        agreeing = {finding.name for finding in self.findings if finding.agrees}
        return tuple(fact for fact in self.differences if fact in agreeing)

    @property
    def problems(self) -> list[str]:
        """A line for each mismatch and each unfounded difference."""
        mismatches = [
            f"parsed a different value: {finding.label}: {finding.detail}"
            for finding in self.mismatches
        ]
        unfounded = [
            f"agrees although a difference is stated: {FACTS[fact]}"
            for fact in self.unfounded_differences
        ]
        return mismatches + unfounded

    @property
    def passed(self) -> bool:
        """Whether the peer deviates from the recipe exactly where the export states it."""
        return not self.mismatches and not self.unfounded_differences


def run_reader(peer: str, folders: Sequence[Path], *, python: str) -> dict[str, Any]:
    """Run a peer's reader on folders of exported files.

    Args:
        peer: Trainer or launcher, as named in `--to`.
        folders: Folders of exported files.
        python: Interpreter in which the peer is installed: a command, or a path.

    Returns:
        The reader's JSON (see `sweepcp/export/readers/__init__.py`): `peer` and `read`, or
        `missing` with the reason if the peer is not installed.

    Raises:
        InvalidInput: The reader fails, or `python` is no interpreter.
    """
    reader = READERS / f"{peer.replace('-', '_')}.py"
    # The reader runs in another working folder, so a relative path must be resolved here.
    program = str(Path(python).absolute()) if "/" in python else python
    with tempfile.TemporaryDirectory() as work, located("export", "--verify"):
        result = Path(work) / "result.json"
        command = [program, str(reader), *map(str, folders), str(result)]
        process = _run_process(command, folder=work, python=python)
        if not result.is_file():
            lines = process.stderr.strip().splitlines()
            reason = lines[-1] if lines else f"exit status {process.returncode}"
            raise InvalidInput(
                found=f"{python}: {reason}",
                rule=f"an interpreter in which the parser of {peer} runs",
                fix=f"install {peer} and its dependencies there, or name another interpreter",
            )
        content: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return content


def verify_trainer(
    export_input: ExportInput, plan: ExportPlan, *, trainer: str, python: str
) -> Verification | str:
    """Compare what a trainer parses with the recipe; returns why not if it is not installed."""
    content = run_reader(trainer, [export_input.out], python=python)
    if "missing" in content:
        return str(content["missing"])
    return compare_parsed(export_input, plan, peer=content["peer"], content=content["read"][0])


def compare_parsed(
    export_input: ExportInput, plan: ExportPlan, *, peer: str, content: dict[str, Any]
) -> Verification:
    """Compare what a trainer's reader returned for one folder with the recipe."""
    differences = tuple(difference.fact for difference in plan.differences)
    if "error" in content:
        finding = Finding("the file", agrees=False, detail=content["error"])
        return Verification(peer, (finding,), differences)
    unknown = set(content["facts"]) - FACTS.keys()
    assert not unknown, unknown
    facts = compare_facts(expected=recipe_facts(export_input.bundle), parsed=content["facts"])
    # Readers return JSON, in which tuples are lists.
    written = json.loads(json.dumps(plan.settings))
    settings = compare_settings(written=written, parsed=content["settings"])
    return Verification(peer, (*facts, *settings), differences)


def verify_launcher(
    export_input: ExportInput, *, launcher: str, python: str
) -> Verification | None:
    """Let a launcher's own parser read its file; None if it is not installed or has no reader."""
    if not (READERS / f"{launcher}.py").is_file():
        return None
    content = run_reader(launcher, [export_input.out], python=python)
    if "missing" in content:
        return None
    error = str(content["read"][0].get("error", ""))
    return Verification(content["peer"], (Finding("the file", agrees=not error, detail=error),), ())


def _run_process(
    command: list[str], *, folder: str, python: str
) -> subprocess.CompletedProcess[str]:
    # Readers compute on tiny tensors, where more threads only wait for each other.
    env = {"OMP_NUM_THREADS": "1"} | os.environ
    # Readers import each other from their own folder, which this variable takes off the path.
    env.pop("PYTHONSAFEPATH", None)
    try:
        return subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            cwd=folder,
            env=env,
            timeout=READER_SECONDS,
            check=False,
        )
    except (OSError, ValueError) as error:  # ValueError: the character NUL
        raise InvalidInput(
            found=f"{python}: {getattr(error, 'strerror', error)}",
            rule="a Python interpreter",
            fix="name the path of a Python in which the trainer is installed",
        ) from None
    except subprocess.TimeoutExpired:
        raise InvalidInput(
            found=python,
            rule=f"an interpreter in which the trainer's parser returns within {READER_SECONDS} s",
            fix="import the trainer there by hand to find what blocks",
        ) from None
