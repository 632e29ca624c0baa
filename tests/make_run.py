"""Run folders for tests, whose trials have scores that follow a formula."""

from pathlib import Path

import numpy as np

from sweepcp.config.experiment import Experiment
from sweepcp.config.recipe import Recipe
from sweepcp.config.space import Point, Range, WeightedSource, recipe_at
from sweepcp.runs.run_folder import RunIdentity, RunWriter
from sweepcp.runs.trial import BaseRecord, Cost, Trial, TrialOutcome
from sweepcp.scoring.scorecard import ItemScores, compare_with_base
from tests.make import experiment, items, trial


def scores_at(point: Point) -> tuple[float, float]:
    """Return the domain and general change in % at a point of the space.

    The best LR fraction is 0.3 for every share; the share trades one score for the other.
    """
    miss = 4 * abs(np.log10(float(point["lr_fraction"]) / 0.3))
    domain = 1 - float(point["general_share"])
    return 12 * domain - miss, -4 * domain**2 - miss / 2


def write_run(
    folder: Path,
    trials: int,
    *,
    documents: int = 40,
    steps: int = 10,
    space: str = "lr-mix",
    **statuses: str,
) -> Path:
    """Write a run folder of the quickstart whose scores follow `scores_at`.

    Args:
        folder: The run folder.
        trials: Number of trials.
        documents: Items of each suite member; all trials share the noise of the items.
        steps: Steps in the metrics of each trial.
        space: The search space, as of `--set space=`.
        **statuses: Statuses of trials that are not done: `t0003="diverged"`.
    """
    run_experiment = experiment(f"budget.trials={max(trials, 1)}", f"space={space}")
    rng = np.random.default_rng(5)
    measure = ItemMaker(documents, rng)
    base = BaseRecord(
        model="a base",
        parameters=111_040,
        max_lr=3e-3,
        items=measure(domain=0, general=0),
        environment={"device": "cpu", "precision": "fp32"},
        versions={"torch": "2"},
    )
    writer = RunWriter(folder)
    sources = {"python-docs": "aa", "python-code": "bb"}
    writer.start(run_experiment, RunIdentity(sources=sources))
    writer.write_base(base)
    for number in range(trials):
        point = point_of_trial(run_experiment, number, rng)
        status = statuses.get(f"t{number:04d}", "done")
        measured: tuple[ItemScores, ...] = ()
        if status == "done":
            domain, general = scores_at(point)
            measured = measure(domain=domain, general=general)
        outcome = TrialOutcome.model_validate({"status": status, "items": measured})
        record = trial_record(run_experiment, number, point, steps=steps)
        if measured:
            card = compare_with_base(trial=list(measured), base=list(base.items))
            scores = {"domain": card.select.domain, "general": card.select.general}
            record = record.model_copy(update={"scorecard": card, **scores})
        else:
            unscored = {"scorecard": None, "domain": None, "general": None}
            reason = "step 3 of 10: loss nan"
            record = record.model_copy(update={"status": status, "reason": reason, **unscored})
        writer.begin_trial(record.id)
        writer.append_metrics(record.id, step_rows(record.recipe, steps))
        writer.write_trial(record, outcome)
    return folder


class ItemMaker:
    """Makes items of three texts and a quiz with given changes against the base in %."""

    def __init__(self, documents: int, rng: np.random.Generator) -> None:
        self.documents = documents
        self.sizes = rng.uniform(50, 150, documents)
        self.noise = {name: rng.normal(0, 1.5, documents) for name in ("code", "docs", "docs_de")}

    def __call__(self, *, domain: float, general: float) -> tuple[ItemScores, ...]:
        right = [float(i % 4 < 2 + (domain > 5)) for i in range(self.documents)]
        return (
            self._text("code", "domain", language="python", change=domain),
            self._text("docs", "general", language="en", change=general),
            self._text("docs_de", "general", language="de", change=0.8 * general),
            items("domain", right, name="quiz", unit="accuracy", language="python"),
        )

    def _text(self, name: str, role: str, *, language: str, change: float) -> ItemScores:
        changes = change + (self.noise[name] * abs(change) / 10)
        amount = (2 * self.sizes * (1 - changes / 100)).tolist()
        return items(role, amount, self.sizes.tolist(), name=f"held_out_{name}", language=language)


def point_of_trial(searched: Experiment, number: int, rng: np.random.Generator) -> Point:
    """Return a random point of the space, or its first anchor for the first trial."""
    point: Point = {}
    for name, axis in searched.space.axes.items():
        if isinstance(axis, Range):
            point[name] = axis.from_unit(float(rng.uniform()))
        else:
            point[name] = axis.choices[number % 2]
    anchors = searched.space.anchors
    return dict(anchors[0]) if number == 0 and anchors else point


def trial_record(searched: Experiment, number: int, point: Point, *, steps: int) -> Trial:
    """Return the record of a done trial, without scores."""
    sources = [
        WeightedSource(name="python-docs", role="general", language="en", weight=1),
        WeightedSource(name="python-code", role="domain", language="python", weight=1),
    ]
    tried = recipe_at(point, sources, searched.training, tokens=1024 * steps, seed=0)
    portions = tried.mixture.portions
    return trial(
        number,
        0.0,
        0.0,
        proposed_by="anchor" if number == 0 else "tpe",
        point=point,
        recipe=tried,
        recipe_id=tried.id,
        tokens_by_source={p.source: round(p.share * tried.tokens) for p in portions},
        epochs_by_source={p.source: p.share / 10 for p in portions},
        cost=Cost(
            train_seconds=6,
            score_seconds=3,
            tokens=tried.tokens,
            tokens_per_second=170,
            worker="here, CPU",
        ),
        versions={"torch": "2"},
    )


def step_rows(tried: Recipe, steps: int) -> list[dict[str, object]]:
    """Return the first steps of a trial as in its metrics file."""
    return [
        {
            "step": step,
            "lr": tried.lr(step, max_lr=3e-3),
            "loss": 2 - step / 100,
            "grad_norm": 1.0,
            "tokens": {"python-code": 1024 * step},
        }
        for step in range(1, steps + 1)
    ]
