"""The recipe to promote: that of a trial of a run, or of a publication."""

from dataclasses import dataclass
from typing import Any

from sweepcp.config.base_model import BaseSpec
from sweepcp.config.published_recipe import PublishedRecipe
from sweepcp.config.recipe import Mixture, TrainingMethod
from sweepcp.config.suites import MemberSpec, Suites
from sweepcp.config.target import TargetCorpus
from sweepcp.config.validation import validate
from sweepcp.config.yaml_files import find_config_file, read_yaml
from sweepcp.corpora.provenance import (
    base_items,
    base_model_of_run,
    check_tasks_of_run,
    stores_of_run,
)
from sweepcp.errors import InvalidInput
from sweepcp.promote.bundle import Lineage, ProxyResult
from sweepcp.runs.caveats import caveats_of
from sweepcp.runs.run_folder import Run
from sweepcp.runs.trial import Trial

HELD_OUT_ITEMS, HELD_OUT_CHARS = 500, 20_000
"""Held-out documents, and characters of each, that are scored of a source that no suite scores."""


@dataclass(frozen=True)
class Candidate:
    """A recipe to promote, and what is known about it."""

    method: TrainingMethod
    lr_fraction: float
    mixture: Mixture
    seed: int
    suites: Suites
    lineage: Lineage
    assumptions: list[str]
    proxy: ProxyResult | None
    """None for a published recipe."""
    run: Run | None
    """None for a published recipe."""

    def read_steps(self) -> list[dict[str, Any]]:
        """Read the metrics of the trial; none for a published recipe.

        Raises:
            InvalidInput: The metrics file is corrupt, or has not all of its steps.
        """
        if self.run is None:
            return []
        trial_id = str(self.lineage.trial)
        steps, expected = self.run.read_steps(trial_id), self.run.by_id[trial_id].recipe.steps
        if len(steps) != expected:
            raise InvalidInput(
                file=self.run.trial_folder(trial_id) / "metrics.jsonl",
                key="the lines",
                found=len(steps),
                rule=f"the {expected} steps of the trial",
                fix="restore the file from a backup, or promote another trial",
            )
        return steps


def candidate_from_run(run: Run, trial_id: str | None) -> Candidate:
    """Return the trial that a run's rule chooses, or the trial with an id.

    Raises:
        InvalidInput: No trial meets the rule, the trial does not exist or is not done, or the files
            of a task have changed since.
    """
    check_tasks_of_run(run)
    trial = _chosen_trial(run) if trial_id is None else _done_trial(run, trial_id)
    return Candidate(
        method=trial.recipe,
        lr_fraction=trial.recipe.lr_fraction,
        mixture=trial.recipe.mixture,
        seed=trial.recipe.seed,
        suites=run.experiment.suites,
        lineage=Lineage(
            run=str(run.path.resolve()),
            experiment=run.experiment.name,
            trial=trial.id,
            trial_recipe=trial.recipe_id,
            chosen_by="--trial" if trial_id else str(run.rule),
            published=None,
        ),
        assumptions=caveats_of(run, trial),
        proxy=_proxy_result(run, trial),
        run=run,
    )


def candidate_from_publication(name: str) -> Candidate:
    """Load a recipe file by its path or the name of a shipped one.

    Raises:
        InvalidInput: There is no such file, its content is not valid, or its mixture has sources of
            one role only.
    """
    path = find_config_file(name, kind="experiments/recipes", key="--recipe")
    published = validate(PublishedRecipe, read_yaml(path), path)
    members: dict[str, list[MemberSpec]] = {"domain": [], "general": []}
    for portion in published.mixture.portions:
        members[portion.role].append(held_out_member(portion.source))
    if not all(members.values()):
        raise InvalidInput(
            file=path,
            key="mixture",
            found=sorted(role for role in members if members[role]),
            rule="sources of both roles, so that gain and regression can be measured",
            fix="add a source of the other role, with share 0 if it is not trained on",
        )
    return Candidate(
        method=published,
        lr_fraction=published.lr_fraction,
        mixture=published.mixture,
        seed=published.seed,
        suites=Suites(domain=tuple(members["domain"]), general=tuple(members["general"])),
        lineage=Lineage(
            run=None,
            experiment=None,
            trial=None,
            trial_recipe=None,
            chosen_by="publication",
            published=published.published,
        ),
        assumptions=[
            f"the recipe is published ({published.published}); it was not searched on this domain",
            *published.assumptions,
        ],
        proxy=None,
        run=None,
    )


def base_spec_of_run(run: Run) -> BaseSpec:
    """Return the base of a run as a folder or hub id.

    Raises:
        InvalidInput: The base was pretrained by the search and is no longer in the cache.
    """
    base = run.experiment.base
    if base.hub is not None:
        return base
    return BaseSpec(path=base_model_of_run(run), max_lr=base.max_lr)


def corpora_of_run(run: Run) -> dict[str, TargetCorpus]:
    """Return the token stores of a run with the epoch limits of its sources, by source name.

    Raises:
        InvalidInput: A store is no longer in the cache.
    """
    stores = stores_of_run(run)
    return {
        source.name: TargetCorpus(
            store=str(stores[source.name].path),
            max_epochs=source.max_epochs,
            beyond_max_epochs=source.beyond_max_epochs,
        )
        for source in run.experiment.sources
    }


def held_out_member(source: str) -> MemberSpec:
    """Return a suite member that scores a sample of a source's held-out text."""
    return MemberSpec(held_out=source, items=HELD_OUT_ITEMS, chars=HELD_OUT_CHARS)


def _chosen_trial(run: Run) -> Trial:
    """Return the trial that the run's rule chooses."""
    choice = run.front.choice
    if choice.id is None:
        nearest = f"; nearest is {choice.nearest}" if choice.nearest else ""
        raise InvalidInput(
            file=run.path,
            key="the choice",
            found="none",
            rule=f"a trial that meets the rule: {choice.rule}{nearest}",
            fix="run more trials, choose by another rule (--max-regression, --knee, --weights), "
            "or name a --trial",
        )
    return run.by_id[choice.id]


def _done_trial(run: Run, trial_id: str) -> Trial:
    """Return the trial with an id, which must be done."""
    trial = run.by_id.get(trial_id)
    if trial is None:
        raise InvalidInput(
            file=run.path,
            key="--trial",
            found=trial_id,
            rule=f"one of: {', '.join(run.by_id)}",
            fix="name a trial of this run",
        )
    if trial.status != "done":
        reason = f": {trial.short_reason}" if trial.short_reason else ""
        raise InvalidInput(
            file=run.path,
            key="--trial",
            found=f"{trial_id} is {trial.status}{reason}",
            rule="a trial that is done and was scored",
            fix="name another trial",
        )
    return trial


def _proxy_result(run: Run, trial: Trial) -> ProxyResult:
    """Return the size and the scores of a done trial."""
    base_items(run)
    assert trial.scorecard is not None
    assert run.base is not None
    recipe, scores = trial.recipe, trial.scorecard.report
    held_out = [member for member in scores.members if member.name.startswith("held_out_")]
    return ProxyResult(
        parameters=run.base.parameters,
        tokens=recipe.tokens,
        batch_tokens=recipe.batch_tokens,
        seq_len=recipe.seq_len,
        domain=scores.domain,
        domain_se=scores.domain_se,
        general=scores.general,
        general_se=scores.general_se,
        epochs=trial.epochs_by_source,
        held_out={member.name: member.change for member in held_out},
    )
