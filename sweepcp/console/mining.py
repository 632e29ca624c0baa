"""Print the result of mining a corpus."""

from pathlib import Path

from rich.console import Console

from sweepcp.console.tables import print_line
from sweepcp.corpora.mining import MiningResult


def show_mining(console: Console, result: MiningResult, out: Path) -> None:
    """Print what was selected, the estimates behind it, and the files in `out`."""
    for line in _result_lines(result):
        print_line(console, line)
    written = (
        f"\nWritten to {out}: documents/, source.yaml to paste into an experiment, "
        "exclude.jsonl for the corpus, report.json."
    )
    print_line(console, written)
    if result.labelled_precision is None:
        sample = out / "sample.jsonl"
        hint = (
            f"For a better estimate, set label to true or false in {sample}, and run the same "
            "command again."
        )
        print_line(console, hint)


def _result_lines(result: MiningResult) -> list[str]:
    low, high = result.prevalence_interval
    documents = ", ".join(f"{count:,} {source}" for source, count in result.training.items())
    selected = ", ".join(f"{share:.2%} of {source}" for source, share in result.by_source.items())
    calibration = ", ".join(
        f"{predicted:.2f} → {observed:.2f} ({count:,})"
        for predicted, observed, count in result.calibration
    )
    lines = [
        f"trained on  {documents} documents",
        f"prevalence  {result.prevalence:.3%} of {result.documents:,} documents are domain text "
        f"(95 % interval {low:.3%} to {high:.3%}), from {result.prevalence_from}",
        f"selected    {result.selected:,} documents, with log odds of at least "
        f"{result.threshold:.2f}",
        f"predicted   precision {result.precision:.1%} at that prevalence, recall "
        f"{result.recall:.1%}",
        f"held out    of documents not trained on, {selected} would be selected",
        f"calibration Brier score {result.brier:.4f}; predicted → observed: {calibration}",
    ]
    if result.labelled_precision is not None:
        share, count = result.labelled_precision
        lines.append(f"labelled    {share:.1%} of {count} selected documents are domain text")
    return lines
