"""The check of an experiment's corpora: sizes, languages, the base's loss, and contamination."""

import hashlib
import json
import logging
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
from sweepcp.data.records import split_into_shards
from sweepcp.data.shards import SourceShard
from sweepcp.data.source_files import ResolvedSource, source_fingerprint
from sweepcp.data.token_store import TokenStore
from sweepcp.errors import located
from sweepcp.models.base import pretrained_path
from sweepcp.models.encoder import load_encoder
from sweepcp.scoring.generated_tasks import generate_tasks
from sweepcp.util.files import cache_dir, write_text
from sweepcp.util.gpus import Device
from sweepcp.util.parallel import parallel_map, usable_cores
from sweepcp.util.progress import Progress
from sweepcp.util.temporary import temporary_folder

LANGUAGE_SAMPLE = 2000
"""Training documents per source whose language is detected."""
LOSS_DOCUMENTS, LOSS_CHARS = 200, 2000
"""Held-out documents per source that the base is scored on, and characters of each."""
LOSS_ROWS = 16
"""Sequences in one forward pass of the base."""

logger = logging.getLogger(__name__)


class DocumentOverlap(NamedTuple):
    """A training document that contains an item of a suite."""

    source: str
    id: str
    location: str
    """The file and line (or row) of the document."""
    hit: Overlap


@dataclass
class SourceCheck:
    """The findings about one source."""

    source: Source
    store: TokenStore
    languages: Counter[str] = field(default_factory=Counter)
    """Detected language → documents of the sample."""
    overlaps: list[DocumentOverlap] = field(default_factory=list)
    base_bits: float | None = None
    """Bits per byte of held-out text under the base; None if it was not measured."""

    @property
    def share_in_declared_language(self) -> float | None:
        """Share of the sample in the source's language; None if that is no two-letter code."""
        total, language = sum(self.languages.values()), self.source.language
        if not total or len(language) != 2:
            return None
        return self.languages[language] / total


@dataclass
class CorporaCheck:
    """The result of `sweepcp data check`."""

    sources: list[SourceCheck]
    items: int
    """Number of items and held-out documents of the suites."""
    short: int
    """How many of them are too short to be searched for."""

    @property
    def overlaps(self) -> list[DocumentOverlap]:
        """The overlaps of all sources."""
        return [overlap for checked in self.sources for overlap in checked.overlaps]


def check_corpora(
    experiment: Experiment,
    files: dict[str, ResolvedSource],
    *,
    device: Device,
    progress: Progress,
    address: str | None = None,
) -> CorporaCheck:
    """Check every training document, and score the base on held-out documents.

    Token stores that are missing are built first. The base is scored if it is available: a base to
    be pretrained is not pretrained here.

    Args:
        experiment: The experiment whose sources are checked.
        files: The resolved files of each source, by source name.
        device: What the base is scored on.
        progress: Receives the tasks `sources`, `check` and `base`.
        address: Ray cluster to run on; by default the cores of this machine.
    """
    stores = build_stores(experiment, files, progress=progress, address=address)
    checks = [
        SourceCheck(source, stores[source.name])
        for source in experiment.sources
        if source.name in stores
    ]
    folder = cache_dir() / "checks"
    folder.mkdir(parents=True, exist_ok=True)
    with temporary_folder(folder, "index") as work:
        suite_items = _suite_items(experiment, stores)
        index, items, short = write_overlap_index(work / "index", suite_items)
        for check in checks:
            source_files = files[check.source.name]
            _scan_source(check, source_files, index, progress=progress, address=address)
    progress.finish("check")
    _measure_base_loss(experiment, files, checks, device=device, progress=progress)
    return CorporaCheck(checks, items, short)


def write_overlaps(path: Path, overlaps: list[DocumentOverlap]) -> None:
    """Write one JSON line per document and item; a source's `exclude` takes this file."""
    lines: list[str] = []
    for overlap in overlaps:
        document = {"id": overlap.id, "source": overlap.source, "place": overlap.location}
        lines.append(json.dumps(document | overlap.hit._asdict(), ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def _scan_source(
    check: SourceCheck,
    files: ResolvedSource,
    index: OverlapIndex,
    *,
    progress: Progress,
    address: str | None,
) -> None:
    """Add the languages and the overlaps of a source's training documents to its check."""
    source = check.source
    shards = split_into_shards(source, files)
    sample_share = LANGUAGE_SAMPLE / max(1, check.store.meta["train"]["documents"])
    scan = partial(_scan_shard, source, files, index, sample_share)
    for done, (languages, overlaps) in enumerate(parallel_map(scan, shards, address), start=1):
        detail = f"reading {source.name}"
        progress.update("check", done=done, total=len(shards), detail=detail)
        check.languages += languages
        check.overlaps += overlaps
    # Shards complete in any order.
    check.overlaps.sort(key=lambda overlap: (overlap.location, overlap.hit))


def _scan_shard(
    source: Source,
    files: ResolvedSource,
    index: OverlapIndex,
    sample_share: float,
    shard: SourceShard,
) -> tuple[Counter[str], list[DocumentOverlap]]:
    """Return the languages of a sample, and the overlaps, of a shard's training documents."""
    languages: Counter[str] = Counter()
    overlaps: list[DocumentOverlap] = []
    for document in read_documents(source, files, shard, RecordCounts()):
        if split_of(source, shard, document):
            continue
        # The first 8 bytes of the hash decide which documents are held out. Other bytes draw the
        # sample, or it would be drawn from a part of the range of hashes only.
        if int.from_bytes(document.sha256[8:16], "big") < sample_share * 2**64:
            languages[detect_language(document.text)] += 1
        document_id, location = document.id, str(document.location)
        hits = index.find(document.text)
        overlaps += [DocumentOverlap(source.name, document_id, location, hit) for hit in hits]
    return languages, overlaps


def _suite_items(experiment: Experiment, stores: dict[str, TokenStore]) -> Iterator[SuiteItem]:
    """Yield held-out documents, generated items and items of lm-eval tasks of both suites."""
    generated = generate_tasks(experiment.suites, stores)
    for _, member in experiment.suites.members:
        if member.held_out:
            for text in stores[member.held_out].sample_held_out(member.items):
                document_id = hashlib.sha256(text.encode()).hexdigest()[:16]
                yield SuiteItem(member.name, document_id, text)
        elif member.source and generated:
            yield from _generated_items(generated / f"{member.name}.jsonl", member)
        else:
            from sweepcp.scoring.lm_eval_tasks import task_item_texts

            for item_id, text in task_item_texts(member):
                yield SuiteItem(member.name, item_id, text)


def _generated_items(path: Path, member: MemberSpec) -> Iterator[SuiteItem]:
    """Yield the items of a `cloze` or `swap` member: the context with the right answer."""
    for number, line in enumerate(path.read_text("utf-8").splitlines()):
        item = json.loads(line)
        answer = item["choices"][item["gold"]]
        yield SuiteItem(member.name, str(number), item["context"] + answer)


def _measure_base_loss(
    experiment: Experiment,
    files: dict[str, ResolvedSource],
    checks: list[SourceCheck],
    *,
    device: Device,
    progress: Progress,
) -> None:
    """Add the bits per byte of each source's held-out text under the base to its check."""
    model = _available_base(experiment, files)
    if model is None:
        logger.info("no loss of the base: `sweepcp search` has not pretrained it yet")
        return
    import torch

    from sweepcp.models.loading import load_model
    from sweepcp.scoring.held_out import HeldOutText
    from sweepcp.training.device import open_device
    from sweepcp.training.process_group import ProcessGroup

    base, training = experiment.base, experiment.training
    torch.set_num_threads(min(experiment.budget.cpus_per_trial, usable_cores()))
    encoder = load_encoder(base)
    loaded = load_model(model, revision=base.revision, device=open_device(device))
    group = ProcessGroup(device=loaded.device)
    for number, check in enumerate(checks, start=1):
        name = check.source.name
        detail = f"scoring held-out text of {name}"
        progress.update("base", done=number, total=len(checks), detail=detail)
        if not check.store.meta["held_out"]["documents"]:
            continue
        member = MemberSpec(held_out=name, items=LOSS_DOCUMENTS, chars=LOSS_CHARS)
        # Not packed: the sample is small, and so no model need isolate packed documents.
        with located(base.tokenizer, "the tokenizer"):
            text = HeldOutText(check.store, member, encoder, seq_len=training.seq_len, packed=False)
        bits = text.bits(loaded, group, rows=LOSS_ROWS, precision=training.precision)
        check.base_bits = float(bits.sum() / text.bytes.sum())
    progress.finish("base")


def _available_base(experiment: Experiment, files: dict[str, ResolvedSource]) -> str | None:
    """Return the folder or hub id of the base, or None if it has yet to be pretrained."""
    base = experiment.base
    if base.pretrain is None:
        return str(base.path or base.hub)
    fingerprints = {
        source.name: source_fingerprint(source, files[source.name]) for source in experiment.sources
    }
    folder = pretrained_path(base, fingerprints)
    return str(folder) if (folder / "config.json").exists() else None
