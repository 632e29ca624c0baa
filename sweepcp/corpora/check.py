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

from sweepcp.config.experiment import Experiment
from sweepcp.config.source import Source
from sweepcp.config.suites import MemberSpec
from sweepcp.corpora.overlap_index import Overlap, OverlapIndex, SuiteItem, write_overlap_index
from sweepcp.corpora.stores import build_stores
from sweepcp.data.build import split_of
from sweepcp.data.documents import RecordCounts, read_documents
from sweepcp.data.language import detect_language
from sweepcp.data.records import SourceShard, split_into_shards
from sweepcp.data.source_files import ResolvedSource, source_fingerprint
from sweepcp.data.token_store import TokenStore
from sweepcp.models.base import pretrained_path
from sweepcp.scoring.generated_tasks import generate_tasks
from sweepcp.util.files import cache_dir
from sweepcp.util.parallel import parallel_map
from sweepcp.util.progress import Progress

LANGUAGE_SAMPLE = 2000
"""Documents of a source whose language is detected."""
LOSS_DOCUMENTS, LOSS_CHARS = 200, 2000
"""Held-out documents of a source that the base reads, and how much of each."""


class DocumentOverlap(NamedTuple):
    """A training document that holds an item of a suite."""

    source: str
    id: str
    place: str
    hit: Overlap


@dataclass
class SourceCheck:
    """What was found out about one source."""

    source: Source
    store: TokenStore
    languages: Counter[str] = field(default_factory=Counter)
    """Language → documents of a sample."""
    overlaps: list[DocumentOverlap] = field(default_factory=list)
    base_bits: float | None = None
    """Bits per byte of held-out text under the base."""

    @property
    def as_claimed(self) -> float | None:
        """Share of the sample that is in the language that the source claims, where that is a code of two letters."""
        total, claim = sum(self.languages.values()), self.source.language
        return self.languages[claim] / total if total and len(claim) == 2 else None


@dataclass
class CorporaCheck:
    """The answer of `sweepcp data check`."""

    sources: list[SourceCheck]
    items: int
    """Items of the suites that were looked for."""
    short: int
    """Items that were too short for that."""

    @property
    def overlaps(self) -> list[DocumentOverlap]:
        return [overlap for checked in self.sources for overlap in checked.overlaps]


def check_corpora(
    experiment: Experiment,
    files: dict[str, ResolvedSource],
    view: Progress,
    address: str | None = None,
) -> CorporaCheck:
    """Read every training document once, and some held-out ones with the base. Builds stores that are missing."""
    stores = build_stores(experiment, files, view, address)
    checked = [SourceCheck(s, stores[s.name]) for s in experiment.sources if s.name in stores]
    folder = cache_dir() / "checks"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        index, items, short = write_overlap_index(
            Path(work) / "index", _suite_items(experiment, stores)
        )
        for each in checked:
            found = files[each.source.name]
            cut = split_into_shards(each.source, found)
            scan = partial(
                _scan_chunk,
                each.source,
                found,
                index,
                LANGUAGE_SAMPLE / max(1, each.store.meta["train"]["documents"]),
            )
            for done, (languages, overlaps) in enumerate(parallel_map(scan, cut, address), start=1):
                view.stage("check", done, len(cut), f"reading {each.source.name}")
                each.languages += languages
                each.overlaps += overlaps
            each.overlaps.sort(key=lambda o: (o.place, o.hit))
    _measure_base_loss(experiment, files, checked, view)
    return CorporaCheck(checked, items, short)


def _scan_chunk(
    source: Source, found: ResolvedSource, index: OverlapIndex, sampled: float, part: SourceShard
) -> tuple[Counter[str], list[DocumentOverlap]]:
    """Languages of a sample, and overlaps, of a part's training documents."""
    languages: Counter[str] = Counter()
    overlaps: list[DocumentOverlap] = []
    for document in read_documents(source, found, part, RecordCounts()):
        if split_of(source, part, document):
            continue
        id_ = document.key.hex()[:16]
        if int.from_bytes(document.key[8:16], "big") < sampled * 2**64:
            languages[detect_language(document.text)] += 1
        overlaps += [
            DocumentOverlap(source.name, id_, str(document.place), hit)
            for hit in index.find(document.text)
        ]
    return languages, overlaps


def _suite_items(experiment: Experiment, stores: dict[str, TokenStore]) -> Iterator[SuiteItem]:
    """What the suites measure with: held-out documents, made items and items of lm-eval tasks."""
    made = generate_tasks(experiment.suites, stores)
    for _, member in experiment.suites.members:
        if member.held_out:
            for text in stores[member.held_out].sample_held_out(member.items):
                yield SuiteItem(member.name, hashlib.sha256(text.encode()).hexdigest()[:16], text)
        elif member.source and made:
            for number, line in enumerate(
                (made / f"{member.name}.jsonl").read_text("utf-8").splitlines()
            ):
                item = json.loads(line)
                yield SuiteItem(
                    member.name, str(number), item["context"] + item["choices"][item["gold"]]
                )
        else:
            from sweepcp.scoring.lm_eval_tasks import task_item_texts

            yield from (SuiteItem(member.name, id_, text) for id_, text in task_item_texts(member))


def _measure_base_loss(
    experiment: Experiment,
    files: dict[str, ResolvedSource],
    checked: list[SourceCheck],
    view: Progress,
) -> None:
    """Bits per byte of each source's held-out text under the base, where the base is at hand."""
    spec = experiment.base
    model = str(spec.path or spec.hub)
    if spec.pretrain is not None:
        folder = pretrained_path(
            spec, {s.name: source_fingerprint(s, files[s.name]) for s in experiment.sources}
        )
        if not (folder / "config.json").exists():
            view.note(
                "the base is not pretrained yet, so its loss is not shown; `sweepcp search` pretrains it"
            )
            return
        model = str(folder)
    import torch

    from sweepcp.models.loading import load_model, load_tokenizer
    from sweepcp.scoring.held_out import HeldOutText
    from sweepcp.training.process_group import ProcessGroup

    tokenizer = load_tokenizer(spec)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load_model(model, revision=spec.revision, device=device)
    for number, each in enumerate(checked, start=1):
        view.stage("base", number, len(checked), f"reading held-out text of {each.source.name}")
        if each.store.meta["held_out"]["documents"]:
            member = MemberSpec(held_out=each.source.name, items=LOSS_DOCUMENTS, chars=LOSS_CHARS)
            texts = HeldOutText(
                each.store, member, tokenizer, seq_len=experiment.training.seq_len
            )
            bits = texts.bits(
                loaded,
                ProcessGroup(device=loaded.device),
                rows=16,
                precision=experiment.training.precision,
            )
            each.base_bits = float(bits.sum() / texts.bytes.sum())


def write_overlaps(path: Path, overlaps: list[DocumentOverlap]) -> None:
    """A line a document and item; `exclude:` of a source reads the file."""
    rows = ({"id": o.id, "source": o.source, "place": o.place, **o.hit._asdict()} for o in overlaps)
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
