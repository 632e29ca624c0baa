"""Cached scores of base models: a search does not score a base that an earlier one has scored."""

import logging
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweepcp.errors import InvalidInput
from sweepcp.runs.run_folder import RunIdentity
from sweepcp.runs.trial import BaseRecord, package_versions
from sweepcp.search.devices import TrialSlots
from sweepcp.search.worker_io import WorkerSpec
from sweepcp.util.files import cache_dir, write_text
from sweepcp.util.json_values import digest
from sweepcp.util.records import Record, read_record

logger = logging.getLogger(__name__)
CPU_INFO = Path("/proc/cpuinfo")


class CachedBaseScores(Record):
    """`base_scores/<digest>.json` in the cache: scores, and all that they depend on."""

    key: dict[str, Any]
    """What the scores depend on, as far as the driver knows it before workers start."""
    base: BaseRecord
    """The scores. Its `environment` is what workers reported: it must be theirs, too."""


@dataclass(frozen=True)
class BaseScoreCache:
    """The entry of the cache for the base and the suites of a search."""

    spec: WorkerSpec
    key: dict[str, Any]

    @property
    def path(self) -> Path:
        """The file of the entry."""
        return cache_dir() / "base_scores" / f"{digest(self.key)}.json"

    def read(self) -> BaseRecord | None:
        """Return the base's scores, or None if there are none; an unusable entry is reported.

        What the scores do not depend on is that of this search: the path of the base, its max LR
        and the weights of the members.
        """
        try:
            if not self.path.exists():
                return None
            cached = read_record(CachedBaseScores, self.path, fix="remove the file")
        except (InvalidInput, OSError) as error:
            logger.warning("the base is scored again: %s", " ".join(str(error).split()))
            return None
        if cached.key != self.key:
            logger.warning("the base is scored again: %s is of other inputs", self.path)
            return None
        weights = {member.name: member.weight for _, member in self.spec.scoring.suites.members}
        items = tuple(
            scores.model_copy(update={"weight": weights[scores.name]})
            for scores in cached.base.items
        )
        names = {"model": self.spec.model_name, "max_lr": self.spec.base.max_lr}
        return cached.base.model_copy(update={**names, "items": items})

    def write(self, base: BaseRecord) -> None:
        """Keep the scores for later searches. A cache that cannot be written is reported."""
        record = CachedBaseScores(key=self.key, base=base)
        try:
            write_text(self.path, record.model_dump_json() + "\n")
        except OSError as error:
            logger.warning("the base's scores are not cached: %s", error)


def base_score_cache(
    spec: WorkerSpec, identity: RunIdentity, slots: TrialSlots, *, on_cluster: bool
) -> BaseScoreCache:
    """Return the entry of the cache for what workers score.

    What only a worker can tell, such as its implementation of attention and its prompts, is in the
    environment of the scores, which the ledger compares with that of its workers.

    Args:
        spec: What workers score, and on what.
        identity: Hashes of the base, the stores and the task files.
        slots: The GPUs.
        on_cluster: Whether workers run on other machines, whose CPUs are not known here.
    """
    scoring = spec.scoring
    members = scoring.suites.members
    sources = sorted({member.source for _, member in members if member.source})
    cpu = None if on_cluster else cpu_model()
    return BaseScoreCache(
        spec,
        {
            "base": identity.base,
            "members": [
                [role, member.model_dump(mode="json", exclude={"weight", "path"})]
                for role, member in members
            ],
            "tasks": identity.tasks,
            "stores": {source: identity.stores[source] for source in sources},
            "languages": {source: scoring.languages[source] for source in sources},
            "seq_len": scoring.seq_len,
            "packed": scoring.packed,
            "scoring": scoring.scoring,
            "precision": scoring.precision,
            "attention": spec.attention,
            "device": spec.device,
            "threads": spec.threads,
            "hardware": [cpu, *sorted({gpu.name for gpu in slots.gpus})],
            "versions": package_versions(),
        },
    )


def cpu_model() -> str:
    """Return what the last bits of scores depend on: this CPU's model and its instructions."""
    if not CPU_INFO.is_file():
        return platform.machine()
    first, _, _ = CPU_INFO.read_text(encoding="utf-8", errors="replace").partition("\n\n")
    facts = dict(line.replace("\t", "").split(":", 1) for line in first.splitlines() if ":" in line)
    name = facts.get("model name", platform.machine()).strip()
    decisive = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features")
    return f"{name}, {digest([facts.get(key) for key in decisive])}"
