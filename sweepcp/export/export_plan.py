"""What an export is made from, and what a trainer's part of it is."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweepcp.config.site import Site
from sweepcp.promote.bundle import Bundle, LoadedBundle

PLANNED = "/planned"
"""Stands for the store of a planned corpus: it can be exported and checked, not trained on."""


class ShellVariable(str):
    """A word of a command with a variable in it, which stands in double quotes."""


@dataclass(frozen=True)
class ExportInput:
    """What every module here writes from."""

    opened: LoadedBundle
    site: Site
    out: Path
    """Where the files will stand; absolute, the same on all nodes."""
    where: Path
    """The site file, or the bundle where there is none: named in errors."""

    @property
    def bundle(self) -> Bundle:
        return self.opened.bundle

    @property
    def run(self) -> str:
        """The folder of the run, beside the files."""
        return str(self.out / "run")

    @property
    def saves(self) -> str:
        """Where other trainers than `sweepcp train` write: the target's folder for checkpoints, if it names one."""
        return self.bundle.target.checkpoints.folder or self.run

    @property
    def job(self) -> str:
        return self.site.job or self.bundle.name

    @property
    def model(self) -> str:
        """A folder, or the id on a hub."""
        return self.bundle.model.path or str(self.bundle.model.hub)

    @property
    def model_folder(self) -> str:
        """A folder, to which `fetch_model` brings a model of a hub."""
        return self.model if self.bundle.model.hub is None else f"{self.out}/model"

    @property
    def peak(self) -> float:
        """The max LR of the run."""
        return round_to_12_digits(self.bundle.recipe.lr_fraction * self.bundle.model.max_lr)

    @property
    def on_gpu(self) -> bool:
        return self.bundle.target.hardware.device == "cuda"

    @property
    def stores(self) -> dict[str, str]:
        """Source → folder of its token store."""
        return {c.name: c.store or f"{PLANNED}/{c.name}" for c in self.bundle.corpora}


@dataclass(frozen=True)
class Difference:
    """What a trainer does otherwise than the recipe says."""

    fact: str
    """As in `sweepcp.export.facts`."""
    there: str
    """What it does instead, and how much that is."""


@dataclass(frozen=True)
class ExportPlan:
    """A trainer's part of an export."""

    files: dict[str, str]
    """Name → text, without its head."""
    command: tuple[str, ...]
    """What every process runs, after `python` or `torchrun`."""
    settings: dict[str, Any]
    """Key → value, everything that was written and that the peer must have parsed."""
    differences: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()
    """What else is to be known: what it does not do that `sweepcp train` does, what it needs."""
    prepare: tuple[tuple[str, ...], ...] = ()
    """Commands to run once, before the first start."""
    env: dict[str, str] = field(default_factory=dict)
    saves_on_term: bool = False
    """Whether it saves when it is told to end; if not, what was saved last is what is left."""


def fetch_model(source: ExportInput) -> tuple[tuple[str, ...], ...]:
    """The command that brings the model to `model_folder`, none where it is there."""
    model = source.bundle.model
    if model.hub is None:
        return ()
    revision = ("--revision", model.revision) if model.revision else ()
    download = (
        source.site.python,
        "-m",
        "huggingface_hub.cli.hf",
        "download",
        model.hub,
        *revision,
    )
    return ((*download, "--local-dir", source.model_folder),)


def unwatched_notes(source: ExportInput) -> tuple[str, ...]:
    """What the target asks for that only `sweepcp train` does."""
    notes = [
        "held-out text is not watched during the run: score the model after it, with `sweepcp score`"
    ]
    if source.bundle.target.spikes is not None:
        notes.append("it does not go back before a spike of the loss")
    return tuple(notes)


def tracking_differences(source: ExportInput, known: Iterable[str]) -> tuple[Difference, ...]:
    """That a trainer has no key for some of the trackers that the target names."""
    unknown = sorted(set(source.bundle.target.tracking) - set(known))
    return (
        (Difference("tracking", f"it does not report to {', '.join(unknown)}"),) if unknown else ()
    )


def python_literal(value: Any) -> str:
    """A value as Python source, text in double quotes."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


def round_to_12_digits(number: float) -> float:
    """To 12 digits: 0.1 of 1.5e-4 is written as 1.5e-05, and not as 1.4999999999999999e-05."""
    return float(f"{number:.12g}")


def accumulation_steps(source: ExportInput) -> int:
    """Micro batches of one step on one data-parallel process, without tensor and pipeline parallelism."""
    target = source.bundle.target
    return source.bundle.recipe.sequences // (target.hardware.world * target.compute.micro_batch)
