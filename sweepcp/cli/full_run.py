"""Commands that promote, export and run the full-size run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from sweepcp.cli.app import (
    Address,
    BundleFolder,
    Knee,
    MaxRegression,
    ScalarWeights,
    echo_json,
    path_of,
    rule_from_options,
)
from sweepcp.cli.rank import launcher_rank
from sweepcp.errors import Alarmed, Diverged, InvalidInput
from sweepcp.util.paths import check_new_folder, check_output_folder

if TYPE_CHECKING:
    from sweepcp.full_run.ending import Ending


def promote(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN", parser=path_of("RUN"), help="A folder that `sweepcp search` wrote."
        ),
    ] = None,
    target: Annotated[
        str, typer.Option(help="A target file, or the name of a shipped target.")
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", parser=path_of("--out"), help="The bundle to write."),
    ] = None,
    trial: Annotated[str | None, typer.Option(help="A trial by its id, instead of a rule.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Instead of RUN: a published recipe, a file or a name.")
    ] = None,
    max_regression: MaxRegression = None,
    knee: Knee = False,
    weights: ScalarWeights = None,
) -> None:
    """Translate the chosen recipe to the target's model, budget and hardware: a launch bundle."""
    from sweepcp.config.target import load_target
    from sweepcp.console.bundle import show_bundle
    from sweepcp.console.progress import make_console
    from sweepcp.promote.candidate import candidate_from_publication, candidate_from_run
    from sweepcp.promote.translate import promote as write_bundle
    from sweepcp.runs.run_folder import read_run

    rule = rule_from_options(max_regression, knee, weights)
    _check_promotion(run, trial=trial, recipe=recipe, has_rule=bool(rule))
    if not target or out is None:
        missing = "--out" if target else "--target"
        raise InvalidInput(
            file="promote",
            key=missing,
            found=None,
            rule="a target and a folder to write",
            fix=f"add {missing}",
        )
    check_new_folder(out, key="--out")
    loaded_target, file = load_target(target)
    if run is not None:
        candidate = candidate_from_run(read_run(run).with_rule(**rule), trial)
    else:
        candidate = candidate_from_publication(str(recipe))
    bundle = write_bundle(candidate, loaded_target, file=file, out=out)
    show_bundle(make_console(), bundle, out)


def _check_promotion(
    run: Path | None, *, trial: str | None, recipe: str | None, has_rule: bool
) -> None:
    """Refuse options of `promote` that exclude each other."""
    if (run is None) == (recipe is None):
        raise InvalidInput(
            file="promote",
            key="RUN",
            found=run,
            rule="either a run or --recipe",
            fix="pass one of the two",
        )
    if trial is not None and has_rule:
        raise InvalidInput(
            file="promote",
            key="--trial",
            found=trial,
            rule="either a trial or a rule that chooses one",
            fix="remove one of the two",
        )
    if recipe is not None and (trial is not None or has_rule):
        raise InvalidInput(
            file="promote",
            key="--recipe",
            found=recipe,
            rule="a published recipe, among which no rule chooses",
            fix="remove the rule or --trial",
        )


def export(
    bundle: BundleFolder,
    to: Annotated[
        list[str],
        typer.Option("--to", metavar="NAME", help="A trainer or a launcher; repeat for both."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            parser=path_of("--out"),
            help="The folder to write, on storage that all nodes mount.",
        ),
    ],
    site: Annotated[
        str | None,
        typer.Option(help="What the cluster requires of a job: a site file, or a shipped one."),
    ] = None,
    verify: Annotated[
        list[str] | None,
        typer.Option(metavar="PYTHON", help="Parse the files with the trainer installed there."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse any difference from the recipe.")
    ] = False,
) -> None:
    """Write a bundle for the trainer and the launcher that you already use.

    Trainers: deepspeed (sweepcp train), hf-trainer, axolotl, llama-factory, megatron-lm,
    torchtitan.
    Launchers: torchrun, slurm, ray, kubeflow, skypilot.
    """
    from sweepcp.config.site import load_site
    from sweepcp.console.export import show_export
    from sweepcp.console.progress import make_console
    from sweepcp.export.write import write_export
    from sweepcp.promote.bundle import load_bundle

    check_new_folder(out, key="--out")
    loaded_site, site_file = load_site(site)
    result = write_export(
        load_bundle(bundle.absolute()),
        to,
        out.absolute(),
        site=loaded_site,
        site_file=site_file,
        pythons=verify or (),
        strict=strict,
    )
    show_export(make_console(), result)
    raise typer.Exit(0 if result.passed else 1)


def train(
    bundle: BundleFolder,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            parser=path_of("--out"),
            help="The folder of the run; by default run/ in the bundle.",
        ),
    ] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Start the processes with Ray Train, on --address.")
    ] = False,
    address: Address = None,
    continue_after: Annotated[
        int | None,
        typer.Option(
            metavar="STEP",
            help="Resume a run that diverged or was stopped by an alarm at this step.",
        ),
    ] = None,
) -> None:
    """Run a bundle with DeepSpeed ZeRO-3, or resume it. Start it with torchrun, deepspeed or srun.

    For one process on one GPU or CPU, call it directly. For several:
    torchrun --nproc-per-node 8 -m sweepcp train BUNDLE

    A run that finished, diverged or was stopped by an alarm is not restarted: the command ends as
    the run did.
    """
    from sweepcp.full_run.ending import DIVERGED, read_final_ending
    from sweepcp.full_run.preflight import check_ready
    from sweepcp.promote.bundle import load_bundle

    loaded = load_bundle(bundle.absolute())
    folder = (out or loaded.path / "run").absolute()
    if ending := read_final_ending(folder, loaded.id, continue_after=continue_after):
        _repeat_ending(ending, folder)
    check_output_folder(folder, key="--out")
    check_ready(loaded)
    from sweepcp.console.log import log_to_console
    from sweepcp.console.progress import make_console
    from sweepcp.console.scorecard import show_scorecard

    console = make_console()
    try:
        if ray:
            from sweepcp.full_run.ray_launcher import run_with_ray

            card = run_with_ray(loaded, folder, address)
        else:
            from sweepcp.full_run.run import full_run

            with log_to_console(console):
                card = full_run(loaded, folder)
    except (Alarmed, Diverged):
        if launcher_rank() == "0" and (ending := read_final_ending(folder, loaded.id)):
            _repeat_ending(ending, folder)
        raise typer.Exit(DIVERGED) from None
    if launcher_rank() == "0":
        show_scorecard(console, card, "the run")
        _show_memory(read_final_ending(folder, loaded.id))
        typer.echo(f"{folder}/model")


def _repeat_ending(ending: "Ending", folder: Path) -> NoReturn:
    """Report how a run ended, and end in the same way."""
    if launcher_rank() != "0":
        raise typer.Exit(ending.status)
    if ending.status == 0:
        typer.echo(f"finished: {folder}/model and {folder}/scorecard.json")
        _show_memory(ending)
    else:
        typer.echo(
            f"Error: the run ended: {ending.reason}\n"
            "Another start ends in the same way. To resume from the last checkpoint anyway, add "
            f"--continue-after {ending.step}",
            err=True,
        )
    raise typer.Exit(ending.status)


def _show_memory(ending: "Ending | None") -> None:
    if ending is not None and ending.memory_line:
        typer.echo(ending.memory_line)


def score(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            parser=path_of("MODEL"),
            help="A model folder in the Hugging Face format.",
        ),
    ],
    run: Annotated[
        Path,
        typer.Option(
            metavar="RUN",
            parser=path_of("--run"),
            help="A run folder: its suites are used, and its base is compared with.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Score a model on the suites of a run, against the run's base."""
    from sweepcp.console.progress import make_console
    from sweepcp.console.scorecard import show_scorecard
    from sweepcp.runs.run_folder import read_run
    from sweepcp.search.rescore import score_model

    try:
        card = score_model(model.absolute(), read_run(run))
    except Diverged as error:
        typer.echo(f"Error: no score: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        echo_json(json.loads(card.model_dump_json()))
    else:
        show_scorecard(make_console(), card, str(model))
