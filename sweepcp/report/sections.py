"""Sentences and lists of the report page, as plain text."""

from collections import Counter
from collections.abc import Mapping
from math import fsum

import yaml

from sweepcp.config.experiment import Experiment
from sweepcp.config.recipe import RELATIVE_FIELDS
from sweepcp.config.types import Role
from sweepcp.report.labels import format_percent, format_scores
from sweepcp.runs.caveats import caveats_of
from sweepcp.runs.memory_use import smallest_halving
from sweepcp.runs.run_folder import Run
from sweepcp.runs.trial import Cost
from sweepcp.runs.uncertainty import RESAMPLES, FrontCertainty

SHARED_SETTINGS = (
    "schedule",
    "warmup",
    "warmup_steps",
    "final_fraction",
    "min_lr",
    "weight_decay",
    "epsilon",
    "clip",
    "batch_tokens",
    "seq_len",
)
"""Training settings that the page names among those that were not varied."""
MIN_RIVAL_SHARE = 0.01
"""Trials that the rule chooses in fewer resamples are not named."""
FLOPS_PER_PARAMETER_AND_TOKEN = 6.0
"""Kaplan et al. 2020, arXiv 2001.08361: forward and backward pass."""


def question_text(run: Run) -> str:
    """Return the question that the experiment asks."""
    experiment, base = run.experiment, run.base
    size = ""
    if base is not None:
        size = f" ({base.parameters:,} parameters, max LR {base.max_lr:g} in its own pretraining)"
    return (
        "How high may the learning rate be, and how much replay of general text is needed, in "
        f"continued pretraining of {_base_name(experiment)}{size}? "
        f"Domain: {_source_names(experiment, 'domain')}. "
        f"Replay: {_source_names(experiment, 'general')}. "
        f"Each of {experiment.budget.trials} trials trains on {experiment.budget.tokens:,} tokens "
        f"in steps of {experiment.training.batch_tokens:,}. Rule of choice: {run.rule}."
    )


def progress_text(run: Run) -> str:
    """Return how many trials have ended, and where the unfinished ones are."""
    experiment = run.experiment
    text = f"{run.state}: {len(run.trials)} of {experiment.budget.trials} trials have ended"
    if run.base is None:
        text += ", the base has not been scored yet"
    if run.unfinished:
        total = experiment.budget.tokens // experiment.training.batch_tokens
        steps = [f"{name} at step {step:,} of {total:,}" for name, step in run.unfinished.items()]
        state = "in progress" if run.locked else "unfinished"
        text += f"; {state}: {', '.join(steps)}"
    return text


def certainty_lines(run: Run, certainty: FrontCertainty | None) -> list[str]:
    """Return the scores of the chosen trial on both halves, and the results of resampling."""
    trial = run.chosen
    if trial is None or trial.scorecard is None:
        return []
    lines = [
        f"Trial {trial.id} was chosen on the selection half of the items, where it has "
        f"{format_scores(trial.scorecard.select)}.",
        "On the reporting half, which the choice did not use, it has "
        f"{format_scores(trial.scorecard.report)}.",
    ]
    if certainty is None:
        lines.append("Results of single items are missing, so nothing was resampled.")
        return lines
    share = format_percent(certainty.chosen[trial.id])
    lines.append(
        f"In {share} of {RESAMPLES} resamples of the selection half, the rule chooses the same "
        f"trial{_rivals_text(certainty, trial.id)}."
    )
    bound = run.rule.max_regression
    if certainty.within_bound is not None and bound is not None:
        lines.append(
            f"It keeps the bound of {bound:g} % general regression in "
            f"{format_percent(certainty.within_bound)} of {RESAMPLES} resamples of the reporting "
            "half."
        )
    lines.append(
        "This is evaluation noise only: each recipe was trained once, with one seed. How much "
        "another seed changes the scores was not measured."
    )
    return lines


def bound_warning(run: Run, certainty: FrontCertainty | None) -> str | None:
    """Return a warning if the chosen trial exceeds the rule's bound on the reporting half."""
    trial, bound = run.chosen, run.rule.max_regression
    if trial is None or trial.scorecard is None or bound is None:
        return None
    regression = -trial.scorecard.report.general
    if regression <= bound:
        return None
    share = ""
    if certainty is not None and certainty.within_bound is not None:
        share = f"; it keeps the bound in {format_percent(certainty.within_bound)} of resamples"
    return (
        f"On the reporting half its general regression is {regression:.2f} %, beyond the bound of "
        f"{bound:g} %{share}."
    )


def untested_lines(run: Run) -> list[str]:
    """Return what the search did not test, though a reader may assume that it did."""
    trial, experiment = run.chosen_or_nearest, run.experiment
    lines = []
    if run.base is not None:
        lines.append(
            f"Whether the best recipe for {run.base.parameters:,} parameters and "
            f"{experiment.budget.tokens:,} tokens is also the best for a larger model and a longer "
            "run."
        )
    lines.append(f"Other values of the settings that all trials share: {_shared_text(experiment)}.")
    if trial is not None:
        lines += [f"{line[0].upper()}{line[1:]}." for line in caveats_of(run, trial)]
        if experiment.target is None and _repeats_nothing(trial.epochs_by_source):
            lines.append(
                "Repetition of data: no source was read more than once, and the experiment names "
                "no target run."
            )
    statuses = Counter(trial.status for trial in run.trials if trial.status != "done")
    if statuses:
        counts = ", ".join(f"{count} {status}" for status, count in statuses.items())
        lines.append(f"The recipes of the trials without a score: {counts}.")
    members = trial.scorecard.report.members if trial and trial.scorecard else ()
    if members and not any("accuracy" in member.unit for member in members):
        lines.append("Tasks: the suites have held-out text only, and no benchmark with answers.")
    return lines


def cost_lines(run: Run) -> list[str]:
    """Return time, tokens, memory, FLOPs and price of the run so far."""
    costs = [trial.cost for trial in run.trials if trial.cost]
    if not costs:
        return ["No cost has been recorded yet."]
    train_hours = fsum(cost.train_seconds for cost in costs) / 3600
    hours = fsum(cost.train_seconds + cost.score_seconds for cost in costs) / 3600
    tokens = sum(cost.tokens for cost in costs)
    lines = [
        f"{hours:.3g} worker hours, of which {train_hours:.3g} hours are training; {tokens:,} "
        f"tokens in {len(costs)} trials.",
        f"Workers: {_workers_text(costs)}.",
    ]
    lines += _memory_lines(run, costs)
    if run.base is not None:
        flops = FLOPS_PER_PARAMETER_AND_TOKEN * run.base.parameters * tokens
        lines.append(f"{flops:.3g} FLOPs of training, counted as 6 · parameters · tokens.")
    price = run.experiment.budget.usd_per_hour
    if price is not None:
        lines.append(
            f"{hours * price:,.2f} USD, at {price:g} USD per hour for the devices of one trial."
        )
    return lines


def version_lines(run: Run) -> list[str]:
    """Return the versions of the packages; more than one line if trials had different ones."""
    versions = Counter(_requirements(trial.versions) for trial in run.trials if trial.versions)
    if len(versions) < 2:
        return list(versions)
    return [f"{line} ({count} trials)" for line, count in versions.items()]


def experiment_text(run: Run) -> str:
    """Return the experiment as a file for `sweepcp search`; keys without a value are left out."""
    content = _without_nulls(run.experiment.model_dump(mode="json"))
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def _base_name(experiment: Experiment) -> str:
    base = experiment.base
    if base.pretrain:
        return "a small base model made for this experiment"
    return str(base.hub or base.path)


def _source_names(experiment: Experiment, role: Role) -> str:
    names = [source.name for source in experiment.sources if source.role == role]
    return ", ".join(names) or "none"


def _rivals_text(certainty: FrontCertainty, chosen: str) -> str:
    """Return in how many resamples the rule chooses which other trials."""
    by_share = sorted(certainty.chosen.items(), key=lambda pair: -pair[1])
    rivals = [
        f"{trial_id} in {format_percent(share)}"
        for trial_id, share in by_share
        if trial_id != chosen and share >= MIN_RIVAL_SHARE
    ]
    return f" (others: {', '.join(rivals)})" if rivals else ""


def _shared_text(experiment: Experiment) -> str:
    settings = []
    axes = experiment.space.axes
    varied = {*axes, *(RELATIVE_FIELDS[name] for name in axes if name in RELATIVE_FIELDS)}
    for name in SHARED_SETTINGS:
        value = getattr(experiment.training, name)
        if value is None or name in varied:
            continue
        settings.append(f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}")
    return ", ".join(settings)


def _repeats_nothing(epochs_by_source: Mapping[str, float]) -> bool:
    """Return whether sources were read, and none of them more than once."""
    epochs = [epochs for epochs in epochs_by_source.values() if epochs > 0]
    return bool(epochs) and max(epochs) <= 1


def _workers_text(costs: list[Cost]) -> str:
    workers = Counter(cost.worker for cost in costs)
    return ", ".join(f"{count} trials on {worker}" for worker, count in workers.items())


def _memory_lines(run: Run, costs: list[Cost]) -> list[str]:
    """Return the micro batches and the attention of the trials, and their GPU memory."""
    passes = Counter(
        f"{cost.micro_batch} sequences with {cost.attention} attention"
        for cost in costs
        if cost.micro_batch is not None
    )
    lines = []
    if passes:
        counts = ", ".join(
            f"{text} in {count} trial{'' if count == 1 else 's'}" for text, count in passes.items()
        )
        lines.append(f"Forward passes of training: {counts}.")
    if halving := smallest_halving(run.trials):
        lines.append(f"{halving}.")
    measured = [cost.memory_gib for cost in costs if cost.memory_gib is not None]
    ratios = [cost.memory_ratio for cost in costs if cost.memory_ratio is not None]
    if measured:
        text = f"GPU memory of training: at most {max(measured):.3g} GiB"
        if ratios:
            text += f", {min(ratios):.2f} to {max(ratios):.2f} times the estimate"
        lines.append(f"{text}.")
    return lines


def _requirements(versions: Mapping[str, str]) -> str:
    return " ".join(f"{package}=={version}" for package, version in versions.items())


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value
