"""What is in the corpora: sizes, languages, what the base makes of them, and what they share with the suites."""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweepcp.base import pretrained_path
from sweepcp.data.build import side
from sweepcp.data.language import detect
from sweepcp.data.overlap import Hit, Index, Item, write_index
from sweepcp.data.read import Tally, read
from sweepcp.data.records import Part, parts
from sweepcp.data.sources import Found, Source, fingerprint
from sweepcp.data.spread import spread
from sweepcp.data.store import Store
from sweepcp.experiment import Experiment
from sweepcp.files import cache_dir
from sweepcp.suites import MemberSpec, held_out_sample, make_tasks
from sweepcp.sweep import Stages, build_stores

SAMPLE = 2000
"""Documents of a source whose language is detected."""
LOSS_DOCUMENTS, LOSS_CHARS = 200, 2000
"""Held-out documents of a source that the base reads, and how much of each."""
SHOWN = 20


class Overlap(NamedTuple):
    """A training document that holds an item of a suite."""

    source: str
    id: str
    place: str
    hit: Hit


@dataclass
class SourceCheck:
    """What was found out about one source."""

    source: Source
    store: Store
    languages: Counter[str] = field(default_factory=Counter)
    """Language → documents of a sample."""
    overlaps: list[Overlap] = field(default_factory=list)
    base_bits: float | None = None
    """Bits per byte of held-out text under the base."""

    @property
    def as_claimed(self) -> float | None:
        """Share of the sample that is in the language that the source claims, where that is a code of two letters."""
        total, claim = sum(self.languages.values()), self.source.language
        return self.languages[claim] / total if total and len(claim) == 2 else None


@dataclass
class Check:
    """The answer of `sweepcp data check`."""

    sources: list[SourceCheck]
    items: int
    """Items of the suites that were looked for."""
    short: int
    """Items that were too short for that."""

    @property
    def overlaps(self) -> list[Overlap]:
        return [overlap for checked in self.sources for overlap in checked.overlaps]


def check(experiment: Experiment, files: dict[str, Found], view: Stages, address: str | None = None) -> Check:
    """Read every training document once, and some held-out ones with the base. Builds stores that are missing."""
    stores = build_stores(experiment, files, view, address)
    checked = [SourceCheck(s, stores[s.name]) for s in experiment.sources if s.name in stores]
    folder = cache_dir() / "checks"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        index, items, short = write_index(Path(work) / "index", _items(experiment, stores))
        for each in checked:
            found = files[each.source.name]
            cut = parts(each.source, found)
            scan = partial(_scan, each.source, found, index, SAMPLE / max(1, each.store.meta["train"]["documents"]))
            for done, (languages, overlaps) in enumerate(spread(scan, cut, address), start=1):
                view.stage("check", done, len(cut), f"reading {each.source.name}")
                each.languages += languages
                each.overlaps += overlaps
            each.overlaps.sort(key=lambda o: (o.place, o.hit))
    _read_with_base(experiment, files, checked, view)
    return Check(checked, items, short)


def _scan(source: Source, found: Found, index: Index, sampled: float, part: Part) -> tuple[Counter[str], list[Overlap]]:
    """Languages of a sample, and overlaps, of a part's training documents."""
    languages: Counter[str] = Counter()
    overlaps: list[Overlap] = []
    for document in read(source, found, part, Tally()):
        if side(source, part, document):
            continue
        id_ = document.key.hex()[:16]
        if int.from_bytes(document.key[8:16], "big") < sampled * 2**64:
            languages[detect(document.text)] += 1
        overlaps += [Overlap(source.name, id_, str(document.place), hit) for hit in index.find(document.text)]
    return languages, overlaps


def _items(experiment: Experiment, stores: dict[str, Store]) -> Iterator[Item]:
    """What the suites measure with: held-out documents, made items and items of lm-eval tasks."""
    made = make_tasks(experiment.suites, stores)
    for _, member in experiment.suites.members:
        if member.held_out:
            for text in held_out_sample(stores[member.held_out], member):
                yield Item(member.name, hashlib.sha256(text.encode()).hexdigest()[:16], text)
        elif member.source and made:
            for number, line in enumerate((made / f"{member.name}.jsonl").read_text("utf-8").splitlines()):
                item = json.loads(line)
                yield Item(member.name, str(number), item["context"] + item["choices"][item["gold"]])
        else:
            from sweepcp.score.tasks import task_texts

            yield from (Item(member.name, id_, text) for id_, text in task_texts(member))


def _read_with_base(experiment: Experiment, files: dict[str, Found], checked: list[SourceCheck], view: Stages) -> None:
    """Bits per byte of each source's held-out text under the base, where the base is at hand."""
    spec = experiment.base
    model = str(spec.path or spec.hub)
    if spec.pretrain is not None:
        folder = pretrained_path(spec, {s.name: fingerprint(s, files[s.name]) for s in experiment.sources})
        if not (folder / "config.json").exists():
            view.note("the base is not pretrained yet, so its loss is not shown; `sweepcp search` pretrains it")
            return
        model = str(folder)
    import torch

    from sweepcp.models import load_model, load_tokenizer
    from sweepcp.ranks import Ranks
    from sweepcp.score.held_out import HeldOut

    tokenizer = load_tokenizer(spec)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load_model(model, spec.revision, device)
    for number, each in enumerate(checked, start=1):
        view.stage("base", number, len(checked), f"reading held-out text of {each.source.name}")
        if each.store.meta["held_out"]["documents"]:
            member = MemberSpec(held_out=each.source.name, items=LOSS_DOCUMENTS, chars=LOSS_CHARS)
            texts = HeldOut(each.store, member, experiment.training.seq_len, tokenizer)
            bits = texts.bits(loaded, Ranks(device=loaded.device), 16, experiment.training.precision)
            each.base_bits = float(bits.sum() / texts.bytes.sum())


def write_overlaps(path: Path, overlaps: list[Overlap]) -> None:
    """A line a document and item; `exclude:` of a source reads the file."""
    rows = ({"id": o.id, "source": o.source, "place": o.place, **o.hit._asdict()} for o in overlaps)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def show_check(console: Console, result: Check) -> None:
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
        table.add_column(name, justify="left" if name in ("source", "role", "language") else "right")
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
            _languages(each),
            f"{each.base_bits:.3f}" if each.base_bits is not None else "",
            f"{len({o.id for o in each.overlaps}):,}",
        )
    console.print(table)
    for each in result.sources:
        if each.as_claimed is not None and each.as_claimed < 0.9:
            line = (
                f"warning: {each.source.name} claims {each.source.language}, found in {each.as_claimed:.0%} of a sample"
            )
            console.print(Text(line, "yellow"), soft_wrap=True)
    console.print(
        Text(
            f"{result.items:,} items of the suites were looked for in the training text, by runs of 8 words; "
            f"{result.short:,} of them are too short for that."
        ),
        soft_wrap=True,
    )
    overlaps = result.overlaps
    for o in overlaps[:SHOWN]:
        line = f"overlap: {o.place} ({o.source}, id {o.id}) holds {o.hit.overlap:.0%} of {o.hit.member} {o.hit.item}"
        console.print(Text(line, "yellow"), soft_wrap=True)
    if len(overlaps) > SHOWN:
        console.print(Text(f"and {len(overlaps) - SHOWN:,} more", "yellow"))
    if overlaps:
        console.print(Text("To drop them: --write overlaps.jsonl, then `exclude: overlaps.jsonl` in the sources."))


def _languages(each: SourceCheck) -> str:
    total = sum(each.languages.values())
    return ", ".join(f"{name} {count / total:.0%}" for name, count in each.languages.most_common(1))
