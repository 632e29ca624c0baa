"""What a worker needs to know of an experiment, without the libraries that it will need."""

from dataclasses import dataclass
from pathlib import Path

from sweepcp.config.base_model import BaseSpec
from sweepcp.config.suites import Suites
from sweepcp.data.token_store import TokenStore


@dataclass(frozen=True)
class WorkerSpec:
    """Everything that trials share; paths must be readable from every node."""

    base: BaseSpec
    """As written, for the tokenizer and the max LR."""
    model: str
    """A folder, or a hub id with `base.revision`."""
    stores: tuple[TokenStore, ...]
    languages: dict[str, str]
    """Source → language."""
    suites: Suites
    made_tasks: Path | None
    """The folder of the lm-eval tasks made from held-out text."""
    seq_len: int
    micro_batch: int | None
    precision: str
    threads: int
