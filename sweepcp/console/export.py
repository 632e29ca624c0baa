"""What `sweepcp export` says at the end."""

from rich.console import Console

from sweepcp.export.recipe_facts import FACTS
from sweepcp.export.write import ExportResult


def show_export(console: Console, export: ExportResult) -> None:
    """Files, status, differences, and how to start."""
    bundle = export.source.bundle
    console.print(
        f"{bundle.name}: recipe {bundle.recipe_id} for {export.trainer} on {export.launcher}"
    )
    for name in (export.trainer, export.launcher):
        status = export.status(name)
        console.print(f"  {name}: {status}", style="bold red" if "NOT" in status else "green")
    for name, checked in export.checked.items():
        facts = [f for f in checked.findings if f.what in FACTS and f.agrees]
        settings = [f for f in checked.findings if f.what.startswith("setting ") and f.agrees]
        if facts or settings:
            console.print(
                f"  {checked.peer}: {len(facts)} facts and {len(settings)} settings agree"
            )
        for finding in checked.wrong:
            console.print(
                f"  {name} parsed otherwise: {finding.what}: {finding.detail}", style="bold red"
            )
        for fact in checked.missing:
            console.print(
                f"  {name} agrees where a difference was stated: {fact}", style="bold red"
            )
    for difference in export.handoff.differences:
        console.print(
            f"  DIFFERS from the recipe: {FACTS[difference.fact]}: {difference.there}",
            style="bold yellow",
        )
    for note in export.handoff.notes:
        console.print(f"  note: {note}", style="yellow")
    if planned := [c.name for c in bundle.corpora if c.store is None]:
        console.print(
            f"  it cannot run yet: no token store for {', '.join(planned)}", style="yellow"
        )
    console.print(
        f"written to {export.source.out}: {', '.join(export.files)}",
        highlight=False,
        soft_wrap=True,
    )
    if export.handoff.prepare:
        console.print(f"once: bash {export.source.out}/prepare.sh", highlight=False, soft_wrap=True)
    console.print(f"run:  {export.how}", highlight=False, soft_wrap=True)
