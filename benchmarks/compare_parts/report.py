"""The tables of the comparison, and its goals."""

from collections.abc import Sequence
from typing import Any

from measuring import Goal, Spread, markdown_table, ratios_of, show_number, spread_of

from compare_parts.arms import Arm, Search

SMALLEST_TRIAL_RATIO, SMALLEST_SEARCH_RATIO = 3.5, 2.7
"""How many times as long `plain` takes per trial, and for a whole search of `GOAL_TRIALS`."""
GOAL_TRIALS = 16
LARGEST_DIFFERENCE = {"ours": 1e-4, "exact": 0.0}
"""Of answers from those of stock lm-eval, and of scores from those of the version before."""

Rounds = Sequence[dict[str, Search]]
"""Arm → its search, in each round."""


def column(rounds: Rounds, arm: str, quantity: str) -> list[float]:
    """Return a quantity of an arm in each round."""
    return [float(getattr(searches[arm], quantity)) for searches in rounds]


def ratio(rounds: Rounds, numerator: str, denominator: str, quantity: str) -> Spread:
    """Return how many times as much one arm takes of a quantity as another one."""
    return ratios_of(column(rounds, numerator, quantity), column(rounds, denominator, quantity))


def worker_seconds(rounds: Rounds, arm: str, quantity: str) -> Spread:
    """Return the median seconds of a part of a trial on its worker, over all rounds."""
    values = []
    for searches in rounds:
        trials = searches[arm].trials
        values.append(spread_of(getattr(trial, quantity) for trial in trials).median)
    return spread_of(values)


def arms_table(arms: Sequence[Arm], rounds: Rounds) -> str:
    """Return what each arm takes."""
    header = ["arm", "whole search", "first trial", "per trial", "training", "scoring"]
    rows = []
    for arm in arms:
        times = [spread_of(column(rounds, arm.name, name)) for name in TIMES]
        parts = [worker_seconds(rounds, arm.name, f"{part}_seconds") for part in ("train", "score")]
        rows.append([f"{arm.name}: {arm.description}", *(s.show("s") for s in [*times, *parts])])
    return markdown_table(header, rows)


TIMES = ("wall_seconds", "first_seconds", "trial_seconds")


def ratios_table(arms: Sequence[Arm], rounds: Rounds) -> str:
    """Return how many times as long each other arm takes as `ours`, within a round."""
    header = ["arm / ours", "whole search", "first trial", "per trial"]
    rows = []
    for arm in arms:
        if arm.name != "ours":
            spreads = [ratio(rounds, arm.name, "ours", name) for name in TIMES]
            rows.append([arm.name, *(spread.show("×") for spread in spreads)])
    return markdown_table(header, rows)


def choices_table(choices: dict[str, Any]) -> str:
    """Return the final choice of each arm, its accuracies, and those of stock lm-eval."""
    header = ["arm", "domain, general (bits per byte)", "mean accuracy", "of stock lm-eval"]
    header += ["largest difference of an accuracy", "of an answer (nats)", "of held-out text"]
    rows = []
    for arm, choice in choices["arms"].items():
        means = []
        for key in ("accuracies", "stock_accuracies"):
            values = choice[key].values()
            means.append(f"{100 * sum(values) / len(values):.2f} %")
        bpb = ", ".join(f"{value:.4f}" for value in choice["bpb"].values())
        answer = choice["answer_difference"]
        differences = [show_number(choice["accuracy_difference"], 2)]
        differences += ["not recorded" if answer is None else show_number(answer, 2)]
        rows.append([arm, bpb, *means, *differences, show_number(choice["bpb_difference"], 2)])
    return markdown_table(header, rows)


def before_table(check: dict[str, Any]) -> str:
    """Return how the scores differ from those of the version before, in exact and shared mode."""
    header = ["mode", "trials", "largest difference of a score (%)", "values that differ"]
    rows = [
        [mode, found["trials"], show_number(found["largest"], 2), found["differing"]]
        for mode, found in check.items()
    ]
    return markdown_table(header, rows)


def goals_of(
    rounds: Rounds, choices: dict[str, Any] | None, check: dict[str, Any] | None
) -> list[Goal]:
    """Return the goals that these arms can be judged by."""
    goals = []
    if {"plain", "ours"} <= rounds[0].keys():
        per_trial = ratio(rounds, "plain", "ours", "trial_seconds").median
        goals.append(Goal("plain / ours, per trial", per_trial, SMALLEST_TRIAL_RATIO))
        trials = len(rounds[0]["ours"].trials)
        if trials == GOAL_TRIALS:
            whole = ratio(rounds, "plain", "ours", "wall_seconds").median
            name = f"plain / ours, whole search of {trials} trials"
            goals.append(Goal(name, whole, SMALLEST_SEARCH_RATIO))
    for arm in ("ours", "exact"):
        if choices is not None and arm in choices["arms"]:
            value = choices["arms"][arm]["answer_difference"]
            name = f"{arm}: nats of an answer against stock lm-eval"
            goals.append(Goal(name, value, LARGEST_DIFFERENCE[arm], at_least=False))
    if check is not None:
        value, differing = check["shared"]["largest"], check["exact"]["differing"]
        name = "shared: scores (%) against the version before"
        goals.append(Goal(name, value, LARGEST_DIFFERENCE["ours"], at_least=False))
        name = "exact: values that differ from the version before"
        goals.append(Goal(name, differing, 0, at_least=False))
    return goals
