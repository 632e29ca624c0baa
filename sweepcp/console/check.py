"""Print the check of an experiment's corpora."""

from rich.console import Console
from rich.text import Text

from sweepcp.console.tables import Column, Row, print_line, print_table
from sweepcp.corpora.check import CorporaCheck, DocumentOverlap, SourceCheck
from sweepcp.corpora.overlap_index import RUN_WORDS

OVERLAPS_SHOWN = 20
MIN_DECLARED_SHARE = 0.9
"""Share of the sample in a source's declared language below which there is a warning."""
COLUMNS = (
    Column(name="source", is_text=True),
    Column(name="role", is_text=True, drop=5),
    Column(name="documents", drop=1),
    Column(name="MB", drop=6),
    Column(name="tokens"),
    Column(name="held out", drop=4),
    Column(name="repeated", drop=3),
    Column(name="language", is_text=True, drop=4),
    Column(name="base, bits/B", drop=2),
    Column(name="overlaps"),
)


def show_check(console: Console, result: CorporaCheck) -> None:
    """Print a table of the sources, and warnings about languages and overlaps."""
    rows = [Row(cells=_source_cells(check)) for check in result.sources]
    print_table(console, "Sources", COLUMNS, rows)
    for check in result.sources:
        share, source = check.share_in_declared_language, check.source
        if share is not None and share < MIN_DECLARED_SHARE:
            line = (
                f"warning: {source.name} is declared as {source.language}, "
                f"which was detected in {share:.0%} of a sample"
            )
            print_line(console, line, "yellow")
    searched = (
        f"Searched the training text for {result.items:,} items of the suites, by runs of "
        f"{RUN_WORDS} words; {result.short:,} of them are too short for that."
    )
    print_line(console, searched)
    _show_overlaps(console, result.overlaps)


def _source_cells(check: SourceCheck) -> list[str]:
    source, meta = check.source, check.store.meta
    train, repeated = meta["train"], f"{meta['near_duplicates']:,}"
    overlapping = {overlap.id for overlap in check.overlaps}
    return [
        source.name,
        source.role,
        f"{train['documents']:,}",
        f"{train['bytes'] / 1e6:,.1f}",
        f"{train['tokens']:,}",
        f"{meta['held_out']['documents']:,}",
        repeated if source.near_duplicates == "drop" else "kept",
        _main_language(check),
        f"{check.base_bits:.3f}" if check.base_bits is not None else "",
        f"{len(overlapping):,}",
    ]


def _main_language(check: SourceCheck) -> str:
    """Return the most frequent language of the sample with its share, empty without a sample."""
    total = sum(check.languages.values())
    if not total:
        return ""
    [(language, count)] = check.languages.most_common(1)
    return f"{language} {count / total:.0%}"


def _show_overlaps(console: Console, overlaps: list[DocumentOverlap]) -> None:
    for overlap in overlaps[:OVERLAPS_SHOWN]:
        hit = overlap.hit
        line = (
            f"overlap: {overlap.location} ({overlap.source}, id {overlap.id}) contains "
            f"{hit.overlap:.0%} of {hit.member} {hit.item}"
        )
        console.print(Text(line, "yellow"), soft_wrap=True)
    if len(overlaps) > OVERLAPS_SHOWN:
        console.print(Text(f"and {len(overlaps) - OVERLAPS_SHOWN:,} more", "yellow"))
    if overlaps:
        fix = (
            "To exclude these documents, list them with `--write overlaps.jsonl` and add "
            "`exclude: overlaps.jsonl` to the sources."
        )
        print_line(console, fix)
