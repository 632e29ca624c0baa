"""The launch bundle: everything that the full run needs, resolved, hashed and with its lineage.

| file             | content                                                             |
|------------------|---------------------------------------------------------------------|
| `bundle.json`    | recipe, model, corpora, suites, target, lineage and assumptions     |
| `ds_config.json` | DeepSpeed's configuration, every number resolved                    |
| `plan.jsonl`     | LR and tokens by source that the run's `metrics.jsonl` must show    |
| `proxy.jsonl`    | the steps of the promoted trial, for comparison                     |
| `manifest.json`  | SHA-256 of the files above                                          |
| `run/`           | what `sweepcp train` writes; not part of the bundle                 |
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sweepcp.config.model_dimensions import ModelDimensions
from sweepcp.config.recipe import Recipe
from sweepcp.config.suites import Suites
from sweepcp.config.target import Target
from sweepcp.config.types import Role
from sweepcp.data.stream import tokens_by_source
from sweepcp.errors import InvalidInput, located
from sweepcp.runs.trial import StepRecord
from sweepcp.training.deepspeed_config import divides_batch, zero_config
from sweepcp.util.files import file_sha256, new_folder, write_json, write_text
from sweepcp.util.json_values import json_differences
from sweepcp.util.records import (
    Record,
    check_file,
    read_json_object,
    read_record,
    read_record_lines,
)

FORMAT = 2
REQUIRED_FILES = ("bundle.json", "plan.jsonl")
FILES = (*REQUIRED_FILES, "ds_config.json", "proxy.jsonl")
MAX_PLAN_LINES = 1000
"""A longer run has this many lines in its plan, at steps that are evenly spread."""
RESTORE = "promote again, or restore the file from a copy"


Interval = tuple[float, float]
"""Lowest and highest value of an estimate."""


class Model(Record):
    """The model that is trained."""

    path: str | None
    """Its folder; None for a hub model."""
    hub: str | None
    """A model hub's id."""
    revision: str | None
    """The commit of a hub model."""
    max_lr: float
    """The max LR of its own pretraining."""
    shape: ModelDimensions
    """What decides its size and cost."""
    parameters: int
    """Number of parameters; tied embeddings count once."""
    fingerprint: str | None
    """Hash of the content of weights, configuration and tokenizer; None on the hub."""


class CorpusPlan(Record):
    """A source of the mixture at the target's scale."""

    name: str
    """Name of the source."""
    role: Role
    """Its role: `domain` or `general`."""
    language: str
    """Its language."""
    store: str | None
    """None for a planned store."""
    store_id: str | None
    """SHA-256 of the store's store.json, which states those of its files."""
    tokens: int
    """Training tokens of the store."""
    read: int
    """Tokens that the run reads of the source, to within one sequence."""
    epochs: float
    """How often the run reads it."""
    max_epochs: float
    """The limit that the target states."""


class ProxyResult(Record):
    """The size and the scores of the promoted trial, for comparison with the full run."""

    parameters: int
    """Number of parameters of the proxy."""
    tokens: int
    """Training tokens of the trial."""
    batch_tokens: int
    """Tokens per optimizer step of the trial."""
    seq_len: int
    """Tokens per sequence of the trial."""
    domain: float
    """Like the scores below, in % on the reporting half."""
    domain_se: float
    """Standard error of `domain`."""
    general: float
    """Relative change on the general suite."""
    general_se: float
    """Standard error of `general`."""
    epochs: dict[str, float]
    """Source → epochs of the trial."""
    held_out: dict[str, float]
    """Suite member → its change in % on the reporting half."""


class Lineage(Record):
    """Where the recipe comes from: a trial of a run, or a publication."""

    run: str | None
    """The run folder."""
    experiment: str | None
    """Name of its experiment."""
    trial: str | None
    """Id of the promoted trial."""
    trial_recipe: str | None
    """The id of the recipe before it was translated."""
    chosen_by: str
    """The rule or the option that chose it."""
    published: str | None
    """The file of a published recipe."""


class Memory(Record):
    """Bytes per GPU under ZeRO-3 by use. Model states are exact, the rest is an estimate."""

    weights: int
    """The rank's shard of the weights, and that of their copy in hierarchical partitioning."""
    master: int
    """Its shard of the fp32 master weights."""
    gradients: int
    """Its shard of the gradients."""
    optimizer: int
    """Its shard of AdamW's moments."""
    gathered: int
    """The largest module, not sharded, with its gradients."""
    activations: int
    """What the backward pass keeps of the forward pass, and its own largest tensors."""
    masks: int = 0
    """Masks of the attention."""
    logits: int
    """Logits and their gradients."""
    host: int
    """Bytes per node in host memory, of states that are offloaded."""

    @property
    def total(self) -> int:
        """Bytes on the GPU."""
        states = self.weights + self.master + self.gradients + self.optimizer
        return states + self.gathered + self.activations + self.masks + self.logits


class Expense(Record):
    """Time and cost, from the assumed utilisation to the overrun of published runs.

    None where the target does not state the inputs.
    """

    flops: float
    """Floating-point operations of the run."""
    mfu: float
    """The utilisation that is assumed."""
    hours: Interval | None
    """Wall-clock time."""
    device_hours: Interval | None
    """Hours times devices."""
    usd: Interval | None
    """Device hours times their price."""


class Bundle(Record):
    """The content of `bundle.json`."""

    format: int
    """Version of the format."""
    name: str
    """Of the target."""
    recipe: Recipe
    """The recipe, translated to the target."""
    recipe_id: str
    """Hash of the translated recipe."""
    model: Model
    """The model that is trained."""
    corpora: tuple[CorpusPlan, ...]
    """The sources of the mixture."""
    suites: Suites
    """What the trained model is scored on."""
    tasks: dict[str, str]
    """Suite member → hash of its task files, of the members that have a `path`."""
    watched: Suites
    """Held-out text of every source, scored during the run."""
    languages: dict[str, str]
    """Source → language."""
    target: Target
    """The target file, with every default."""
    lineage: Lineage
    """Where the recipe comes from."""
    proxy: ProxyResult | None
    """None for a published recipe."""
    memory: Memory
    """Estimate of the memory."""
    expense: Expense
    """Estimate of time and cost."""
    assumptions: tuple[str, ...]
    """What was assumed in the translation, in words."""
    versions: dict[str, str]
    """Versions of Python and of the packages with which it was promoted."""
    commit: str | None
    """Of the working directory of `sweepcp promote`, if that is a git work tree; ends in -dirty if
    there are uncommitted changes."""
    made: str
    """UTC, ISO 8601."""


class Manifest(Record):
    """`manifest.json`."""

    format: int
    """Version of the format."""
    files: dict[str, str]
    """File → SHA-256."""


R = TypeVar("R", Bundle, Manifest)


@dataclass(frozen=True)
class LoadedBundle:
    """A bundle that was read and verified."""

    path: Path
    id: str
    """SHA-256 of its manifest; runs and checkpoints record which bundle they belong to."""
    bundle: Bundle
    ds_config: dict[str, Any] | None
    """For the target's devices; None if only the replicas of its parallelism divide the batch."""
    proxy_losses: tuple[float, ...]
    """Of the promoted trial, step by step; empty for a published recipe."""


def write_bundle(bundle: Bundle, out: Path, *, proxy_steps: list[dict[str, Any]]) -> None:
    """Write a bundle into a new folder, completely or not at all.

    Args:
        bundle: The content of bundle.json, from which the other files are derived.
        out: The folder to write.
        proxy_steps: The metrics of the promoted trial; none for a published recipe.
    """
    world_size = bundle.target.hardware.world_size
    plan = planned_steps(bundle.recipe, bundle.model.max_lr)
    with new_folder(out) as work:
        write_json(work / "bundle.json", bundle.model_dump(mode="json"))
        if divides_batch(bundle.recipe, bundle.target, world_size=world_size):
            ds_config = zero_config(bundle.recipe, bundle.target, world_size=world_size)
            write_json(work / "ds_config.json", ds_config)
        write_text(work / "plan.jsonl", "".join(json.dumps(step) + "\n" for step in plan))
        if proxy_steps:
            lines = [json.dumps(step) + "\n" for step in proxy_steps]
            write_text(work / "proxy.jsonl", "".join(lines))
        write_manifest(work)


def planned_steps(recipe: Recipe, max_lr: float) -> list[dict[str, Any]]:
    """Return the LR of steps, and the tokens of each source that have been read by then.

    Every step is listed, or `MAX_PLAN_LINES` of them, the first and the last included.
    """
    count = min(recipe.steps, MAX_PLAN_LINES)
    # A set, because rounding may give a step twice.
    steps = {round(1 + i * (recipe.steps - 1) / max(1, count - 1)) for i in range(count)}
    return [
        {
            "step": step,
            "lr": recipe.lr(step, max_lr=max_lr),
            "tokens": tokens_by_source(recipe, step),
        }
        for step in sorted(steps)
    ]


def write_manifest(folder: Path) -> None:
    """Write the hashes of a bundle's files. Written last: without it a folder is not a bundle."""
    hashes = {name: file_sha256(folder / name) for name in FILES if (folder / name).exists()}
    write_json(folder / "manifest.json", {"format": FORMAT, "files": hashes})


def load_bundle(folder: Path) -> LoadedBundle:
    """Read a bundle and verify the hashes of its files.

    Raises:
        InvalidInput: The folder is not a bundle, a file is missing or was changed, or the bundle
            was written by an incompatible version of sweepcp.
    """
    hashes = _read_manifest(folder / "manifest.json")
    for name, expected in hashes.items():
        _verify_file(folder, name, expected=expected)
    bundle = _read_versioned(Bundle, folder / "bundle.json", fix=RESTORE)
    ds_config = None
    if "ds_config.json" in hashes:
        ds_config = read_json_object(folder / "ds_config.json", fix=RESTORE)
        with located(folder / "ds_config.json"):
            _check_zero_config(ds_config, bundle)
    steps: list[StepRecord] = []
    if "proxy.jsonl" in hashes:
        steps = read_record_lines(StepRecord, folder / "proxy.jsonl", fix=RESTORE)
    return LoadedBundle(
        path=folder,
        id=file_sha256(folder / "manifest.json"),
        bundle=bundle,
        ds_config=ds_config,
        proxy_losses=tuple(step.loss for step in steps),
    )


def _check_zero_config(ds_config: dict[str, Any], bundle: Bundle) -> None:
    """Check that DeepSpeed's configuration is the one that follows from recipe and target.

    DeepSpeed imports modules that a configuration names. The target's own `deepspeed` keys, which
    are among those of `expected`, are limited to `DeepSpeedSettings`.
    """
    world_size = bundle.target.hardware.world_size
    expected = zero_config(bundle.recipe, bundle.target, world_size=world_size)
    if differences := json_differences(before=expected, after=ds_config):
        raise InvalidInput(
            key="the configuration",
            found="; ".join(differences),
            rule="what follows from the recipe and the target of bundle.json",
            fix=RESTORE,
        )


def _read_manifest(path: Path) -> dict[str, str]:
    """Return the hash of each file that a manifest lists."""
    manifest = _read_versioned(
        Manifest, path, fix="name a folder that `sweepcp promote --out` wrote"
    )
    if not set(REQUIRED_FILES) <= set(manifest.files):
        raise InvalidInput(
            file=path,
            key="files",
            found=manifest.files,
            rule=f"the hashes of {', '.join(REQUIRED_FILES)}",
            fix=RESTORE,
        )
    return manifest.files


def _verify_file(folder: Path, name: str, *, expected: str) -> None:
    """Raise `InvalidInput` unless a file of the manifest has the expected SHA-256."""
    path = folder / name
    if name not in FILES:
        raise InvalidInput(
            file=folder / "manifest.json",
            key="files",
            found=name,
            rule=f"files of the bundle itself: {', '.join(FILES)}",
            fix="promote again; do not edit a bundle",
        )
    check_file(path, fix=RESTORE)
    actual = file_sha256(path)
    if actual != expected:
        raise InvalidInput(
            file=path,
            key="the content",
            found=f"{actual[:16]}…",
            rule=f"SHA-256 {expected[:16]}…, as in manifest.json; a bundle is not edited",
            fix=RESTORE,
        )


def _read_versioned(record_type: type[R], path: Path, *, fix: str) -> R:
    """Read a record whose `format` is checked before all else."""
    version = read_json_object(path, fix=fix).get("format")
    if version != FORMAT:
        raise InvalidInput(
            file=path,
            key="format",
            found=version,
            rule=f"{FORMAT}, the format that this version of sweepcp reads",
            fix="install the version of sweepcp that wrote it, or promote again with this one",
        )
    return read_record(record_type, path, fix=RESTORE)
