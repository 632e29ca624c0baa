"""Terminal output of `sweepcp export`."""

import shlex

from rich.console import Console
from rich.text import Text

from sweepcp.export.recipe_facts import FACTS
from sweepcp.export.verify import Verification
from sweepcp.export.write import ExportResult

PASSED, FAILED, WARNING = "green", "bold red", "yellow"


def show_export(console: Console, export: ExportResult) -> None:
    """Print status, differences and files of an export, and how to start the run."""
    bundle, plan, out = export.export_input.bundle, export.plan, export.export_input.out
    targets = f"{export.trainer} on {export.launcher}"
    _print(console, f"{bundle.name}: recipe {bundle.recipe_id} for {targets}")
    for name in (export.trainer, export.launcher):
        status = export.status(name)
        style = FAILED if status.startswith("NOT VERIFIED") else PASSED
        _print(console, f"  {name}: {status}", style=style)
    for name, verification in export.verifications.items():
        _show_verification(console, name, verification)
    for difference in plan.differences:
        line = f"  DIFFERS from the recipe: {FACTS[difference.fact]}: {difference.behaviour}"
        _print(console, line, style=f"bold {WARNING}")
    for note in plan.notes:
        _print(console, f"  note: {note}", style=WARNING)
    if without_store := export.export_input.sources_without_store:
        sources = ", ".join(without_store)
        line = f"  The run cannot start yet: no token store has been built for {sources}."
        _print(console, line, style=WARNING)
    _print(console, f"Files in {out}: {', '.join(export.file_names)}")
    if plan.prepare:
        prepare = shlex.quote(f"{out}/prepare.sh")
        _print(console, f"Prepare once:  bash {prepare}")
    _print(console, f"Start:         {export.start_command}")


def _show_verification(console: Console, name: str, verification: Verification) -> None:
    agreeing = [finding.name for finding in verification.findings if finding.agrees]
    facts = sum(finding in FACTS for finding in agreeing)
    settings = sum(finding.startswith("setting ") for finding in agreeing)
    if facts or settings:
        _print(console, f"  {verification.peer}: {facts} facts and {settings} settings agree")
    for problem in verification.problems:
        _print(console, f"  {name} {problem}", style=FAILED)


def _print(console: Console, line: str, *, style: str = "") -> None:
    # Paths and commands must be copyable, so nothing is wrapped.
    console.print(Text(line, style), soft_wrap=True)
