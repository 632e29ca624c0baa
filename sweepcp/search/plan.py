"""What a search would run and cost, before anything is trained."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sweepcp.config.base_model import BaseSpec
from sweepcp.config.budget import QUASI_RANDOM_TRIALS
from sweepcp.config.experiment import Experiment
from sweepcp.config.recipe import Recipe
from sweepcp.config.source import Source
from sweepcp.config.space import Range
from sweepcp.corpora.repetition import EpochCount, count_epochs, epoch_warnings, first_recipe
from sweepcp.data.encoding import Encoder
from sweepcp.data.source_files import ResolvedSource, source_fingerprint
from sweepcp.data.token_estimate import estimate_tokens
from sweepcp.data.token_store import TokenStore, store_path
from sweepcp.models.base import count_parameters

BYTES_PER_TOKEN = 4.0
"""Assumption for subword tokenizers on English text, used only for estimates."""
OPTIMIZER_BYTES = 16
"""Bytes a parameter: fp32 weights, gradients and two AdamW moments."""


@dataclass(frozen=True)
class Plan:
    """The answer of `sweepcp plan`."""

    experiment: Experiment
    first: Recipe
    """Of trial one, or of the middle of the space where there is no anchor."""
    readings: list[EpochCount]
    origins: dict[str, str]
    """How the tokens of each source are known: `counted`, `planned` or `estimated`."""
    parameters: int | None
    warnings: list[str]

    @property
    def trial_flops(self) -> float | None:
        """Training of one trial: 6 · parameters · tokens (Kaplan et al. 2020, arXiv 2001.08361), without scoring."""
        return 6.0 * self.parameters * self.experiment.budget.tokens if self.parameters else None

    @property
    def trial_hours(self) -> float | None:
        """Hours of training of one trial at the stated speed."""
        speed = self.experiment.budget.sustained_tflops
        return self.trial_flops / (speed * 1e12) / 3600 if self.trial_flops and speed else None

    def lr_curve(self) -> list[tuple[int, float]]:
        """Step and learning rate of the first recipe: the ends, the peak and what lies between."""
        steps = self.first.steps
        peak = max(1, round(self.first.warmup * steps))
        shown = {1, 2, peak, peak + 1, steps // 4, steps // 2, 3 * steps // 4, steps - 1, steps}
        max_lr = self.experiment.base.max_lr
        return [(n, self.first.lr(n, max_lr)) for n in sorted(shown) if 1 <= n <= steps]


def make_plan(experiment: Experiment, files: dict[str, ResolvedSource]) -> Plan:
    """Count or estimate tokens, and derive the rest. Reads at most a sample of the texts, writes nothing."""
    counted = {s.name: _tokens(s, files[s.name], experiment.base) for s in experiment.sources}
    tokens = {name: count for name, (count, _) in counted.items()}
    origins = {name: origin for name, (_, origin) in counted.items()}
    first = first_recipe(experiment, tokens)
    found = count_epochs(experiment, tokens)
    plan = Plan(experiment, first, found, origins, count_parameters(experiment.base), [])
    plan.warnings.extend(_warnings(plan))
    return plan


def _tokens(source: Source, found: ResolvedSource, base: BaseSpec) -> tuple[float, str]:
    """Training tokens of a source, and how they are known."""
    if source.planned_tokens is not None:
        return float(source.planned_tokens), "planned"
    store = store_path(source_fingerprint(source, found), base.tokenizer_id())
    if (store / "store.json").exists():
        return float(TokenStore(store, source.name).tokens), "counted"
    return estimate_tokens(source, found, _counter(base)), "estimated"


def _counter(base: BaseSpec) -> Callable[[list[str]], float]:
    """Tokens of texts: counted where the tokenizer is at hand, else by the assumed bytes a token."""
    file = Path(base.tokenizer) / "tokenizer.json"
    if base.tokenizer == "bytes":
        return lambda texts: float(sum(len(text.encode()) + 2 for text in texts))
    if not file.is_file():
        return lambda texts: sum(len(text.encode()) for text in texts) / BYTES_PER_TOKEN
    return Encoder(file.read_text(encoding="utf-8"), (0,), (0,), 0).count


def _warnings(plan: Plan) -> list[str]:
    experiment, budget = plan.experiment, plan.experiment.budget
    found = []
    if planned := [s.name for s in experiment.sources if s.planned_tokens is not None]:
        found.append(f"planned, `sweepcp search` needs their files: {', '.join(planned)}")
    found += epoch_warnings(plan.readings)
    base = experiment.base
    if base.hub and (base.revision is None or len(base.revision) != 40):
        found.append(
            f"base.revision {base.revision or '(none)'} is not a commit: it may change between workers"
        )
    axis = experiment.space.lr_fraction
    if isinstance(axis, Range) and axis.high > 1:
        found.append(f"lr_fraction goes up to {axis.high:g}, beyond the base's own max LR")
    proposed = budget.trials - len(experiment.space.anchors) - QUASI_RANDOM_TRIALS
    if proposed <= 0:
        found.append(
            f"with {budget.trials} trials the model proposes none: anchors and starts use them up"
        )
    if plan.first.steps < 20:
        found.append(f"{plan.first.steps} steps a trial: too few for a schedule to mean anything")
    if base.pretrain is None and plan.parameters and budget.gpus_per_trial:
        gigabytes = OPTIMIZER_BYTES * plan.parameters / 1e9
        if gigabytes > 70:
            found.append(
                f"a trial runs on one GPU and needs {gigabytes:.0f} GB for weights, gradients and optimizer, before "
                "activations: look for a smaller proxy of the same family, or a GPU that has them"
            )
    if plan.trial_hours is None:
        found.append("no time or cost: state budget.sustained_tflops (and usd_per_hour)")
    return found
