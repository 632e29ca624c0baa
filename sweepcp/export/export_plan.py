"""Input of an export, and the plan that a trainer module makes from it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweepcp.config.site import Site
from sweepcp.errors import InvalidInput
from sweepcp.models.files import read_model_json
from sweepcp.models.randomness import format_settings, random_settings
from sweepcp.promote.bundle import Bundle, LoadedBundle

PLANNED_STORES = "/planned"
"""Parent folder written for corpora without a token store: they can be exported, not trained on."""


class ShellVariable(str):
    """Command argument that the shell expands: written in double quotes, not escaped."""


@dataclass(frozen=True)
class ExportInput:
    """Bundle, site and output folder that every trainer and launcher module writes from."""

    loaded: LoadedBundle
    site: Site
    out: Path
    """Absolute path of the exported files, the same on all nodes."""

    @property
    def bundle(self) -> Bundle:
        """Content of `bundle.json`."""
        return self.loaded.bundle

    @property
    def run_folder(self) -> str:
        """Folder of the run, beside the exported files."""
        return str(self.out / "run")

    @property
    def checkpoint_folder(self) -> str:
        """Output folder of trainers other than `sweepcp train`: the target's, or `run_folder`."""
        return self.bundle.target.checkpoints.folder or self.run_folder

    @property
    def job_name(self) -> str:
        """Name of the job: the site's, or the bundle's."""
        return self.site.job or self.bundle.name

    @property
    def model(self) -> str:
        """Model folder, or hub id."""
        return self.bundle.model.path or str(self.bundle.model.hub)

    @property
    def model_folder(self) -> str:
        """Model folder; `download_commands` fills it for a hub model."""
        return self.model if self.bundle.model.hub is None else f"{self.out}/model"

    @property
    def random_settings(self) -> dict[str, float]:
        """Dropouts and router jitters of the model's config.json; {} if it is not on this machine.

        Trials and the full run set them to 0.
        """
        model = self.bundle.model
        if model.hub is None:
            file: Any = Path(str(model.path)) / "config.json"
        else:
            from huggingface_hub import try_to_load_from_cache

            file = try_to_load_from_cache(model.hub, "config.json", revision=model.revision)
        if not isinstance(file, str | Path) or not Path(file).is_file():
            return {}
        return random_settings(read_model_json(Path(file)))

    @property
    def max_lr(self) -> float:
        """Max LR of the run: the recipe's LR fraction of the model's own max LR."""
        return round_to_12_digits(self.bundle.recipe.lr_fraction * self.bundle.model.max_lr)

    @property
    def final_factor(self) -> float:
        """LR of the last step as a fraction of `max_lr`, for a schedule that falls."""
        recipe = self.bundle.recipe
        factor = recipe.final_factor(max_lr=self.bundle.model.max_lr)
        return factor if recipe.min_lr is None else round_to_12_digits(factor)

    @property
    def final_lr(self) -> float:
        """LR of the last step, for a schedule that falls."""
        recipe = self.bundle.recipe
        return recipe.min_lr or round_to_12_digits(self.max_lr * self.final_factor)

    @property
    def on_gpu(self) -> bool:
        """Whether the target trains on GPUs."""
        return self.bundle.target.hardware.device == "cuda"

    @property
    def store_folders(self) -> dict[str, str]:
        """Source → folder of its token store."""
        return {c.name: c.store or f"{PLANNED_STORES}/{c.name}" for c in self.bundle.corpora}

    @property
    def sources_without_store(self) -> list[str]:
        """Names of the sources whose token store has not been built."""
        return [corpus.name for corpus in self.bundle.corpora if corpus.store is None]


@dataclass(frozen=True)
class Difference:
    """A point in which a trainer deviates from the recipe."""

    fact: str
    """Key of `sweepcp.export.recipe_facts.FACTS`."""
    behaviour: str
    """What the trainer does instead."""


@dataclass(frozen=True)
class ExportPlan:
    """A trainer's share of an export."""

    files: dict[str, str]
    """File name → text, without its header."""
    command: tuple[str, ...]
    """Arguments after `python` or `torchrun`, the same for every process."""
    settings: dict[str, Any]
    """Key → value of everything written; the trainer must have parsed each of them."""
    complete_checkpoint: str
    """Path, with a `*` for any step, of the file that is written when a checkpoint is complete."""
    differences: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()
    """What the trainer lacks compared with `sweepcp train`, and what it needs."""
    prepare: tuple[tuple[str, ...], ...] = ()
    """Commands to run once, before the first start."""
    env: dict[str, str] = field(default_factory=dict)
    saves_on_term: bool = False
    """Whether the trainer saves a checkpoint when it receives SIGTERM."""

    @property
    def starts_sweepcp(self) -> bool:
        """Whether every process is `sweepcp train`, whose exit statuses are known."""
        return self.command[:3] == ("-m", "sweepcp", "train")


def download_commands(export_input: ExportInput) -> tuple[tuple[str, ...], ...]:
    """Return the command that downloads a hub model to `model_folder`; none for a local model."""
    model = export_input.bundle.model
    if model.hub is None:
        return ()
    command = [export_input.site.python, "-m", "huggingface_hub.cli.hf", "download", model.hub]
    if model.revision:
        command += ["--revision", model.revision]
    return ((*command, "--local-dir", export_input.model_folder),)


def dropout_notes(export_input: ExportInput) -> tuple[str, ...]:
    """Return the note that the model's config.json has dropouts with which nothing is trained."""
    settings = export_input.random_settings
    if not settings:
        return ()
    return (f"config.json has {format_settings(settings)}: trained with 0, as the trials were.",)


def dropout_differences(settings: dict[str, float]) -> tuple[Difference, ...]:
    """Return the difference of a trainer that keeps these settings of config.json, if any."""
    if not settings:
        return ()
    return (Difference("dropout", f"{format_settings(settings)}, as config.json states"),)


def monitoring_notes(export_input: ExportInput) -> tuple[str, ...]:
    """Return notes on the target's monitoring that only `sweepcp train` does."""
    notes = [
        "Held-out loss is not monitored during the run. Score the final model with `sweepcp score`."
    ]
    if export_input.bundle.target.spikes is not None:
        notes.append("Loss spikes do not trigger a rollback.")
    return tuple(notes)


def tracking_differences(
    export_input: ExportInput, supported: Iterable[str]
) -> tuple[Difference, ...]:
    """Return the difference that a trainer does not support some of the target's trackers."""
    unsupported = sorted(set(export_input.bundle.target.tracking) - set(supported))
    if not unsupported:
        return ()
    return (Difference("tracking", f"does not report to {', '.join(unsupported)}"),)


def zero_config_of(export_input: ExportInput) -> dict[str, Any]:
    """Return the bundle's DeepSpeed configuration, in which every device is data-parallel.

    Raises:
        InvalidInput: All devices together do not divide the batch.
    """
    if export_input.loaded.ds_config is None:
        recipe, target = export_input.bundle.recipe, export_input.bundle.target
        raise InvalidInput(
            key="target.batch_tokens",
            found=f"{recipe.sequences} sequences for {target.hardware.world_size} devices",
            rule="this trainer has no tensor and pipeline parallelism: all devices × micro batches "
            f"of {target.compute.micro_batch} sequences divide the batch",
            fix="export for megatron-lm or torchtitan, or promote to another batch",
        )
    return export_input.loaded.ds_config


def accumulation_steps(export_input: ExportInput) -> int:
    """Return micro batches per step and device, where every device is data-parallel."""
    return int(zero_config_of(export_input)["gradient_accumulation_steps"])


def python_literal(value: Any) -> str:
    """Return a value as Python source, with strings in double quotes."""
    # Escapes of JSON would be two characters for one above U+FFFF.
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def round_to_12_digits(number: float) -> float:
    """Round to 12 significant digits, so that 0.1 × 1.5e-4 is 1.5e-05 rather than 1.49…9e-05."""
    return float(f"{number:.12g}")
