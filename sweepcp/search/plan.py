"""Plan a search: what it would run and cost, before anything is trained."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sweepcp.config.base_model import BaseSpec
from sweepcp.config.budget import PUBLISHED_OVERRUN, QUASI_RANDOM_TRIALS
from sweepcp.config.experiment import Experiment
from sweepcp.config.recipe import Recipe
from sweepcp.config.source import Source
from sweepcp.config.space import Range
from sweepcp.config.types import COMMIT
from sweepcp.corpora.repetition import EpochCount, count_epochs, epoch_warnings, first_recipe
from sweepcp.data.encoding import text_encoder
from sweepcp.data.source_files import ResolvedSource, cached_fingerprint, describe_left_out
from sweepcp.data.token_estimate import estimate_tokens
from sweepcp.data.token_store import TokenStore, store_path
from sweepcp.errors import located
from sweepcp.models.base import count_parameters, tokenizer_id
from sweepcp.models.files import COPY_AGAIN
from sweepcp.search.memory_plan import MemoryPlan, plan_memory
from sweepcp.util.records import read_text

BYTES_PER_TOKEN = 4.0
"""Assumption for subword tokenizers on English text; used for estimates only."""
MIN_STEPS = 20
"""Trials with fewer steps have hardly any schedule."""


@dataclass(frozen=True)
class Plan:
    """The answer of `sweepcp plan`."""

    experiment: Experiment
    first: Recipe
    """The recipe of trial 0; of a corner of the space where there is no anchor."""
    epochs: list[EpochCount]
    token_origins: dict[str, str]
    """How the training tokens of each source are known: `counted`, `planned` or `estimated`."""
    parameters: int | None
    memory: MemoryPlan | None
    """Of one trial; None if the base's size is unknown."""
    warnings: list[str]

    @property
    def trial_flops(self) -> float | None:
        """FLOPs to train one trial, without scoring; None if the base's size is unknown.

        6 · parameters · tokens (Kaplan et al. 2020, arXiv 2001.08361).
        """
        return 6.0 * self.parameters * self.experiment.budget.tokens if self.parameters else None

    @property
    def trial_hours(self) -> tuple[float, float] | None:
        """Hours to train one trial: at the stated speed, and with the overrun of published runs.

        None if the speed or the size of the base is unknown.
        """
        speed = self.experiment.budget.sustained_tflops
        if not self.trial_flops or not speed:
            return None
        hours = self.trial_flops / (speed * 1e12) / 3600
        return hours, hours * PUBLISHED_OVERRUN

    def lr_curve(self) -> list[tuple[int, float]]:
        """Return (step, LR) of the first recipe at its ends, its peak and the quarters between."""
        steps = self.first.steps
        peak = max(1, self.first.warmup_length)
        shown = {1, 2, peak, peak + 1, steps // 4, steps // 2, 3 * steps // 4, steps - 1, steps}
        max_lr = self.experiment.base.max_lr
        return [(n, self.first.lr(n, max_lr=max_lr)) for n in sorted(shown) if 1 <= n <= steps]


def make_plan(experiment: Experiment, files: dict[str, ResolvedSource]) -> Plan:
    """Count or estimate the tokens of each source, and derive the rest.

    Reads at most a sample of the corpora, and writes nothing.
    """
    tokens: dict[str, float] = {}
    origins: dict[str, str] = {}
    for source in experiment.sources:
        name = source.name
        tokens[name], origins[name] = _training_tokens(source, files[name], experiment.base)
    first = first_recipe(experiment, tokens)
    plan = Plan(
        experiment=experiment,
        first=first,
        epochs=count_epochs(experiment, tokens),
        token_origins=origins,
        parameters=count_parameters(experiment.base),
        memory=plan_memory(experiment, first),
        warnings=[],
    )
    for source in experiment.sources:
        notes = describe_left_out(files[source.name])
        plan.warnings.extend(f"{source.name}: {note}" for note in notes)
    plan.warnings.extend(_warnings(plan))
    return plan


def _training_tokens(source: Source, files: ResolvedSource, base: BaseSpec) -> tuple[float, str]:
    """Return the training tokens of a source, and how they are known."""
    if source.planned_tokens is not None:
        return float(source.planned_tokens), "planned"
    # Building a store caches the hashes of the source's files, and a plan reads no whole corpus.
    fingerprint = cached_fingerprint(source, files)
    if fingerprint is not None:
        path = store_path(fingerprint=fingerprint, tokenizer_id=tokenizer_id(base))
        if (path / "store.json").exists():
            return float(TokenStore(path, source.name).tokens), "counted"
    return estimate_tokens(source, files, _token_counter(base)), "estimated"


def _token_counter(base: BaseSpec) -> Callable[[list[str]], float]:
    """Return a function from documents to their tokens.

    It counts where the tokenizer is on disk, and assumes `BYTES_PER_TOKEN` elsewhere.
    """
    if base.tokenizer == "bytes":
        return lambda documents: float(sum(len(text.encode()) + 2 for text in documents))
    file = Path(base.tokenizer) / "tokenizer.json"
    if not file.is_file():
        return lambda documents: sum(len(text.encode()) for text in documents) / BYTES_PER_TOKEN
    with located(base.tokenizer):
        encoder = text_encoder(read_text(file, fix=COPY_AGAIN), prefix=[], suffix=[])
    # Two more per document: BOS and EOS.
    return lambda documents: float(sum(len(ids) + 2 for ids in encoder.encode(documents)))


def _warnings(plan: Plan) -> list[str]:
    experiment, budget = plan.experiment, plan.experiment.budget
    warnings = []
    if planned := [s.name for s in experiment.sources if s.planned_tokens is not None]:
        warnings.append(
            f"{', '.join(planned)}: planned sources; `sweepcp search` needs their files"
        )
    warnings += epoch_warnings(plan.epochs)
    base = experiment.base
    if base.hub and not COMMIT.fullmatch(base.revision or ""):
        warnings.append(
            f"base.revision {base.revision or '(none)'} is not a commit, "
            "so the model may change between workers"
        )
    lr_axis = experiment.space.lr_fraction
    if isinstance(lr_axis, Range) and lr_axis.high > 1:
        warnings.append(f"lr_fraction goes up to {lr_axis.high:g}, beyond the base's own max LR")
    if budget.trials <= len(experiment.space.anchors) + QUASI_RANDOM_TRIALS:
        warnings.append(
            f"none of the {budget.trials} trials is proposed by TPE: "
            "anchors and quasi-random points use them up"
        )
    if plan.first.steps < MIN_STEPS:
        warnings.append(f"{plan.first.steps} steps per trial are too few for a schedule")
    if plan.memory is not None:
        warnings += plan.memory.warnings(experiment.training)
    if plan.trial_hours is None:
        warnings.append("time and cost are unknown: set budget.sustained_tflops and usd_per_hour")
    return warnings
