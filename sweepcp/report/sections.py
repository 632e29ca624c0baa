"""What the page says besides its charts: tables and sentences, as plain text."""

from collections import Counter
from dataclasses import dataclass
from math import fsum

import yaml

from sweepcp.config.experiment import Experiment
from sweepcp.config.space import Range
from sweepcp.config.types import Role
from sweepcp.report.labels import format_percent, format_signed, scores_line
from sweepcp.runs.caveats import caveats_of
from sweepcp.runs.run_folder import Run
from sweepcp.runs.trial import Trial
from sweepcp.runs.uncertainty import RESAMPLES, FrontCertainty
from sweepcp.scoring.scorecard import MemberScore, weighted_change

UNIT = "% of the base's bits per byte; higher is better"


@dataclass(frozen=True)
class Table:
    """A table of texts; columns whose names end in `#` are numbers, and sort as such, those in `…` are long."""

    caption: str
    columns: list[str]
    rows: list[list[str]]
    chosen: int | None = None
    """The row that is marked."""

    @property
    def heads(self) -> list[tuple[str, str]]:
        """The name of each column, and its kind: number, long, or nothing."""
        kinds = {"#": "number", "…": "long"}
        return [(name.rstrip("#…"), kinds.get(name[-1], "")) for name in self.columns]


def question_text(run: Run) -> str:
    """What was asked, in a sentence."""
    domain, general = (
        ", ".join(_source_names(run, role)) or "none" for role in ("domain", "general")
    )
    base = run.base
    size = (
        f" ({base.parameters:,} parameters, max LR {base.max_lr:g} in its pretraining)"
        if base
        else ""
    )
    experiment = run.experiment
    return (
        f"How high may the learning rate be, and how much general text must be mixed in, when {_base_name(run)}{size} "
        f"goes on with pretraining on {domain}, with {general} as replay? "
        f"Each of {experiment.budget.trials} trials trains it on {experiment.budget.tokens:,} tokens in steps of "
        f"{experiment.training.batch_tokens:,}. Rule: {run.rule}."
    )


def _base_name(run: Run) -> str:
    spec = run.experiment.base
    return (
        "a small base, pretrained for this purpose,"
        if spec.pretrain
        else str(spec.hub or spec.path)
    )


def _source_names(run: Run, role: Role) -> list[str]:
    return [s.name for s in run.experiment.sources if s.role == role]


def progress_text(run: Run) -> str:
    """How far the search is."""
    experiment = run.experiment
    steps = experiment.budget.tokens // experiment.training.batch_tokens
    line = f"{run.state}: {len(run.trials)} of {experiment.budget.trials} trials have ended"
    if run.base is None:
        line += ", the base is not scored yet"
    if run.unfinished:
        at = ", ".join(f"{i} at step {n:,} of {steps:,}" for i, n in run.unfinished.items())
        line += f"; {'running' if run.locked else 'begun and not ended'}: {at}"
    return line


def certainty_lines(run: Run, sure: FrontCertainty | None) -> list[str]:
    """The choice on both halves, and what resampling says of it."""
    trial = run.chosen
    if trial is None or trial.scorecard is None:
        return []
    lines = [
        f"Chosen on one half of the items, where it has {scores_line(trial.scorecard.select)}.",
        f"Reported on the other half, which the choice has not seen: {scores_line(trial.scorecard.report)}.",
    ]
    if sure is None:
        lines.append("Results of single items are missing, so nothing was resampled.")
        return lines
    rivals = sorted(sure.chosen.items(), key=lambda pair: -pair[1])
    others = ", ".join(
        f"{i} in {format_percent(p)}" for i, p in rivals if i != trial.id and p >= 0.01
    )
    often = f"the rule would have chosen it in {format_percent(sure.chosen[trial.id])} of {RESAMPLES} resamples"
    lines.append(
        f"Had other items of the same kind been drawn, {often}"
        + (f" (else {others})." if others else ".")
    )
    bound = run.rule.max_regression
    if sure.within is not None and bound is not None:
        lines.append(
            f"It keeps the bound of {bound:g} % general regression in {format_percent(sure.within)} of {RESAMPLES} resamples of "
            "the half that it was not chosen on."
        )
    lines.append(
        "All of this is evaluation noise only: each recipe was trained once, with one seed, and another seed moves the "
        "scores by an amount that was not measured."
    )
    return lines


def bound_warning(run: Run, sure: FrontCertainty | None) -> str | None:
    """A choice that does not keep its rule's bound on the half that it was not chosen on."""
    trial, bound = run.chosen, run.rule.max_regression
    if (
        trial is None
        or trial.scorecard is None
        or bound is None
        or trial.scorecard.report.general >= -bound
    ):
        return None
    often = (
        f"; it keeps the bound in {format_percent(sure.within)} of resamples"
        if sure and sure.within is not None
        else ""
    )
    regression = -trial.scorecard.report.general
    return f"On that other half its general regression is {regression:.2f} %, beyond the bound of {bound:g} %{often}."


def untested_lines(run: Run) -> list[str]:
    """What a reader might take for known, and is not."""
    lines = []
    trial, experiment = run.chosen_or_nearest, run.experiment
    if run.base is not None:
        lines.append(
            f"Whether the best recipe of {run.base.parameters:,} parameters and {experiment.budget.tokens:,} "
            "tokens is the best of a larger model and a longer run."
        )
    lines.append(f"Other values of what all trials share: {_shared_settings(experiment)}.")
    if trial is not None:
        lines += [f"{line[0].upper()}{line[1:]}." for line in caveats_of(run, trial)]
        read = {name: epochs for name, epochs in trial.epochs_by_source.items() if epochs > 0}
        if read and max(read.values()) <= 1 and experiment.target is None:
            lines.append(
                "Repetition: no source was read more than once, and the experiment names no target run."
            )
    broken = Counter(t.status for t in run.trials if t.status != "done")
    if broken:
        counts = ", ".join(f"{count} {status}" for status, count in broken.items())
        lines.append(f"The recipes of trials that have no score: {counts}.")
    members = trial.scorecard.report.members if trial and trial.scorecard else ()
    if members and not any(m.unit == "accuracy" for m in members):
        lines.append("Tasks: the suites hold text only, and no benchmark with answers.")
    return lines


def _shared_settings(experiment: Experiment) -> str:
    names = (
        "schedule",
        "warmup",
        "final_fraction",
        "weight_decay",
        "clip",
        "batch_tokens",
        "seq_len",
    )
    values = {n: getattr(experiment.training, n) for n in names if n not in experiment.space.axes}
    return ", ".join(
        f"{n} {value:,}" if isinstance(value, int) else f"{n} {value}"
        for n, value in values.items()
    )


def trial_table(run: Run, sure: FrontCertainty | None) -> Table:
    """Every trial that has ended."""
    extra = {
        n: axis for n, axis in run.experiment.space.axes.items() if n not in ("lr_fraction", "general_share")
    }
    columns = ["trial", "status", "proposed by", "LR fraction#", "domain share, %#"]
    columns += [f"{name}#" if isinstance(axis, Range) else name for name, axis in extra.items()]
    columns += [
        "domain#",
        "general#",
        "domain, other half#",
        "general, other half#",
        "P(front)#",
        "P(chosen)#",
        "seconds#",
    ]
    rows, chosen = [], None
    for index, trial in enumerate(run.trials):
        chosen = index if trial.id == run.front.choice.id else chosen
        row = [
            trial.id,
            _trial_mark(run, trial),
            trial.proposed_by,
            f"{trial.recipe.lr_fraction:.4g}",
        ]
        row.append(f"{100 * trial.recipe.domain_share:.1f}")
        row += [
            f"{trial.point[name]:.4g}"
            if isinstance(trial.point[name], float)
            else str(trial.point[name])
            for name in extra
        ]
        card = trial.scorecard
        for half in (card.select, card.report) if card else (None, None):
            row += (
                [
                    _format_change(half.domain, half.domain_se),
                    _format_change(half.general, half.general_se),
                ]
                if half
                else ["", ""]
            )
        scored = sure is not None and trial.id in sure.on_front
        row += (
            [f"{p[trial.id]:.2f}" for p in (sure.on_front, sure.chosen)]
            if sure and scored
            else ["", ""]
        )
        row.append(
            f"{trial.cost.train_seconds + trial.cost.score_seconds:.0f}" if trial.cost else ""
        )
        rows.append(row)
    return Table(f"Every trial. Scores ± standard error: {UNIT}", columns, rows, chosen)


def front_table(run: Run, whole: Table) -> Table:
    """The front from least to most domain gain: rows and columns of the table of every trial."""
    columns = [
        "trial",
        "LR fraction#",
        "domain share, %#",
        "domain#",
        "general#",
        "domain, other half#",
    ]
    columns += ["general, other half#", "P(front)#"]
    wanted = [whole.columns.index(name) for name in columns]
    by_id = {row[0]: row for row in whole.rows}
    rows = [[by_id[i][k] for k in wanted] for i in run.front.ids]
    ids = list(run.front.ids)
    chosen = ids.index(run.front.choice.id) if run.front.choice.id else None
    return Table(f"The front. Scores ± standard error: {UNIT}", columns, rows, chosen)


def _trial_mark(run: Run, trial: Trial) -> str:
    if trial.id == run.front.choice.id:
        return "chosen"
    return "on the front" if trial.id in run.front.ids else trial.status


def _format_change(value: float, error: float) -> str:
    return f"{format_signed(value)} ± {error:.2f}"


def member_table(trial: Trial) -> Table:
    """What the scalars of a trial are made of, benchmark by benchmark, on the half that is not chosen on."""
    assert trial.scorecard is not None
    columns = [
        "suite",
        "benchmark",
        "language",
        "unit",
        "items#",
        "base#",
        f"{trial.id}#",
        "change#",
    ]
    rows = [
        [m.role, m.name, m.language, m.unit, f"{m.items}", f"{m.base:.3f} ± {m.base_se:.3f}",
         f"{m.value:.3f} ± {m.value_se:.3f}", f"{_format_change(m.change, m.change_se)} {_change_unit(m)}"]
        for m in trial.scorecard.report.members
    ]  # fmt: skip
    return Table(
        f"Trial {trial.id} against the base by benchmark, on the half that it was not chosen on",
        columns,
        rows,
    )


def language_table(trial: Trial) -> Table:
    """The members of each suite and language together, weighted as the suites weigh them."""
    assert trial.scorecard is not None
    rows, half = [], trial.scorecard.report
    for unit in ("bits per byte", "accuracy"):
        for role, language in dict.fromkeys((m.role, m.language) for m in half.members):
            own = [
                m for m in half.members if (m.role, m.language, m.unit) == (role, language, unit)
            ]
            if own:
                change, error = weighted_change(own)
                rows.append(
                    [
                        role,
                        language,
                        unit,
                        f"{len(own)}",
                        f"{_format_change(change, error)} {_change_unit(own[0])}",
                    ]
                )
    columns = ["suite", "language", "unit", "benchmarks#", "change#"]
    return Table(
        f"Trial {trial.id} against the base by language, on the half that it was not chosen on",
        columns,
        rows,
    )


def _change_unit(member: MemberScore) -> str:
    return "%" if member.unit == "bits per byte" else "points"


def data_table(run: Run) -> Table:
    """The sources, and what the chosen or nearest trial read of them."""
    trial = run.chosen_or_nearest
    shares = {p.source: p.share for p in trial.recipe.mixture.portions} if trial else {}
    name = f" in trial {trial.id}" if trial else ""
    columns = [
        "source",
        "role",
        "language",
        f"share{name}, %#",
        f"tokens{name}#",
        f"epochs{name}#",
        "fingerprint",
    ]
    rows = []
    for source in run.experiment.sources:
        key = source.name
        read = trial is not None and key in trial.tokens_by_source
        rows.append([
            key, source.role, source.language,
            f"{100 * shares[key]:.1f}" if key in shares else "",
            f"{trial.tokens_by_source[key]:,}" if trial and read else "",
            f"{trial.epochs_by_source.get(key, 0):.3g}" if trial and read else "",
            run.source_fingerprints.get(key, ""),
        ])  # fmt: skip
    return Table("The texts", columns, rows)


def failure_table(run: Run) -> Table | None:
    """Trials that have no score, and why."""
    rows = [
        [
            t.id,
            t.status,
            f"{t.recipe.lr_fraction:.4g}",
            f"{100 * t.recipe.domain_share:.1f}",
            (t.reason or "").strip(),
        ]
        for t in run.trials
        if t.status != "done"
    ]
    columns = ["trial", "status", "LR fraction#", "domain share, %#", "reason…"]
    return Table("Trials without a score", columns, rows) if rows else None


def cost_lines(run: Run) -> list[str]:
    """What the run has used so far."""
    costs = [t.cost for t in run.trials if t.cost]
    if not costs:
        return ["Nothing is known of the cost yet."]
    hours = fsum(c.train_seconds + c.score_seconds for c in costs) / 3600
    train = fsum(c.train_seconds for c in costs) / 3600
    tokens = sum(c.tokens for c in costs)
    lines = [
        f"{hours:.3g} hours of workers, {train:.3g} of them training; {tokens:,} tokens in {len(costs)} trials.",
        f"Workers: {', '.join(f'{n} trials on {w}' for w, n in Counter(c.worker for c in costs).items())}.",
    ]
    if run.base is not None:
        flops = 6.0 * run.base.parameters * tokens
        lines.append(f"{flops:.3g} FLOPs of training, counted as 6 · parameters · tokens.")
    price = run.experiment.budget.usd_per_hour
    if price is not None:
        lines.append(f"{hours * price:,.2f} USD at {price:g} USD an hour of one trial's devices.")
    return lines


def version_lines(run: Run) -> list[str]:
    """The packages that decided the numbers; more than one line when trials had different ones."""
    found = Counter(
        " ".join(f"{k}=={v}" for k, v in t.versions.items()) for t in run.trials if t.versions
    )
    return [f"{line} ({count} trials)" if len(found) > 1 else line for line, count in found.items()]


def experiment_text(run: Run) -> str:
    """The experiment as a file for `sweepcp search`; what it leaves out has its default."""
    return yaml.safe_dump(
        _without_nulls(run.experiment.model_dump(mode="json")), sort_keys=False, allow_unicode=True, width=100
    )


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value
