"""The charts of a run: numbers and words, see `chart`. Scalars are relative changes against the base in %."""

import math
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter

import numpy as np

from sweepcp.config.choice import ChoiceRule, ReferencePoint
from sweepcp.config.space import Choices, Range, Value
from sweepcp.report.chart import Axis, Chart, Panel, Series
from sweepcp.report.labels import TrialLabels, choice_sentence, format_percent, trial_label
from sweepcp.report.trend import Trend
from sweepcp.runs.front import choose_point, is_on_front, score_matrix
from sweepcp.runs.front import hypervolume as area
from sweepcp.runs.run_folder import Run
from sweepcp.runs.trial import Trial
from sweepcp.runs.uncertainty import RESAMPLES, FrontCertainty

NAN = math.nan
DOMAIN_OF: Callable[[Trial], float] = attrgetter("domain")
GENERAL_OF: Callable[[Trial], float] = attrgetter("general")
"""The scores of a done trial on the half that is chosen on, in %."""
DOMAIN = Axis("domain change, %")
GENERAL = Axis("general change, %")
FRACTION = Axis("LR fraction", log=True)
SHARE = Axis("domain share, % of tokens")
POSSIBLE_SHARE = 0.05
"""From this share of resamples on a dominated trial may belong to the front."""
MAX_POINTS = 300
"""Points of a curve at most; longer ones are means of as many steps as that takes."""


def front_chart(run: Run, known: TrialLabels) -> Chart:
    """Every done trial by its two scores: the front with standard errors, the base, the choice on both halves."""
    done = run.done
    series = [_front_steps(run, "front")]
    if run.rule.max_regression is not None and done:
        series.append(_bound_line(-run.rule.max_regression, [0.0, *map(DOMAIN_OF, done)]))
    series += _point_series(run, done, known, GENERAL_OF, DOMAIN_OF, errors=True)
    if run.base is not None:
        hover = [f"the base, {run.base.model}\nuntouched, scored once"]
        series.append(Series("base", [0.0], [0.0], colour="base", mark="base", hover=hover))
    if run.chosen is not None and run.chosen.scorecard is not None:
        own, other = run.chosen.scorecard.select, run.chosen.scorecard.report
        path = Series(
            "",
            [own.general, other.general],
            [own.domain, other.domain],
            draw="line",
            colour="chosen",
        )
        point = Series(
            "chosen, other half",
            [other.general],
            [other.domain],
            colour="chosen",
            mark="second",
            hover=[f"{known.hover[run.chosen.id]}\nhere: as measured on the other half"],
            x_error=[other.general_se],
            y_error=[other.domain_se],
        )
        series += [path, point]
    notes = [
        f"{choice_sentence(run).rstrip('.')}.",
        "Changes against the base, higher is better.",
        "Error bars are standard errors of evaluation; every trial was trained on one seed.",
    ]
    if known.sure is not None:
        notes.append(
            f"Perhaps: on the front in at least {format_percent(POSSIBLE_SHARE)} of {RESAMPLES} resamples of items; evaluation noise only."
        )
    if without := len(run.trials) - len(done):
        notes.append(
            f"Without a score and so without a place here: {without} of {len(run.trials)} trials."
        )
    return Chart("Front", [Panel(GENERAL, DOMAIN, series)], notes)


def recipe_chart(run: Run, known: TrialLabels) -> Chart:
    """Every trial that has ended, by its recipe: where the search has looked, and where trials broke."""
    series = _point_series(run, run.trials, known, _lr_fraction, _domain_share)
    notes = (
        ["Axes other than these two are in the text of each point."]
        if len(run.space.axes) > 2
        else []
    )
    return Chart("Where the search has looked", [Panel(FRACTION, SHARE, series)], notes)


def tradeoff_chart(run: Run, trend: Trend | None, known: TrialLabels) -> Chart:
    """Both scores against LR fraction and domain share, with the fitted trend through the chosen recipe."""
    through = run.chosen_or_nearest
    panels = []
    for column, (score, axis) in enumerate((("domain", DOMAIN), ("general", GENERAL))):
        for name, x, where in (
            ("lr_fraction", FRACTION, _lr_fraction),
            ("general_share", SHARE, _domain_share),
        ):
            series = []
            if trend is not None and through is not None and name in trend.axes:
                values, curve = trend.along(name, through.point)
                seen = [100 * (1 - v) for v in values] if name == "general_share" else values
                label = f"trend, the rest as in {through.id}"
                series.append(
                    Series(label, seen, curve[:, column].tolist(), draw="line", colour="second")
                )
            series += _point_series(run, run.done, known, where, attrgetter(score))
            panels.append(Panel(x, axis, series))
    note = "No trend: too few done trials for it."
    if trend is not None:
        domain, general = (f"{r:.2f}" for r in trend.predictive)
        note = (
            f"The trend is a quadratic over all searched ranges, fitted to {trend.trials} trials; it predicts a trial "
            f"that it has not seen with R² {domain} (domain) and {general} (general)."
        )
    return Chart("Scores against LR fraction and domain share", panels, [note])


def parallel_chart(run: Run, known: TrialLabels) -> Chart:
    """A line a done trial through every searched axis and both scores."""
    done = run.done
    columns = [_axis_stop(name, axis) for name, axis in run.space.axes.items()]
    columns += [_score_stop(score, done) for score in ("domain", "general")] if done else []
    series = []
    for name, colour, members in _trials_by_outcome(run, done, known.sure):
        x, y, hover = [], [], []
        for trial in members:
            x += [*range(len(columns)), NAN]
            y += [place(trial) for _, place in columns] + [NAN]
            hover += [known.hover[trial.id]] * len(columns) + [""]
        series.append(
            Series(name, x, y, draw="line", colour=colour, hover=hover, faint=colour == "other")
        )
    ticks = [(float(i), label) for i, (label, _) in enumerate(columns)]
    height = Axis("from the lowest, 0, to the highest, 1")
    return Chart("Recipes and their scores", [Panel(Axis("", ticks=ticks), height, series)])


def importance_chart(run: Run, parts: dict[str, dict[str, float]]) -> Chart:
    """How much each axis decides whether a trial is among the best, by PED-ANOVA."""
    names = list(run.space.axes)
    ticks = [(float(i), name) for i, name in enumerate(names)]
    labels = (
        ("front", "to be near the front"),
        ("domain", "for domain gain"),
        ("general", "for little regression"),
    )
    series = [
        Series(
            label,
            list(range(len(names))),
            [parts[key].get(n, 0.0) for n in names],
            draw="bars",
            colour=colour,
        )
        for (key, label), colour in zip(
            labels if parts else (), ("front", "chosen", "second"), strict=False
        )
    ]
    note = "PED-ANOVA: which axes tell the best tenth of the trials (five at least) from all; not by how much."
    notes = [note] if parts else ["Not known: fewer than ten trials are done."]
    return Chart(
        "Importance of what was searched",
        [Panel(Axis("", ticks=ticks), Axis("part of 1"), series)],
        notes,
    )


def hypervolume_chart(run: Run) -> Chart:
    """The hypervolume of the front after each trial, above the run's fixed reference point."""
    done, reference = run.done, ReferencePoint(**run.front.reference)
    best, volume, steps = np.empty((0, 2)), 0.0, []
    for trial in done:
        own = score_matrix([trial])
        if not len(best) or not np.any(np.all(best >= own, axis=1)):
            best = np.vstack([best, own])
            best = best[is_on_front(best)]
            volume = area(best, reference)
        steps.append(volume)
    line = Series("", [t.number for t in done], steps, draw="steps", colour="front")
    note = f"Above domain, general = ({reference.domain:g}, {reference.general:g}) %, fixed for the run."
    return Chart(
        "Hypervolume", [Panel(Axis("trial, by number"), Axis("hypervolume, %²"), [line])], [note]
    )


def training_chart(run: Run, ids: Sequence[str] | None = None) -> Chart:
    """Loss, LR and gradient norm over tokens: of the trials `ids`, by default of the front and of those that broke."""
    broken = [t.id for t in run.trials if t.status != "done"]
    shown = list(ids) if ids is not None else [*run.front.ids, *broken, *run.unfinished]
    named = (
        ("loss", Axis("loss, nats a target token")),
        ("lr", Axis("LR")),
        ("grad_norm", Axis("gradient norm")),
    )
    lines: dict[str, list[Series]] = {name: [] for name, _ in named}
    longest = 1
    for trial_id in shown:
        steps = run.steps(trial_id)
        window = max(1, -(-len(steps) // MAX_POINTS))
        longest = max(longest, window)
        parts = [steps[at : at + window] for at in range(0, len(steps), window)]
        x = [sum(part[-1]["tokens"].values()) / 1e6 for part in parts]
        colour = _trial_colour(run, trial_id)
        for name in lines:
            values = [math.fsum(step[name] for step in part) / len(part) for part in parts]
            hover = [
                f"{trial_id}: {name} {v:.4g} after {t:.4g} million tokens"
                for t, v in zip(x, values, strict=True)
            ]
            lines[name].append(Series("", x, values, draw="line", colour=colour, hover=hover))
    notes = [f"Shown: {', '.join(shown) or 'none'}; the choice in pink, trials that broke in red."]
    notes += [f"Each point is the mean of up to {longest} steps."] if longest > 1 else []
    return Chart(
        "Training",
        [Panel(Axis("tokens, million"), axis, lines[name]) for name, axis in named],
        notes,
    )


def tolerance_chart(run: Run) -> Chart:
    """The recipe that is chosen as a function of the general regression that one is ready to accept."""
    front = [run.by_id[i] for i in run.front.ids]
    starts = sorted({max(0.0, -GENERAL_OF(t)) for t in front})
    picks = [
        choose_point(score_matrix(front), ChoiceRule(max_regression=start)) for start in starts
    ]
    best = [front[k] for k in picks if k is not None]
    end = starts[-1] * 1.1 + 0.1 if starts else 1.0
    rule = run.rule.max_regression
    read: tuple[tuple[Axis, Callable[[Trial], float]], ...] = (
        (Axis("domain gain, %"), DOMAIN_OF),
        (FRACTION, _lr_fraction),
        (SHARE, _domain_share),
    )
    panels = []
    for axis, value in read:
        heights = [value(t) for t in best]
        series = [
            Series(
                "the choice",
                [*starts, end],
                [*heights, *heights[-1:]],
                draw="steps",
                colour="front",
            )
        ]
        hover = [
            f"from {s:.2f} % on\n{trial_label(run, t, None)}"
            for s, t in zip(starts, best, strict=True)
        ]
        series.append(
            Series("where it changes", starts, heights, colour="front", mark="front", hover=hover)
        )
        if rule is not None and heights:
            series.append(_bound_line(rule, heights))
        panels.append(Panel(Axis("accepted general regression, %"), axis, series if best else []))
    return Chart(
        "The choice by the regression that is accepted", panels, ["On the half that is chosen on."]
    )


def comparison_chart(run: Run, other: Run, different: Sequence[str]) -> Chart:
    """Both fronts, and the scores of the recipes that both tried; `different` says how the experiments differ."""
    names = (run.path.name, other.path.name)
    names = names if names[0] != names[1] else (str(run.path), str(other.path))
    series = []
    for name, which, colour, mark in (
        (names[0], run, "front", "front"),
        (names[1], other, "second", "second"),
    ):
        done = [which.by_id[i] for i in which.front.ids]
        hover = [f"{name}\n{trial_label(which, t, None)}" for t in done]
        x, y = _score_columns(done)
        series += [
            _front_steps(which, colour),
            Series(f"front of {name}", x, y, colour=colour, mark=mark, hover=hover),
        ]
    series.append(Series("base of each", [0.0], [0.0], colour="base", mark="base"))
    pairs = _matched_trials(run, other)
    volume = area(
        score_matrix([other.by_id[i] for i in other.front.ids]),
        ReferencePoint(**run.front.reference),
    )
    notes = [f"Hypervolume above {names[0]}'s reference: {names[0]} {run.front.hypervolume:.1f} %², "
             f"{names[1]} {volume:.1f} %²."]  # fmt: skip
    notes.append(
        "Differs: " + "; ".join(different) if different else "Both were asked for the same."
    )
    panels = [Panel(GENERAL, DOMAIN, series)]
    if pairs:
        panels.append(_matched_panel(pairs, names))
        notes.append(f"{len(pairs)} recipes were tried in both{_rank_correlations(pairs)}.")
    else:
        notes.append("No recipe was tried in both, so only the fronts can be compared.")
    return Chart(f"{names[0]} and {names[1]}", panels, notes)


def _matched_panel(pairs: Sequence[tuple[Trial, Trial]], names: tuple[str, str]) -> Panel:
    series, ends = [], []
    for score, colour, mark in (("domain", "front", "front"), ("general", "chosen", "second")):
        x, y = ([attrgetter(score)(t) for t in side] for side in zip(*pairs, strict=True))
        hover = [
            f"{a.id} and {b.id}\n{score} {p:+.2f} % and {q:+.2f} %"
            for (a, b), p, q in zip(pairs, x, y, strict=True)
        ]
        series.append(Series(f"{score} change", x, y, colour=colour, mark=mark, hover=hover))
        ends += x + y
    equal = [min(ends), max(ends)]
    series.insert(0, Series("equal", equal, equal, draw="line", colour="other", dashed=True))
    return Panel(Axis(f"{names[0]}, %"), Axis(f"{names[1]}, %"), series)


def _matched_trials(run: Run, other: Run) -> list[tuple[Trial, Trial]]:
    """Done trials of both runs at the same point of the space."""
    there = {tuple(sorted(t.point.items())): t for t in reversed(other.done)}
    points = ((t, tuple(sorted(t.point.items()))) for t in run.done)
    return [(t, there[point]) for t, point in points if point in there]


def _rank_correlations(pairs: Sequence[tuple[Trial, Trial]]) -> str:
    """Spearman's rank correlation of both scores, from four pairs on."""
    if len(pairs) < 4:
        return ""
    import pandas as pd  # half a second that the page does without

    found = []
    for score in ("domain", "general"):
        x, y = ([attrgetter(score)(t) for t in side] for side in zip(*pairs, strict=True))
        ranks = [pd.Series(values).rank() for values in (x, y)]
        found.append(f"{score} {float(np.corrcoef(np.array(ranks))[0, 1]):.2f}")
    return f"; Spearman's rank correlation: {', '.join(found)}"


def _lr_fraction(trial: Trial) -> float:
    return trial.recipe.lr_fraction


def _domain_share(trial: Trial) -> float:
    return 100 * trial.recipe.domain_share


def _score_columns(trials: Iterable[Trial]) -> tuple[list[float], list[float]]:
    found = list(trials)
    return [GENERAL_OF(t) for t in found], [DOMAIN_OF(t) for t in found]


def _front_steps(run: Run, colour: str) -> Series:
    """The edge of what the front dominates."""
    x, y = _score_columns(run.by_id[i] for i in run.front.ids)
    return Series("", x, y, draw="steps", colour=colour, faint=True)


def _bound_line(at: float, heights: Sequence[float]) -> Series:
    """The bound of the rule as an upright line over what is drawn."""
    ends = [min(heights), max(heights)]
    return Series("bound of the rule", [at] * 2, ends, draw="line", colour="bad", dashed=True)


def _trials_by_outcome(
    run: Run, trials: Sequence[Trial], sure: FrontCertainty | None
) -> list[tuple[str, str, list[Trial]]]:
    """Trials by what has become of them: a name, a colour, the trials; nothing for none."""
    front, chosen = set(run.front.ids), run.front.choice.id
    dominated = [t for t in trials if t.status == "done" and t.id not in front]
    maybe = {i for i, share in (sure.on_front.items() if sure else ()) if share >= POSSIBLE_SHARE}
    sorts: dict[tuple[str, str], list[Trial]] = {
        ("dominated", "other"): [t for t in dominated if t.id not in maybe],
        ("perhaps on the front", "maybe"): [t for t in dominated if t.id in maybe],
        ("on the front", "front"): [t for t in trials if t.id in front and t.id != chosen],
        ("stopped", "second"): [t for t in trials if t.status == "stopped"],
        ("diverged", "bad"): [t for t in trials if t.status == "diverged"],
        ("failed", "bad"): [t for t in trials if t.status == "failed"],
        ("chosen", "chosen"): [t for t in trials if t.id == chosen],
    }
    return [(name, colour, members) for (name, colour), members in sorts.items() if members]


def _point_series(
    run: Run,
    trials: Sequence[Trial],
    known: TrialLabels,
    x: Callable[[Trial], float],
    y: Callable[[Trial], float],
    errors: bool = False,
) -> list[Series]:
    """Points of trials, anchors with a mark of their own; every trial is in one series."""
    series = []
    for name, colour, members in _trials_by_outcome(run, trials, known.sure):
        for anchor in (False, True):
            own = [t for t in members if (t.proposed_by == "anchor") == anchor]
            if not own:
                continue
            bars = (
                [t.scorecard.select for t in own if t.scorecard]
                if errors and colour in ("front", "chosen")
                else []
            )
            mark = {"chosen": "chosen", "bad": "bad", "second": "second"}.get(
                colour, "anchor" if anchor else "other"
            )
            mark = "second" if name == "failed" else mark
            series.append(
                Series(
                    f"{name}, anchor" if anchor else name,
                    [x(t) for t in own],
                    [y(t) for t in own],
                    colour=colour,
                    mark=mark,
                    hover=[known.hover[t.id] for t in own],
                    x_error=[b.general_se for b in bars],
                    y_error=[b.domain_se for b in bars],
                    faint=name == "dominated",
                )
            )
    return series


def _trial_colour(run: Run, trial_id: str) -> str:
    if trial_id == run.front.choice.id:
        return "chosen"
    ended = run.by_id.get(trial_id)
    return (
        "front"
        if trial_id in run.front.ids
        else "other"
        if ended is None or ended.status == "done"
        else "bad"
    )


def _axis_stop(name: str, axis: Range | Choices) -> tuple[str, Callable[[Trial], float]]:
    """An axis of the search in the parallel chart: its label, and where a trial stands on it in 0..1."""

    def place(value: Value) -> float:
        if isinstance(axis, Range):
            return axis.to_unit(float(value))
        return axis.choices.index(value) / max(1, len(axis.choices) - 1)

    if isinstance(axis, Range):
        ends = f"{axis.low:g} to {axis.high:g}, {axis.scale}"
    else:
        ends = ", ".join(str(c) for c in axis.choices)
    return f"{name}\n{ends}", lambda t: place(t.point[name])


def _score_stop(score: str, done: Sequence[Trial]) -> tuple[str, Callable[[Trial], float]]:
    values = [attrgetter(score)(t) for t in done]
    low, span = min(values), (max(values) - min(values)) or 1.0
    return (
        f"{score}, %\n{low:.1f} to {max(values):.1f}",
        lambda t: (attrgetter(score)(t) - low) / span,
    )
