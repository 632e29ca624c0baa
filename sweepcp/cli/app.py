"""The command line. Imports wait until a command needs them."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, cast

import typer

import sweepcp

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data = typer.Typer(
    no_args_is_help=True, help="Corpora: build token stores, see what is in them, mine domain text."
)
app.add_typer(data, name="data")
ExperimentName = Annotated[
    str, typer.Argument(metavar="[EXPERIMENT]", help="A file, or the name of a shipped one.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: budget.tokens=65536"),
]
Address = Annotated[str | None, typer.Option(help="A Ray cluster; by default this machine.")]
MaxRegression = Annotated[
    float | None,
    typer.Option(metavar="X", help="Most domain gain, general regression at most X %."),
]
Knee = Annotated[bool, typer.Option("--knee", help="Choose the knee of the front.")]
WeightsFlag = Annotated[
    str | None, typer.Option("--weights", metavar="D,G", help="Largest D·domain + G·general.")
]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="A folder that `sweepcp search` wrote.")
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sweepcp {sweepcp.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Find the LR fraction and the replay share of a continued-pretraining run on small proxy models."""


@app.command()
def plan(experiment: ExperimentName = "quickstart", sets: Sets = None) -> None:
    """Show what a search would run and cost, and every warning. Trains nothing, writes nothing."""
    from sweepcp.console.plan import show_plan
    from sweepcp.console.progress import make_console
    from sweepcp.corpora.experiment import load_experiment
    from sweepcp.search.plan import make_plan

    loaded, files = load_experiment(experiment, sets or ())
    show_plan(make_console(), make_plan(loaded, files))


@app.command()
def search(
    experiment: ExperimentName = "quickstart",
    out: Annotated[
        Path | None, typer.Option(help="The run folder; by default runs/<name of the experiment>.")
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Short for --set budget.trials=N.")] = None,
    sets: Sets = None,
    address: Address = None,
) -> None:
    """Run the trials of an experiment, or go on with them, and show the front."""
    from sweepcp.console.progress import ConsoleProgress, make_console
    from sweepcp.console.tables import show_front, show_next_commands
    from sweepcp.corpora.experiment import load_experiment
    from sweepcp.search.search import run_search

    if address is None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = (
            "0"  # Ray's name for: bind to the loopback address
        )
    overrides = list(sets or ()) + ([f"budget.trials={trials}"] if trials is not None else [])
    loaded, files = load_experiment(experiment, overrides)
    folder = out or Path("runs") / loaded.name
    console = make_console()
    with ConsoleProgress(console) as screen:
        run = run_search(loaded, files, folder, address, screen)
    if not any(t.status == "done" for t in run.trials):
        reasons = {t.why for t in run.trials}
        typer.echo(f"No trial is done: {'; '.join(sorted(reasons))}", err=True)
        raise typer.Exit(1)
    show_front(console, run)
    show_next_commands(console, folder, experiment)


@data.command()
def build(
    experiment: ExperimentName = "quickstart", sets: Sets = None, address: Address = None
) -> None:
    """Read, filter and tokenise every source of an experiment into its token store. Goes on after any stop.

    `search` does the same where it is needed. A store is built once, and found again as long as nothing changed.
    """
    from sweepcp.console.progress import ConsoleProgress, make_console
    from sweepcp.console.tables import store_table
    from sweepcp.corpora.experiment import load_experiment
    from sweepcp.corpora.stores import build_stores

    loaded, files = load_experiment(experiment, sets or ())
    console = make_console()
    with ConsoleProgress(console) as screen:
        stores = build_stores(loaded, files, screen, address)
    console.print(store_table(list(stores.values())))
    for name in (s.name for s in loaded.sources if s.planned_tokens is not None):
        typer.echo(f"{name} is planned: there is nothing to build")


@data.command()
def check(
    experiment: ExperimentName = "quickstart",
    sets: Sets = None,
    address: Address = None,
    write: Annotated[
        Path | None, typer.Option(help="Write overlapping documents, for `exclude` of a source.")
    ] = None,
) -> None:
    """Show sizes, languages, the base's loss, and training text that repeats what the suites measure with.

    Exits with status 1 when training documents hold items of a suite.
    """
    from sweepcp.console.check import show_check
    from sweepcp.console.progress import ConsoleProgress, make_console
    from sweepcp.corpora.check import check_corpora as check_texts
    from sweepcp.corpora.check import write_overlaps
    from sweepcp.corpora.experiment import load_experiment

    loaded, files = load_experiment(experiment, sets or ())
    console = make_console()
    with ConsoleProgress(console) as screen:
        result = check_texts(loaded, files, screen, address)
    show_check(console, result)
    if write is not None:
        write_overlaps(write, result.overlaps)
    raise typer.Exit(1 if result.overlaps else 0)


@data.command()
def mine(
    experiment: Annotated[
        str, typer.Argument(metavar="EXPERIMENT", help="A file, or the name of a shipped one.")
    ],
    corpus: Annotated[str, typer.Option(help="The source to look through.")],
    out: Annotated[
        Path,
        typer.Option(help="The folder to write; with labels in its sample.jsonl, run it again."),
    ],
    precision: Annotated[
        float, typer.Option(help="Share of what is selected that is domain.")
    ] = 0.9,
    sets: Sets = None,
    address: Address = None,
) -> None:
    """Find domain text in a general corpus: what a classifier of the experiment's domain and general text selects.

    Writes documents, a source to paste, the list that excludes them from the corpus, and a sample to label.
    """
    from sweepcp.console.progress import ConsoleProgress, make_console
    from sweepcp.console.tables import show_mining
    from sweepcp.corpora.experiment import load_experiment
    from sweepcp.corpora.mining import mine_corpus as mine_corpus

    loaded, files = load_experiment(experiment, sets or ())
    console = make_console()
    with ConsoleProgress(console) as screen:

        def show(what: str, done: int, of: int) -> None:
            screen.stage("mine", done, of, f"{what} {corpus}")

        result = mine_corpus(loaded.sources, files, corpus, out, precision, address, show)
    show_mining(console, result, out)


@data.command()
def mix(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="A folder that `sweepcp promote` wrote.")
    ],
    out: Annotated[
        Path, typer.Option(help="The folder to write: a data set as `datasets` saves it.")
    ],
    rows: Annotated[
        str, typer.Option(help="sequences, or documents: what each sequence holds of one.")
    ] = "sequences",
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """Write a run's tokens in their order, for trainers that cannot mix by tokens. Needs 9 bytes a token, twice."""
    from sweepcp.data.materialize import materialize_mix
    from sweepcp.errors import InvalidInput
    from sweepcp.full_run.preflight import check_ready, stores_of
    from sweepcp.promote.bundle import load_bundle

    if rows != "sequences" and rows != "documents":
        raise InvalidInput(
            file="data mix",
            key="--rows",
            found=rows,
            rule="sequences or documents",
            fix="name one of the two",
        )
    opened = load_bundle(bundle.absolute())
    check_ready(opened.path, opened.bundle)
    tokens = materialize_mix(
        opened.bundle.recipe, stores_of(opened.bundle), out.absolute(), cast("Rows", rows), workers
    )
    typer.echo("\n".join(f"{source}: {count:,} tokens" for source, count in tokens.items()))
    typer.echo(f"{out}")


@app.command()
def front(
    run: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Write one row a trial to a CSV file.")] = None,
    max_regression: MaxRegression = None,
    knee: Knee = False,
    weights: WeightsFlag = None,
) -> None:
    """Show base, trials, front and choice of a run; choose by another rule without running anything again."""
    from sweepcp.report.tables import run_as_dict, write_csv
    from sweepcp.runs.run_folder import read_run

    loaded = read_run(run).choosing(**_rule(max_regression, knee, weights))
    if csv is not None:
        write_csv(loaded, csv)
    if as_json:
        typer.echo(json.dumps(run_as_dict(loaded), indent=1, ensure_ascii=False, allow_nan=False))
    elif csv is None:
        from sweepcp.console.progress import make_console
        from sweepcp.console.tables import show_front

        show_front(make_console(), loaded)


@app.command()
def report(
    run: RunFolder,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="By default report.html in the run folder.")
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the front instead: .png, .svg or .pdf."),
    ] = None,
    max_regression: MaxRegression = None,
    knee: Knee = False,
    weights: WeightsFlag = None,
) -> None:
    """Write a run as one page to read and to forward, which loads nothing from elsewhere; or its front as an image."""
    from sweepcp.report.labels import choice_sentence
    from sweepcp.report.views import load_run

    loaded = load_run(run).choosing(**_rule(max_regression, knee, weights))
    if image is not None:
        from sweepcp.report.charts import front_chart as front_chart
        from sweepcp.report.matplotlib_figures import save_image

        save_image(front_chart(loaded, loaded.known), image)
    if html is not None or image is None:
        from sweepcp.report.page import write_report

        html = html or run / "report.html"
        write_report(loaded, html)
    typer.echo(choice_sentence(loaded))
    typer.echo("\n".join(str(file) for file in (html, image) if file is not None))


@app.command()
def watch(
    run: RunFolder,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="On the loopback address; 0: any that is free.")
    ] = 8765,
) -> None:
    """Show the report of a run in a browser while the search goes on. The page renews itself."""
    from sweepcp.report.server import serve

    serve(run, port, lambda text: typer.echo(text))


@app.command()
def promote(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A folder that `sweepcp search` wrote.")
    ] = None,
    target: Annotated[str, typer.Option(help="A target file, or the name of a shipped one.")] = "",
    out: Annotated[Path | None, typer.Option(help="The bundle to write.")] = None,
    trial: Annotated[str | None, typer.Option(help="A trial by its id, instead of a rule.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Instead of RUN: a published recipe, a file or a name.")
    ] = None,
    max_regression: MaxRegression = None,
    knee: Knee = False,
    weights: WeightsFlag = None,
) -> None:
    """Translate the chosen recipe to the target's model, budget and machines, into a launch bundle."""
    from sweepcp.config.target import load_target
    from sweepcp.console.bundle import show_bundle
    from sweepcp.console.progress import make_console
    from sweepcp.errors import InvalidInput
    from sweepcp.promote.candidate import candidate_from_publication, candidate_from_run
    from sweepcp.promote.translate import promote as make_bundle
    from sweepcp.runs.run_folder import read_run

    rule = _rule(max_regression, knee, weights)
    if (run is None) == (recipe is None):
        raise InvalidInput(
            file="promote",
            key="RUN",
            found=run,
            rule="either a run, or --recipe",
            fix="name one of the two",
        )
    if trial is not None and rule:
        raise InvalidInput(
            file="promote",
            key="--trial",
            found=trial,
            rule="a trial, or a rule that chooses one",
            fix="leave one out",
        )
    if recipe is not None and (trial is not None or rule):
        raise InvalidInput(
            file="promote",
            key="--recipe",
            found=recipe,
            rule="a published recipe is one; no rule chooses",
            fix="leave the rule out",
        )
    if not target or out is None:
        what = "--out" if target else "--target"
        raise InvalidInput(
            file="promote",
            key=what,
            found=None,
            rule="promotion needs a target and a folder to write",
            fix=f"add {what}",
        )
    wanted, file = load_target(target)
    candidate = (
        candidate_from_run(read_run(run).choosing(**rule), trial)
        if run is not None
        else candidate_from_publication(str(recipe))
    )
    show_bundle(make_console(), make_bundle(candidate, wanted, file, out), out)


@app.command()
def export(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="A folder that `sweepcp promote` wrote.")
    ],
    to: Annotated[
        list[str],
        typer.Option("--to", metavar="NAME", help="A trainer, a launcher; give it twice for both."),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write, on storage that all nodes see.")],
    site: Annotated[
        str | None, typer.Option(help="What the cluster asks: a site file, or a shipped one.")
    ] = None,
    verify: Annotated[
        list[str] | None,
        typer.Option(metavar="PYTHON", help="Let the trainer that is installed there parse it."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse any difference from the recipe.")
    ] = False,
) -> None:
    """Write a bundle for the trainer and the launcher that you run already.

    Trainers: deepspeed (sweepcp train), hf-trainer, axolotl, llama-factory, megatron-lm, torchtitan.
    Launchers: torchrun, slurm, ray, kubeflow, skypilot.
    """
    from sweepcp.config.site import load_site
    from sweepcp.console.export import show_export
    from sweepcp.console.progress import make_console
    from sweepcp.export.write import write_export as write_export
    from sweepcp.promote.bundle import load_bundle

    placed, file = load_site(site)
    done = write_export(
        load_bundle(bundle.absolute()), to, placed, file, out.absolute(), verify or (), strict
    )
    show_export(make_console(), done)
    raise typer.Exit(0 if all(checked.good for checked in done.checked.values()) else 1)


@app.command()
def train(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="A folder that `sweepcp promote` wrote.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The folder of the run; by default run/ in the bundle.")
    ] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Start the processes with Ray Train, on --address.")
    ] = False,
    address: Address = None,
) -> None:
    """Run a bundle with DeepSpeed ZeRO-3, or go on with it; start it with torchrun, deepspeed or srun.

    One process on one GPU or CPU: call it as it is. Several: torchrun --nproc-per-node 8 -m sweepcp train BUNDLE
    """
    from sweepcp.full_run.preflight import check_ready
    from sweepcp.promote.bundle import load_bundle

    opened = load_bundle(bundle.absolute())
    check_ready(opened.path, opened.bundle)
    folder = (out or opened.path / "run").absolute()
    if (folder / "scorecard.json").exists():
        if os.environ.get("RANK", "0") == "0":
            typer.echo(f"finished: {folder}/model and {folder}/scorecard.json")
        return
    if ray:
        from sweepcp.full_run.ray_launcher import run_with_ray

        run_with_ray(opened, folder, address)
        return
    from sweepcp.errors import Alarmed
    from sweepcp.full_run.run import full_run
    from sweepcp.training.loop import Diverged

    try:
        full_run(opened, folder, lambda text: typer.echo(text))
    except (Alarmed, Diverged) as error:
        if os.environ["RANK"] == "0":
            typer.echo(f"Error: the run ended: {error}", err=True)
        raise typer.Exit(3) from None  # a scheduler starts again what ended with 1
    if os.environ["RANK"] == "0":
        from sweepcp.console.progress import make_console
        from sweepcp.console.tables import show_scorecard
        from sweepcp.scoring.scorecard import Scorecard

        show_scorecard(
            make_console(),
            Scorecard.model_validate_json((folder / "scorecard.json").read_bytes()),
            "the run",
        )
        typer.echo(f"{folder}/model")


@app.command()
def score(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A model folder in the Hugging Face format.")
    ],
    run: Annotated[
        Path,
        typer.Option(help="A folder that `sweepcp search` wrote: whose suites, and whose base."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Score a model on the suites of a run, beside the run's base."""
    from sweepcp.console.progress import make_console
    from sweepcp.console.tables import show_scorecard
    from sweepcp.corpora.provenance import base_items, job_of
    from sweepcp.runs.run_folder import read_run

    loaded = read_run(run)
    base = base_items(loaded)
    job = job_of(loaded, model.absolute())

    from sweepcp.scoring.scorecard import compare_with_base
    from sweepcp.search.trial_runner import TrialRunner
    from sweepcp.training.loop import Diverged

    try:
        card = compare_with_base(TrialRunner(job).scorer.score(), base)
    except Diverged as error:
        typer.echo(f"Error: no score: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(card.model_dump_json(indent=1))
    else:
        show_scorecard(make_console(), card, str(model))


def _rule(max_regression: float | None, knee: bool, weights: str | None) -> dict[str, object]:
    """The rule that the flags state, for `Run.choosing`; empty if they state none."""
    from sweepcp.errors import InvalidInput

    stated: dict[str, object] = {}
    if max_regression is not None:
        stated["max_regression"] = max_regression
    if knee:
        stated["knee"] = True
    if weights is not None:
        try:
            domain, general = (float(x) for x in weights.split(","))
        except ValueError:
            raise InvalidInput(
                file="--weights",
                key="--weights",
                found=weights,
                rule="two numbers",
                fix="write --weights 1,2",
            ) from None
        stated["weights"] = {"domain": domain, "general": general}
    return stated


@app.command()
def schema(
    out: Annotated[Path | None, typer.Option(help="A file to write instead of printing.")] = None,
) -> None:
    """Write the JSON schema of experiment files, for editors."""
    from sweepcp.config.experiment import json_schema
    from sweepcp.util.files import write_json

    content = json_schema()
    if out is not None:
        write_json(out, content)
    else:
        typer.echo(json.dumps(content, indent=1))


def main() -> None:
    """Run the command line; what a user can mend exits with status 2, a stopped search with 130 or 143."""
    from sweepcp.errors import BaseNotScored, InvalidInput, Stopped

    try:
        app()
    except InvalidInput as error:
        rank = os.environ.get("RANK", "0")
        typer.echo(f"Error{f' on rank {rank}' * (rank != '0')}: {error}", err=True)
        sys.exit(2)
    except BaseNotScored as error:
        typer.echo(f"Error: the base cannot be scored: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo(
            "Stopped. What is finished is kept; the same command goes on from there.", err=True
        )
        sys.exit(130)
    except Stopped as stop:
        if os.environ.get("RANK", "0") == "0":
            typer.echo(
                "Stopped. What is finished is kept; the same command goes on from there.", err=True
            )
        sys.exit(128 + stop.signal)
