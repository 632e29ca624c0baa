"""TODO console.check."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweepcp.corpora.check import CorporaCheck, SourceCheck

OVERLAPS_SHOWN = 20


def show_check(console: Console, result: CorporaCheck) -> None:
    """The check as a table and lines."""
    table = Table(title="Sources", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    names = (
        "source",
        "role",
        "documents",
        "MB",
        "tokens",
        "held out",
        "repeated",
        "language",
        "base, bits/B",
    )
    for name in (*names, "overlaps"):
        table.add_column(
            name, justify="left" if name in ("source", "role", "language") else "right"
        )
    for each in result.sources:
        meta = each.store.meta
        table.add_row(
            each.source.name,
            each.source.role,
            f"{meta['train']['documents']:,}",
            f"{meta['train']['bytes'] / 1e6:,.1f}",
            f"{meta['train']['tokens']:,}",
            f"{meta['held_out']['documents']:,}",
            f"{meta['near_duplicates']:,}" if each.source.near_duplicates == "drop" else "kept",
            _main_language(each),
            f"{each.base_bits:.3f}" if each.base_bits is not None else "",
            f"{len({o.id for o in each.overlaps}):,}",
        )
    console.print(table)
    for each in result.sources:
        if each.as_claimed is not None and each.as_claimed < 0.9:
            line = f"warning: {each.source.name} claims {each.source.language}, found in {each.as_claimed:.0%} of a sample"
            console.print(Text(line, "yellow"), soft_wrap=True)
    console.print(
        Text(
            f"{result.items:,} items of the suites were looked for in the training text, by runs of 8 words; "
            f"{result.short:,} of them are too short for that."
        ),
        soft_wrap=True,
    )
    overlaps = result.overlaps
    for o in overlaps[:OVERLAPS_SHOWN]:
        line = f"overlap: {o.place} ({o.source}, id {o.id}) holds {o.hit.overlap:.0%} of {o.hit.member} {o.hit.item}"
        console.print(Text(line, "yellow"), soft_wrap=True)
    if len(overlaps) > OVERLAPS_SHOWN:
        console.print(Text(f"and {len(overlaps) - OVERLAPS_SHOWN:,} more", "yellow"))
    if overlaps:
        console.print(
            Text(
                "To drop them: --write overlaps.jsonl, then `exclude: overlaps.jsonl` in the sources."
            )
        )


def _main_language(each: SourceCheck) -> str:
    total = sum(each.languages.values())
    return ", ".join(f"{name} {count / total:.0%}" for name, count in each.languages.most_common(1))
