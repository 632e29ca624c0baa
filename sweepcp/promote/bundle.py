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
from typing import Any, NoReturn

from sweepcp.config.model_dimensions import ModelDimensions
from sweepcp.config.recipe import Recipe
from sweepcp.config.suites import Suites
from sweepcp.config.target import Target
from sweepcp.config.types import Role
from sweepcp.data.stream import tokens_by_source
from sweepcp.errors import InvalidInput, located
from sweepcp.training.deepspeed_config import divides_batch, zero_config
from sweepcp.util.files import file_sha256, new_folder, write_json, write_text
from sweepcp.util.records import Record, read_record

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
    hub: str | None
    revision: str | None
    max_lr: float
    shape: ModelDimensions
    parameters: int
    fingerprint: str | None
    """Hash of the content of weights, configuration and tokenizer; None on the hub."""


class CorpusPlan(Record):
    """A source of the mixture at the target's scale."""

    name: str
    role: Role
    language: str
    store: str | None
    """None for a planned store."""
    store_id: str | None
    """SHA-256 of the store's store.json, which states those of its files."""
    tokens: int
    """Training tokens of the store."""
    read: int
    """Tokens that the run reads of the source, to within one sequence."""
    epochs: float
    max_epochs: float


class ProxyResult(Record):
    """The size and the scores of the promoted trial, for comparison with the full run."""

    parameters: int
    tokens: int
    batch_tokens: int
    seq_len: int
    domain: float
    """Like the scores below, in % on the reporting half."""
    domain_se: float
    general: float
    general_se: float
    epochs: dict[str, float]
    """Source → epochs of the trial."""
    held_out: dict[str, float]
    """Suite member → its change in % on the reporting half."""


class Lineage(Record):
    """Where the recipe comes from: a trial of a run, or a publication."""

    run: str | None
    experiment: str | None
    trial: str | None
    trial_recipe: str | None
    """The id of the recipe before it was translated."""
    chosen_by: str
    published: str | None


class Memory(Record):
    """Bytes per GPU under ZeRO-3 by use. Model states are exact, the rest is an estimate."""

    weights: int
    master: int
    gradients: int
    optimizer: int
    gathered: int
    """The largest module, not sharded, with its gradients."""
    activations: int
    logits: int
    host: int
    """Bytes per node in host memory, of states that are offloaded."""

    @property
    def total(self) -> int:
        """Bytes on the GPU."""
        states = self.weights + self.master + self.gradients + self.optimizer
        return states + self.gathered + self.activations + self.logits


class Expense(Record):
    """Time and cost, from the assumed utilisation to the overrun of published runs.

    None where the target does not state the inputs.
    """

    flops: float
    mfu: float
    hours: Interval | None
    device_hours: Interval | None
    usd: Interval | None


class Bundle(Record):
    """The content of `bundle.json`."""

    format: int
    name: str
    recipe: Recipe
    recipe_id: str
    model: Model
    corpora: tuple[CorpusPlan, ...]
    suites: Suites
    tasks: dict[str, str]
    """Suite member → hash of its task files, of the members that have a `path`."""
    watched: Suites
    """Held-out text of every source, scored during the run."""
    languages: dict[str, str]
    """Source → language."""
    target: Target
    lineage: Lineage
    proxy: ProxyResult | None
    """None for a published recipe."""
    memory: Memory
    expense: Expense
    assumptions: tuple[str, ...]
    versions: dict[str, str]
    commit: str | None
    """Of the working directory of `sweepcp promote`, if that is a git work tree; ends in -dirty if
    there are uncommitted changes."""
    made: str
    """UTC, ISO 8601."""


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


def write_bundle(bundle: Bundle, out: Path, *, proxy_metrics: Path | None) -> None:
    """Write a bundle into a new folder, completely or not at all.

    Args:
        bundle: The content of bundle.json, from which the other files are derived.
        out: The folder to write.
        proxy_metrics: The metrics file of the promoted trial; None for a published recipe.
    """
    world_size = bundle.target.hardware.world_size
    plan = planned_steps(bundle.recipe, bundle.model.max_lr)
    with new_folder(out) as work:
        write_json(work / "bundle.json", bundle.model_dump(mode="json"))
        if divides_batch(bundle.recipe, bundle.target, world_size=world_size):
            ds_config = zero_config(bundle.recipe, bundle.target, world_size=world_size)
            write_json(work / "ds_config.json", ds_config)
        write_text(work / "plan.jsonl", "".join(json.dumps(step) + "\n" for step in plan))
        if proxy_metrics is not None:
            write_text(work / "proxy.jsonl", proxy_metrics.read_text(encoding="utf-8"))
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
    bundle = _read_bundle(folder / "bundle.json")
    ds_config = None
    if "ds_config.json" in hashes:
        ds_config = _read_json(folder / "ds_config.json", fix=RESTORE)
    losses: list[float] = []
    if "proxy.jsonl" in hashes:
        lines = (folder / "proxy.jsonl").read_text(encoding="utf-8").splitlines()
        losses = [json.loads(line)["loss"] for line in lines]
    return LoadedBundle(
        path=folder,
        id=file_sha256(folder / "manifest.json"),
        bundle=bundle,
        ds_config=ds_config,
        proxy_losses=tuple(losses),
    )


def _read_manifest(path: Path) -> dict[str, str]:
    """Return the hash of each file that a manifest lists."""
    manifest = _read_json(path, fix="name a folder that `sweepcp promote --out` wrote")
    with located(path):
        _check_format(manifest)
    hashes = manifest.get("files")
    if not isinstance(hashes, dict) or not set(REQUIRED_FILES) <= set(hashes):
        raise InvalidInput(
            file=path,
            key="files",
            found=hashes,
            rule=f"the hashes of {', '.join(REQUIRED_FILES)}",
            fix=RESTORE,
        )
    return hashes


def _verify_file(folder: Path, name: str, *, expected: str) -> None:
    """Raise `InvalidInput` unless a file of the manifest has the expected SHA-256."""
    path = (folder / name).resolve()
    if path.parent != folder.resolve() or name not in FILES:
        raise InvalidInput(
            file=folder / "manifest.json",
            key="files",
            found=name,
            rule=f"files of the bundle itself: {', '.join(FILES)}",
            fix="promote again; do not edit a bundle",
        )
    if not path.is_file():
        raise InvalidInput(
            file=path,
            key="the file",
            found="missing",
            rule="every file that manifest.json lists",
            fix=RESTORE,
        )
    actual = file_sha256(path)
    if actual != expected:
        raise InvalidInput(
            file=path,
            key="the content",
            found=f"{actual[:16]}…",
            rule=f"SHA-256 {expected[:16]}…, as in manifest.json; a bundle is not edited",
            fix=RESTORE,
        )


def _read_bundle(path: Path) -> Bundle:
    content = _read_json(path, fix=RESTORE)
    with located(path):
        _check_format(content)
    return read_record(Bundle, path, fix=RESTORE)


def _check_format(content: dict[str, Any]) -> None:
    version = content.get("format")
    if version != FORMAT:
        raise InvalidInput(
            key="format",
            found=version,
            rule=f"{FORMAT}, the format that this version of sweepcp reads",
            fix="install the version of sweepcp that wrote it, or promote again with this one",
        )


def _read_json(path: Path, *, fix: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_reject_constant)
    except OSError as error:
        raise InvalidInput(
            file=path, key="the file", found=error.strerror, rule="a file of a bundle", fix=fix
        ) from None
    except ValueError as error:
        raise InvalidInput(
            file=path, key="the file", found=str(error), rule="a JSON object", fix=fix
        ) from None
    if not isinstance(content, dict):
        raise InvalidInput(
            file=path, key="the file", found=type(content).__name__, rule="a JSON object", fix=fix
        )
    return content


def _reject_constant(text: str) -> NoReturn:
    """Refuse NaN and infinities, which Python's parser accepts and JSON does not have."""
    raise ValueError(f"{text} is not a JSON number")
