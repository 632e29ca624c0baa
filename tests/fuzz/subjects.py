"""The files that are damaged, and the ways in which the program reads each of them."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sweepcp.cli.entry import main
from sweepcp.config.base_model import BaseSpec
from sweepcp.config.experiment_file import parse_experiment
from sweepcp.config.model_dimensions import dimensions_of
from sweepcp.config.published_recipe import PublishedRecipe
from sweepcp.config.site import load_site
from sweepcp.config.target import load_target
from sweepcp.config.validation import validate
from sweepcp.config.yaml_files import read_yaml
from sweepcp.corpora.experiment import load_experiment
from sweepcp.corpora.identity import check_store
from sweepcp.data.encoding import text_encoder
from sweepcp.data.token_store import SPLITS, TokenStore
from sweepcp.full_run.ending import begin_attempt, read_final_ending
from sweepcp.models.base import tokenizer_id
from sweepcp.models.files import count_elements, model_fingerprint, read_config, read_shards
from sweepcp.promote.bundle import load_bundle, write_manifest
from sweepcp.promote.candidate import candidate_from_publication
from sweepcp.promote.translate import promote
from sweepcp.report.tables import run_as_dict
from sweepcp.runs.run_folder import read_run
from sweepcp.runs.uncertainty import estimate_certainty
from sweepcp.util.records import read_text
from tests.make import update_store

TRAINERS = ("deepspeed", "hf-trainer", "axolotl", "llama-factory", "megatron-lm", "torchtitan")
LAUNCHERS = ("torchrun", "slurm", "ray", "kubeflow", "skypilot")
Entry = Callable[[Path, int], None]
"""Reads the file in a workspace; the number of the case varies what else it does."""


@dataclass(frozen=True)
class Subject:
    """A file that is damaged."""

    path: str
    """Within the workspace."""
    format: str
    """yaml, json, jsonl, safetensors or bytes."""
    fast: tuple[Entry, ...]
    """Functions that read it, in milliseconds."""
    verbs: tuple[Entry, ...]
    """Commands that read it."""
    heavy: tuple[Entry, ...] = ()
    """Functions that read it and import torch."""
    rehash: Callable[[Path], None] | None = None
    """Corrects the hashes that other files state of it, so that it is read all the same."""


def run_command(*arguments: object) -> None:
    """Run the command line in this process; it raises SystemExit."""
    sys.argv = ["sweepcp", *map(str, arguments)]
    main()


def _front(work: Path, number: int) -> None:
    options: list[list[object]] = [["--json"], ["--knee"], ["--csv", work / "out"]]
    run_command("front", work / "run", *options[number % 3])


def _report(work: Path, number: int) -> None:
    run_command("report", work / "run", "--html", work / "out")


def _promote_run(work: Path, number: int) -> None:
    run_command(
        "promote",
        work / "run",
        "--target",
        work / "run_target.yaml",
        "--trial",
        "0000",
        "--out",
        work / "out",
    )


def _promote(work: Path, number: int) -> None:
    run_command(
        "promote",
        "--recipe",
        work / "recipe.yaml",
        "--target",
        work / "target.yaml",
        "--out",
        work / "out",
    )


def _promote_shipped(target: str) -> Entry:
    def run(work: Path, number: int) -> None:
        folder = work / "shipped/experiments"
        run_command(
            "promote", "--recipe", folder / "recipes/e-llama.yaml",
            "--target", folder / "targets" / target, "--out", work / "out",
        )  # fmt: skip

    return run


def _export(work: Path, number: int) -> None:
    trainer, launcher = TRAINERS[number % 6], LAUNCHERS[number % 5]
    run_command("export", work / "bundle", "--to", trainer, "--to", launcher, "--out", work / "out")


def _export_site(work: Path, number: int) -> None:
    site = work / "shipped/experiments/sites/example.yaml"
    trainer, launcher = TRAINERS[number % 6], LAUNCHERS[number % 5]
    run_command(
        "export",
        work / "bundle",
        "--to",
        trainer,
        "--to",
        launcher,
        "--site",
        site,
        "--out",
        work / "out",
    )


def _train(work: Path, number: int) -> None:
    run_command("train", work / "bundle", "--out", work / "full_run")


def _mix(work: Path, number: int) -> None:
    run_command("data", "mix", work / "bundle", "--out", work / "out")


def _plan(name: str) -> Entry:
    return lambda work, number: run_command("plan", work / name)


def _read_run(work: Path, number: int) -> None:
    run = read_run(work / "run")
    run_as_dict(run)
    if number % 4 == 0:  # takes as long as all the rest
        estimate_certainty(run)
    for trial in [*run.by_id, *run.unfinished]:
        run.read_steps(trial)


def _read_bundle(work: Path, number: int) -> None:
    load_bundle(work / "bundle")


def _read_ending(work: Path, number: int) -> None:
    # Not by `sweepcp train`, which starts the run wherever it is not told that it has ended.
    out, bundle = work / "full_run", load_bundle(work / "bundle").id
    read_final_ending(out, bundle, continue_after=20)
    begin_attempt(out, bundle)


def _read_store(work: Path, number: int) -> None:
    store = TokenStore(work / "stores/docs", "docs")
    store.train()
    store.sample_held_out(5)
    for split in SPLITS:
        store.document_hashes(split)
    check_store(store)


def _parse_experiment(name: str) -> Entry:
    return lambda work, number: (parse_experiment(work / name), None)[1]


def _load_model(work: Path, number: int) -> None:
    import torch

    from sweepcp.models.loading import load_model, load_tokenizer, make_encoder

    folder = work / "model"
    make_encoder(load_tokenizer(BaseSpec(path=str(folder), max_lr=1.0))).encode(["a text"])
    load_model(str(folder), revision=None, device=torch.device("cpu"))


def _find_checkpoint(work: Path, number: int) -> None:
    import torch

    from sweepcp.full_run.checkpoints import find_checkpoint, read_checkpoint
    from sweepcp.full_run.run_log import _logged_lines
    from sweepcp.training.process_group import ProcessGroup

    _logged_lines(work / "full_run/metrics.jsonl")
    group = ProcessGroup(device=torch.device("cpu"))
    found = find_checkpoint(work / "full_run/checkpoints", "bundle", group)
    if found is not None:
        dict(read_checkpoint(*found, group))


def _load_experiment(name: str) -> Entry:
    def load(work: Path, number: int) -> None:
        experiment, _ = load_experiment(str(work / name))
        tokenizer_id(experiment.base)

    return load


def _load_target(name: str) -> Entry:
    return lambda work, number: (load_target(str(work / name)), None)[1]


def _load_site(work: Path, number: int) -> None:
    load_site(str(work / "shipped/experiments/sites/example.yaml"))


def _load_recipe(name: str) -> Entry:
    return lambda work, number: (
        validate(PublishedRecipe, read_yaml(work / name), work / name),
        None,
    )[1]


def _read_model(work: Path, number: int) -> None:
    folder = work / "model"
    shards = read_shards(folder)
    dimensions_of(read_config(folder), count_elements(shards))
    model_fingerprint(folder, shards)
    content = read_text(folder / "tokenizer.json", fix="")
    text_encoder(content, prefix=[256], suffix=[257])


def _translate(work: Path, number: int) -> None:
    target, file = load_target(str(work / "target.yaml"))
    candidate = candidate_from_publication(str(work / "recipe.yaml"))
    promote(candidate, target, file=file, out=work / "out")


def _rehash_bundle(work: Path) -> None:
    write_manifest(work / "bundle")


def _rehash_store(work: Path) -> None:
    update_store(work / "stores/docs", {})


def all_subjects() -> list[Subject]:
    """Return every file of the workspace that is damaged."""
    return [
        *_run_files(),
        *_bundle_files(),
        *_model_files(),
        *_store_files(),
        *_written_by_people(),
    ]


def _run_files() -> list[Subject]:
    trial = "run/trials/0000"
    formats = {
        "run/experiment.json": "json",
        "run/base.json": "json",
        "run/trials/0001/trial.json": "json",
        f"{trial}/trial.json": "json",
        f"{trial}/items.json": "json",
        f"{trial}/metrics.jsonl": "jsonl",
    }
    verbs = (_front, _front, _front, _report, _promote_run)
    return [Subject(path, kind, (_read_run,), verbs) for path, kind in formats.items()]


def _bundle_files() -> list[Subject]:
    verbs = (_export, _train, _mix)
    files = [
        Subject(f"bundle/{name}", kind, (_read_bundle,), verbs, (), _rehash_bundle)
        for name, kind in (
            ("bundle.json", "json"),
            ("ds_config.json", "json"),
            ("plan.jsonl", "jsonl"),
        )
    ]
    files.append(Subject("bundle/manifest.json", "json", (_read_bundle,), verbs))
    full_run = [
        Subject(f"full_run/{name}.json", "json", (_read_ending,), ()) for name in ("run", "ended")
    ]
    checkpoint = "full_run/checkpoints/step-00000002"
    logged = {
        f"{checkpoint}/manifest.json": "json",
        f"{checkpoint}/rank-00000.safetensors": "safetensors",
        "full_run/checkpoints/latest": "bytes",
        "full_run/metrics.jsonl": "jsonl",
    }
    full_run += [Subject(path, kind, (), (), (_find_checkpoint,)) for path, kind in logged.items()]
    return files + full_run


def _model_files() -> list[Subject]:
    formats = {
        "config.json": "json",
        "generation_config.json": "json",
        "tokenizer.json": "json",
        "tokenizer_config.json": "json",
        "model.safetensors": "safetensors",
    }
    verbs = (_plan("model_experiment.yaml"), _promote, _mix, _export)
    fast = (_load_experiment("model_experiment.yaml"), _read_model)
    return [
        Subject(f"model/{name}", kind, fast, verbs, (_load_model,))
        for name, kind in formats.items()
    ]


def _store_files() -> list[Subject]:
    formats = {
        "store.json": "json",
        "train.bin": "bytes",
        "train.idx": "bytes",
        "held_out.jsonl": "jsonl",
        "train.hashes": "bytes",
        "held_out.hashes": "bytes",
    }
    return [
        Subject(
            f"stores/docs/{name}",
            kind,
            (_read_store,),
            (_promote, _mix),
            (),
            None if name == "store.json" else _rehash_store,
        )
        for name, kind in formats.items()
    ]


def _written_by_people() -> list[Subject]:
    shipped = "shipped/experiments"
    targets = ("llama-3.1-70b-60x8", "llama-3.1-8b-4x8", "quickstart-cpu", "smollm2-135m-1gpu")
    experiments = ("e-llama", "quickstart", "listings/experiment", "stories15m/experiment")
    spaces = ("lr-mix", "lr-mix-schedule")
    load_and_plan = (_load_experiment("experiment.yaml"),), (_plan("experiment.yaml"),)
    files = [
        Subject("experiment.yaml", "yaml", *load_and_plan),
        Subject("space.yaml", "yaml", *load_and_plan),
        Subject("data/code.jsonl", "jsonl", *load_and_plan),
        Subject("data/docs.jsonl", "jsonl", *load_and_plan),
        Subject("recipe.yaml", "yaml", (_load_recipe("recipe.yaml"), _translate), (_promote,)),
        Subject("target.yaml", "yaml", (_load_target("target.yaml"), _translate), (_promote,)),
        Subject(f"{shipped}/sites/example.yaml", "yaml", (_load_site,), (_export_site,)),
    ]
    recipe = f"{shipped}/recipes/e-llama.yaml"
    verb = _promote_shipped("llama-3.1-70b-60x8.yaml")
    files.append(Subject(recipe, "yaml", (_load_recipe(recipe),), (verb,)))
    for name in targets:
        path = f"{shipped}/targets/{name}.yaml"
        files.append(
            Subject(path, "yaml", (_load_target(path),), (_promote_shipped(f"{name}.yaml"),))
        )
    for name in experiments:
        path = f"{shipped}/{name}.yaml"
        # The data of the others are not here, so that their plans end at once.
        verbs = () if name == "quickstart" else (_plan(path),)
        files.append(Subject(path, "yaml", (_parse_experiment(path),), verbs))
    for name in spaces:
        experiment = f"{name}.yaml"
        entries = ((_parse_experiment(experiment),), (_plan(experiment),))
        files.append(Subject(f"shipped/search_spaces/{name}.yaml", "yaml", *entries))
    return files
