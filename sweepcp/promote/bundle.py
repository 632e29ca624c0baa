"""The launch bundle: everything that the full run needs, resolved, hashed and with its lineage.

bundle.json      what is run: recipe, model, corpora, suites, target; where it comes from, and what it assumes
ds_config.json   DeepSpeed's configuration, every number resolved
plan.jsonl       the LR of steps, and the tokens of each source up to them: what metrics.jsonl of the run must show
proxy.jsonl      the steps of the trial that was promoted, for comparison
manifest.json    SHA-256 of the files above
run/             what `sweepcp train` writes; not part of the bundle
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sweepcp.config.model_dimensions import ModelDimensions
from sweepcp.config.recipe import Recipe
from sweepcp.config.suites import Suites
from sweepcp.config.target import Target
from sweepcp.config.types import Role
from sweepcp.errors import InvalidInput
from sweepcp.util.files import file_sha256, write_json
from sweepcp.util.records import Record

FORMAT = 1
CONTENT = ("bundle.json", "ds_config.json", "plan.jsonl", "proxy.jsonl")


class Model(Record):
    """The model that is trained."""

    path: str | None
    hub: str | None
    revision: str | None
    max_lr: float
    shape: ModelDimensions
    parameters: int
    fingerprint: str | None
    """Of a folder: over configuration, tokenizer, and the headers and sizes of the weights."""


class CorpusPlan(Record):
    """A source of the mixture at the target's scale."""

    name: str
    role: Role
    language: str
    store: str | None
    """None for a planned store."""
    store_id: str | None
    """SHA-256 of the store's store.json."""
    tokens: int
    """Training tokens there."""
    read: int
    """Tokens that the run reads of it, within one sequence."""
    epochs: float
    max_epochs: float


class ProxyResult(Record):
    """The trial that was promoted, as far as the full run is compared with it."""

    parameters: int
    tokens: int
    batch_tokens: int
    seq_len: int
    domain: float
    domain_se: float
    general: float
    general_se: float
    """In % on the reporting half."""
    epochs: dict[str, float]
    """Source → how often the trial read it."""
    held_out: dict[str, float]
    """Member → its change in % on the reporting half."""


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
    """Bytes on one GPU, by what they are for. An estimate but for the model states."""

    weights: int
    master: int
    gradients: int
    optimizer: int
    gathered: int
    """The largest module, whole, with its gradients."""
    activations: int
    logits: int
    host: int
    """Bytes in a node's memory of what is offloaded there."""

    @property
    def total(self) -> int:
        """On the GPU."""
        parts = (self.weights, self.master, self.gradients, self.optimizer, self.gathered)
        return sum(parts) + self.activations + self.logits


class Expense(Record):
    """Time and money at a stated utilisation."""

    flops: float
    mfu: float
    hours: float | None
    device_hours: float | None
    usd: float | None


class Bundle(Record):
    """`bundle.json`."""

    format: int
    name: str
    recipe: Recipe
    recipe_id: str
    model: Model
    corpora: tuple[CorpusPlan, ...]
    suites: Suites
    watched: Suites
    """Held-out text of every source, read during the run."""
    languages: dict[str, str]
    target: Target
    lineage: Lineage
    proxy: ProxyResult | None
    memory: Memory
    expense: Expense
    assumptions: tuple[str, ...]
    versions: dict[str, str]
    commit: str | None
    """Of the folder in which `sweepcp promote` was called, if that is a git work tree; -dirty with changes."""
    made: str
    """UTC, ISO 8601."""


@dataclass(frozen=True)
class LoadedBundle:
    """A bundle that was read and checked."""

    path: Path
    id: str
    """SHA-256 of its manifest: a run, and its checkpoints, belong to one bundle."""
    bundle: Bundle
    ds_config: dict[str, Any]
    proxy_losses: tuple[float, ...]
    """Of the promoted trial, step by step; empty for a published recipe."""


def write_manifest(folder: Path) -> None:
    """Hash the bundle's files; written last, so a bundle without a manifest is none."""
    files = {name: file_sha256(folder / name) for name in CONTENT if (folder / name).exists()}
    write_json(folder / "manifest.json", {"format": FORMAT, "files": files})


def load_bundle(folder: Path) -> LoadedBundle:
    """Read a bundle. Raises `BadInput` when a byte of it was changed, or it is of a newer version of sweepcp."""
    again = "promote again, or restore the file from a copy"
    manifest = _read_json(
        folder / "manifest.json", "name a folder that `sweepcp promote --out` wrote"
    )
    _check_format(folder / "manifest.json", manifest)
    files = manifest.get("files")
    if not isinstance(files, dict) or not set(CONTENT[:3]) <= set(files):
        rule = f"the hashes of {', '.join(CONTENT[:3])}"
        raise InvalidInput(
            file=folder / "manifest.json", key="files", found=files, rule=rule, fix=again
        )
    for name, expected in files.items():
        inside = (folder / name).resolve()
        if inside.parent != folder.resolve() or name not in CONTENT:
            rule = f"files of the bundle itself: {', '.join(CONTENT)}"
            raise InvalidInput(
                file=folder / "manifest.json",
                key="files",
                found=name,
                rule=rule,
                fix="promote again; do not edit a bundle",
            )
        if not inside.is_file():
            raise InvalidInput(
                file=inside,
                key="the file",
                found="missing",
                rule="every file that manifest.json names",
                fix=again,
            )
        if (found := file_sha256(inside)) != expected:
            rule = f"SHA-256 {expected[:16]}…, as manifest.json says; a bundle is not edited"
            raise InvalidInput(
                file=inside, key="the content", found=f"{found[:16]}…", rule=rule, fix=again
            )
    content = _read_json(folder / "bundle.json", again)
    _check_format(folder / "bundle.json", content)
    try:
        bundle = Bundle.model_validate_json((folder / "bundle.json").read_bytes())
    except ValidationError as error:
        what = " ".join(str(error).splitlines()[:3])
        raise InvalidInput(
            file=folder / "bundle.json",
            key="the bundle",
            found=what,
            rule="one of this version of sweepcp",
            fix=again,
        ) from None
    lines = (
        (folder / "proxy.jsonl").read_text(encoding="utf-8").splitlines()
        if "proxy.jsonl" in files
        else []
    )
    losses = tuple(json.loads(line)["loss"] for line in lines)
    ds_config = _read_json(folder / "ds_config.json", again)
    return LoadedBundle(folder, file_sha256(folder / "manifest.json"), bundle, ds_config, losses)


def _check_format(path: Path, content: dict[str, Any]) -> None:
    found = content.get("format")
    if found != FORMAT:
        fix = "install that version of sweepcp, or promote again with this one"
        raise InvalidInput(
            file=path,
            key="format",
            found=found,
            rule=f"{FORMAT}, which this version of sweepcp reads",
            fix=fix,
        )


def _reject_constant(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _read_json(path: Path, fix: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_reject_constant)
    except OSError as error:
        raise InvalidInput(
            file=path, key="the file", found=error.strerror, rule="a bundle holds it", fix=fix
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
