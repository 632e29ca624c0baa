"""Export of a bundle: render the files of a trainer and a launcher, write them, and verify them."""

import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sweepcp.config.site import Site
from sweepcp.errors import InvalidInput, located
from sweepcp.export.export_plan import ExportInput, ExportPlan
from sweepcp.export.launchers import kubeflow, ray, skypilot, slurm, torchrun
from sweepcp.export.launchers.shell import (
    export_lines,
    process_environment,
    quote_words,
    setup_block,
)
from sweepcp.export.recipe_facts import FACTS
from sweepcp.export.text_checks import check_bundle_texts, check_file_names, plain_path
from sweepcp.export.trainers import (
    axolotl,
    deepspeed,
    hf_trainer,
    llama_factory,
    megatron_lm,
    torchtitan,
)
from sweepcp.export.verify import Verification, verify_launcher, verify_trainer
from sweepcp.promote.bundle import LoadedBundle
from sweepcp.util.files import UMASK, new_folder, write_text

TRAINERS = {
    "deepspeed": deepspeed,
    "hf-trainer": hf_trainer,
    "axolotl": axolotl,
    "llama-factory": llama_factory,
    "megatron-lm": megatron_lm,
    "torchtitan": torchtitan,
}
LAUNCHERS = {
    "torchrun": torchrun,
    "slurm": slurm,
    "ray": ray,
    "kubeflow": kubeflow,
    "skypilot": skypilot,
}
WITHOUT_SIGNALS = ("ray",)
"""Launchers that run the trainer in a thread, which the scheduler's signals do not reach."""
SHELL_SUFFIXES = ("sh", "sbatch")
DRY_RUN_COMMANDS = {
    "slurm": ("sbatch --test-only", "job.sbatch"),
    "kubeflow": ("kubectl apply --dry-run=server -f", "trainjob.yaml"),
    "ray": ("kubectl apply --dry-run=server -f", "rayjob.yaml"),
}
"""Launcher → its command that validates a file without starting it, and the file."""


@dataclass(frozen=True)
class ExportResult:
    """An export: what it is made from, for whom, and what the peers parsed."""

    export_input: ExportInput
    trainer: str
    launcher: str
    plan: ExportPlan
    verifications: dict[str, Verification] = field(default_factory=dict)
    """Trainer or launcher → comparison; only of those that were asked and have a parser."""
    file_names: tuple[str, ...] = ()
    """Files that were written."""

    @property
    def start_command(self) -> str:
        """The command that starts the run."""
        return str(LAUNCHERS[self.launcher].start_command(self.export_input))

    @property
    def passed(self) -> bool:
        """Whether no peer parsed anything else than what the export says."""
        return all(verification.passed for verification in self.verifications.values())

    def status(self, name: str) -> str:
        """Return whether a trainer or launcher has parsed what was written for it."""
        verification = self.verifications.get(name)
        if verification is None:
            return "NOT VERIFIED"
        if not verification.passed:
            return f"NOT VERIFIED: {verification.peer} parsed different values, see SUMMARY.md"
        pending = "".join(f"; pending: {f.label}, {f.detail}" for f in verification.pending)
        return f"verified: parsed by {verification.peer}{pending}"


def write_export(
    loaded: LoadedBundle,
    names: Sequence[str],
    out: Path,
    *,
    site: Site,
    site_file: Path | None = None,
    pythons: Sequence[str] = (),
    strict: bool = False,
) -> ExportResult:
    """Write a bundle for a trainer and a launcher into a new folder, and verify it.

    Args:
        loaded: Bundle to export.
        names: A trainer, a launcher, or one of each.
        out: Folder to create.
        site: What the cluster requires of a job.
        site_file: File of `site`, named in errors; None without one.
        pythons: Interpreters in which the trainer, and possibly the launcher, are installed. Their
            parsers read the files, and each file's header states the result.
        strict: Refuse any difference between the trainer and the recipe.

    Raises:
        InvalidInput: The trainer or launcher cannot express the bundle, a name or path is unsafe,
            `strict` is set and the trainer differs, or a verification cannot run. `out` does not
            exist then.
    """
    trainer, launcher = choose_targets(names)
    loaded, out = replace(loaded, path=plain_path(loaded.path)), plain_path(out)
    check_bundle_texts(loaded, out)
    export_input = ExportInput(loaded, site, out)
    bundle_file = loaded.path / "bundle.json"
    with located(bundle_file):
        plan = TRAINERS[trainer].make_export_plan(export_input)
    if strict:
        _refuse_differences(trainer, plan)
    export = ExportResult(export_input, trainer, launcher, plan)
    with located(site_file or bundle_file):
        files = render_files(export)
    with new_folder(out) as work:
        _write_files(work, files)
    try:
        export = replace(export, verifications=_verify_with_peers(export, pythons))
    except BaseException:
        shutil.rmtree(out)
        raise
    if export.verifications:
        files = render_files(export)
        _write_files(out, files)
    return replace(export, file_names=tuple(files))


def choose_targets(names: Sequence[str]) -> tuple[str, str]:
    """Return the trainer and the launcher that are named; by default `deepspeed` and `torchrun`.

    Raises:
        InvalidInput: A name is unknown, there is none, or there are two of a kind.
    """
    for name in names:
        if name not in TRAINERS and name not in LAUNCHERS:
            raise InvalidInput(
                file="export",
                key="--to",
                found=name,
                rule=f"a trainer ({', '.join(TRAINERS)}) or a launcher ({', '.join(LAUNCHERS)})",
                fix="correct the name",
            )
    unique_names = dict.fromkeys(names)
    trainers = [name for name in unique_names if name in TRAINERS]
    launchers = [name for name in unique_names if name in LAUNCHERS]
    if not names or len(trainers) > 1 or len(launchers) > 1:
        raise InvalidInput(
            file="export",
            key="--to",
            found=list(names),
            rule="one trainer, one launcher, or one of each",
            fix="export each pair separately, into its own folder",
        )
    return trainers[0] if trainers else "deepspeed", launchers[0] if launchers else "torchrun"


def render_files(export: ExportResult) -> dict[str, str]:
    """Return the text of every file, with its header; writes nothing.

    Raises:
        InvalidInput: The launcher cannot express the bundle, or the site lacks what it needs. The
            error names no file.
    """
    plan, trainer, launcher = export.plan, export.trainer, export.launcher
    launcher_files = LAUNCHERS[launcher].render(export.export_input, plan)
    bodies = {name: (trainer, text) for name, text in plan.files.items()}
    bodies |= {name: (launcher, text) for name, text in launcher_files.items()}
    if plan.prepare:
        bodies["prepare.sh"] = (trainer, _prepare_script(export))
    check_file_names(bodies)
    files = {
        name: _with_header(export, name=name, text=text, written_for=peer)
        for name, (peer, text) in bodies.items()
    }
    files["SUMMARY.md"] = _summary(export, list(bodies))
    files["export.json"] = _export_record(export)
    return files


def _refuse_differences(trainer: str, plan: ExportPlan) -> None:
    if plan.differences:
        differences = "; ".join(f"{FACTS[d.fact]}: {d.behaviour}" for d in plan.differences)
        raise InvalidInput(
            file="export",
            key="--to",
            found=f"{trainer}: {differences}",
            rule="with --strict, a trainer that follows the recipe in every fact",
            fix="export to another trainer, or leave --strict out",
        )


def _verify_with_peers(export: ExportResult, pythons: Sequence[str]) -> dict[str, Verification]:
    """Verify with the trainer, which one of `pythons` must have, and with the launcher if found."""
    export_input, trainer, launcher = export.export_input, export.trainer, export.launcher
    verifications: dict[str, Verification] = {}
    not_installed: dict[str, str] = {}
    for python in pythons:
        if trainer not in verifications:
            verified = verify_trainer(export_input, export.plan, trainer=trainer, python=python)
            if isinstance(verified, str):
                not_installed[python] = verified
            else:
                verifications[trainer] = verified
        if launcher not in verifications:
            verification = verify_launcher(export_input, launcher=launcher, python=python)
            if verification is not None:
                verifications[launcher] = verification
    if pythons and trainer not in verifications:
        raise InvalidInput(
            file="export",
            key="--verify",
            found=not_installed,
            rule=f"at least one interpreter in which {trainer} is installed",
            fix=f"install {trainer} there, or name another interpreter",
        )
    return verifications


def _write_files(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        write_text(folder / name, text)
        if name.endswith(SHELL_SUFFIXES):
            (folder / name).chmod(0o777 & ~UMASK)


def _prepare_script(export: ExportResult) -> str:
    environment = process_environment(export.export_input, export.plan)
    exports = export_lines(export.export_input, environment)
    commands = "\n".join(quote_words(command) for command in export.plan.prepare)
    # What a Slurm job needs to find its Python is needed here, too.
    setup = setup_block(export.export_input.site.slurm.setup) if export.launcher == "slurm" else ""
    return f"{setup}set -euo pipefail\n{exports}{commands}\n"


def _with_header(export: ExportResult, *, name: str, text: str, written_for: str) -> str:
    """Return a file's text with recipe, bundle, status and start command at its top."""
    header = {
        "recipe": export.export_input.bundle.recipe_id,
        "bundle": export.export_input.loaded.id,
        "for": f"{export.trainer} on {export.launcher}",
        "status": export.status(written_for),
        "run": export.start_command,
    }
    suffix = name.rpartition(".")[2]
    if suffix == "json":
        return json.dumps({"sweepcp": header} | json.loads(text), indent=1) + "\n"
    comments = "".join(f"# sweepcp {key}: {value}\n" for key, value in header.items())
    shebang = "#!/usr/bin/env bash\n" if suffix in SHELL_SUFFIXES else ""
    return shebang + comments + text


def _summary(export: ExportResult, names: list[str]) -> str:
    """Return `SUMMARY.md`; `names` are those of the trainer's and the launcher's files."""
    bundle, recipe = export.export_input.bundle, export.export_input.bundle.recipe
    max_lr = recipe.lr_fraction * bundle.model.max_lr
    shares = ", ".join(f"{p.source} {p.share:.2%}" for p in recipe.mixture.portions)
    differences = [f"{FACTS[d.fact]}: {d.behaviour}" for d in export.plan.differences]
    lines = [
        f"# {bundle.name}: {export.trainer} on {export.launcher}",
        "",
        f"Recipe {bundle.recipe_id}, bundle {export.export_input.loaded.id}.",
        f"{recipe.steps:,} steps of {recipe.batch_tokens:,} tokens, "
        f"sequence length {recipe.seq_len:,}, {recipe.schedule} schedule with max LR {max_lr:.4g}. "
        f"Token shares: {shares}.",
        "",
        *_section("Status", _status_items(export, names)),
        *_section("Run", _run_items(export)),
        *_section("Differences from the recipe", differences or ["None known."]),
    ]
    if export.plan.notes:
        lines += _section("Notes", list(export.plan.notes))
    lines += _section("Files", names)
    return "\n".join(lines)


def _section(title: str, items: list[str]) -> list[str]:
    return [f"## {title}", "", *(f"- {item}" for item in items), ""]


def _status_items(export: ExportResult, names: list[str]) -> list[str]:
    items = [f"{name}: {export.status(name)}" for name in (export.trainer, export.launcher)]
    command, file = DRY_RUN_COMMANDS.get(export.launcher, ("", ""))
    if file in names:
        dry_run = f"{command} {shlex.quote(f'{export.export_input.out}/{file}')}"
        items.append(f"{export.launcher} itself validates its file with `{dry_run}`")
    for name, verification in export.verifications.items():
        items += [f"{name} {problem}" for problem in verification.problems]
    return items


def _run_items(export: ExportResult) -> list[str]:
    items = []
    if without_store := export.export_input.sources_without_store:
        items.append(
            f"The run cannot start yet: no token store has been built for "
            f"{', '.join(without_store)}. Build the stores, and promote again."
        )
    if export.plan.prepare:
        prepare = f"`{quote_words(['bash', f'{export.export_input.out}/prepare.sh'])}`"
        items.append(f"Once, before the first start: {prepare}")
    items.append(f"Start: `{export.start_command}`")
    if export.launcher in WITHOUT_SIGNALS:
        on_term = f"Signals do not reach the trainer under {export.launcher}."
    elif export.plan.saves_on_term:
        on_term = "On SIGTERM the trainer saves a checkpoint and exits."
    else:
        on_term = "On SIGTERM the trainer exits without saving."
    items.append(f"Restarting resumes from the last checkpoint. {on_term}")
    items.append(LAUNCHERS[export.launcher].restart_policy(export.export_input, export.plan))
    if export.plan.starts_sweepcp:
        items.append(
            f"How the run ended is in `{export.export_input.run_folder}/ended.json`. Once it has "
            "finished (status 0), diverged or been stopped by an alarm (3), every other start ends "
            "in the same way; `--continue-after STEP` resumes it."
        )
    return items


def _export_record(export: ExportResult) -> str:
    """Return `export.json`, which readers and scripts take an export's coordinates from."""
    export_input = export.export_input
    bundle, hardware = export_input.bundle, export_input.bundle.target.hardware
    peers = (export.trainer, export.launcher)
    content = {
        "recipe_id": bundle.recipe_id,
        "bundle": str(export_input.loaded.path),
        "bundle_id": export_input.loaded.id,
        "trainer": export.trainer,
        "launcher": export.launcher,
        "nodes": hardware.nodes,
        "per_node": hardware.per_node,
        "steps": bundle.recipe.steps,
        "stores": export_input.store_folders,
        "model": export_input.model,
        "env": export.plan.env,
        "differences": {d.fact: d.behaviour for d in export.plan.differences},
        "status": {name: export.status(name) for name in peers},
    }
    return json.dumps(content, indent=1) + "\n"
