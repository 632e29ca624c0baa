"""What is promoted: the recipe of a trial of a run, or of a publication, with what is known of it."""

from dataclasses import dataclass
from pathlib import Path

from sweepcp.config.base_model import BaseSpec
from sweepcp.config.published_recipe import PublishedRecipe
from sweepcp.config.recipe import Mixture, TrainingMethod
from sweepcp.config.suites import MemberSpec, Suites
from sweepcp.config.target import TargetCorpus
from sweepcp.config.validation import validate
from sweepcp.config.yaml_files import find_config_file, read_yaml
from sweepcp.corpora.provenance import base_of, stores_of
from sweepcp.errors import InvalidInput
from sweepcp.promote.bundle import Lineage, ProxyResult
from sweepcp.runs.caveats import caveats_of
from sweepcp.runs.run_folder import Run
from sweepcp.runs.trial import Trial

HELD_OUT_ITEMS, HELD_OUT_CHARS = 500, 20_000
"""Held-out documents of a source that a run reads where no suite says how many, and characters of each."""


@dataclass(frozen=True)
class Candidate:
    """A recipe to promote, with what is known of it."""

    method: TrainingMethod
    lr_fraction: float
    mixture: Mixture
    seed: int
    suites: Suites
    lineage: Lineage
    assumptions: list[str]
    proxy: ProxyResult | None
    run: Run | None

    @property
    def metrics(self) -> Path | None:
        """The steps of the trial."""
        return self.run.trial_folder(str(self.lineage.trial)) / "metrics.jsonl" if self.run else None


def candidate_from_run(run: Run, trial_id: str | None) -> Candidate:
    """The trial of a run that its rule chooses, or the one of an id. Raises `BadInput` unless it is done."""
    trial = _chosen_trial(run, trial_id)
    experiment = run.experiment
    recipe, card = trial.recipe, trial.scorecard
    assert card is not None
    assert run.base is not None
    return Candidate(
        method=recipe,
        lr_fraction=recipe.lr_fraction,
        mixture=recipe.mixture,
        seed=recipe.seed,
        suites=experiment.suites,
        lineage=Lineage(
            run=str(run.path.resolve()),
            experiment=experiment.name,
            trial=trial.id,
            trial_recipe=trial.recipe_id,
            chosen_by="--trial" if trial_id else str(run.rule),
            published=None,
        ),
        assumptions=caveats_of(run, trial),
        proxy=ProxyResult(
            parameters=run.base.parameters,
            tokens=recipe.tokens,
            batch_tokens=recipe.batch_tokens,
            seq_len=recipe.seq_len,
            domain=card.report.domain,
            domain_se=card.report.domain_se,
            general=card.report.general,
            general_se=card.report.general_se,
            epochs=trial.epochs_by_source,
            held_out={
                m.name: m.change for m in card.report.members if m.name.startswith("held_out_")
            },
        ),
        run=run,
    )


def candidate_from_publication(name: str) -> Candidate:
    """A recipe file, by its path or the name of a shipped one."""
    path = find_config_file(name, "experiments/recipes", "--recipe")
    published = validate(PublishedRecipe, read_yaml(path), path)
    members: dict[str, list[MemberSpec]] = {"domain": [], "general": []}
    for portion in published.mixture.portions:
        members[portion.role].append(first_documents(portion.source))
    if not all(members.values()):
        rule = "sources of both roles, so that gain and regression are measured"
        raise InvalidInput(
            file=path,
            key="mixture",
            found=sorted(k for k, v in members.items() if v),
            rule=rule,
            fix="add the other, with share 0",
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
            f"the recipe was published ({published.published}) and not searched on this domain",
            *published.assumptions,
        ],
        proxy=None,
        run=None,
    )


def base_of_run(run: Run) -> BaseSpec:
    """The base of a run, with a folder or hub id; `BadInput` where a pretrained one is gone."""
    experiment = run.experiment
    place, base = base_of(run, experiment), experiment.base
    return base if base.hub is not None else BaseSpec(path=place, max_lr=base.max_lr)


def corpora_of_run(run: Run) -> dict[str, TargetCorpus]:
    """The token stores of a run with the caps of its sources; `BadInput` where one is gone."""
    experiment = run.experiment
    stores = stores_of(run, experiment)
    return {
        s.name: TargetCorpus(
            store=str(stores[s.name].path),
            max_epochs=s.max_epochs,
            beyond_max_epochs=s.beyond_max_epochs,
        )
        for s in experiment.sources
    }


def first_documents(source: str) -> MemberSpec:
    """Held-out text of a source, not all of it."""
    return MemberSpec(held_out=source, items=HELD_OUT_ITEMS, chars=HELD_OUT_CHARS)


def _chosen_trial(run: Run, trial_id: str | None) -> Trial:
    by_id = run.by_id
    if trial_id is None:
        choice = run.front.choice
        if choice.id is None:
            near = f"; nearest is {choice.nearest}" if choice.nearest else ""
            fix = "search on, choose by another rule (--max-regression, --knee, --weights), or name a --trial"
            raise InvalidInput(
                file=run.path,
                key="the choice",
                found="none",
                rule=f"a trial that meets the rule: {choice.rule}{near}",
                fix=fix,
            )
        return by_id[choice.id]
    if trial_id not in by_id:
        raise InvalidInput(
            file=run.path,
            key="--trial",
            found=trial_id,
            rule=f"one of: {', '.join(by_id)}",
            fix="name a trial of this run",
        )
    trial = by_id[trial_id]
    if trial.status != "done":
        found = f"{trial_id} is {trial.status}" + (f": {trial.why}" if trial.why else "")
        raise InvalidInput(
            file=run.path,
            key="--trial",
            found=found,
            rule="a trial that is done, and so was scored",
            fix="name another trial",
        )
    return trial
