"""The verb: a bundle, for a trainer on a launcher, as files."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sweepcp.config.site import Site
from sweepcp.errors import InvalidInput
from sweepcp.export.export_plan import ExportInput, ExportPlan
from sweepcp.export.launchers import kubeflow, ray, skypilot, slurm, torchrun
from sweepcp.export.launchers.shell import export_lines, process_environment, quote_words
from sweepcp.export.recipe_facts import FACTS
from sweepcp.export.text_checks import check_bundle_texts, check_file_names
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
from sweepcp.util.files import new_folder, write_text

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
SHELL_SUFFIXES = ("sh", "sbatch")
LAUNCHER_CHECKS = {
    "slurm": ("sbatch --test-only", "job.sbatch"),
    "kubeflow": ("kubectl apply --dry-run=server -f", "trainjob.yaml"),
    "ray": ("kubectl apply --dry-run=server -f", "rayjob.yaml"),
}
"""How a launcher itself says whether it takes its file."""


@dataclass(frozen=True)
class ExportResult:
    """What was written, and what its peers made of it."""

    source: ExportInput
    trainer: str
    launcher: str
    handoff: ExportPlan
    files: tuple[str, ...]
    checked: dict[str, Verification]
    """Trainer or launcher → what it parsed; without those that were not asked, or have no parser."""

    @property
    def how(self) -> str:
        """How the run is started."""
        return str(LAUNCHERS[self.launcher].how(self.source))

    def status(self, name: str) -> str:
        """Whether a peer has parsed what was written for it."""
        checked = self.checked.get(name)
        if checked is None:
            return "NOT VERIFIED"
        if not checked.good:
            return f"NOT VERIFIED: {checked.peer} parsed something else, see SUMMARY.md"
        later = "".join(f"; not yet: {FACTS[f.what]}, {f.detail}" for f in checked.open)
        return f"verified: parsed by {checked.peer}{later}"


def write_export(
    opened: LoadedBundle,
    names: Sequence[str],
    site: Site,
    where: Path | None,
    out: Path,
    pythons: Sequence[str],
    strict: bool,
) -> ExportResult:
    """Write a bundle for a trainer and a launcher into the new folder `out`, and let the peers in `pythons` parse it.

    `where` is the site's file. Raises `BadInput` for what cannot be written there, and with `strict` for any difference
    between the trainer and the recipe.
    """
    trainer, launcher = choose_targets(names)
    check_bundle_texts(opened, out)
    source = ExportInput(opened, site, out, where or opened.path / "bundle.json")
    handoff = TRAINERS[trainer].write(source)
    if strict and handoff.differences:
        said = "; ".join(f"{FACTS[d.fact]}: {d.there}" for d in handoff.differences)
        rule = "with --strict, a trainer that does all that the recipe says"
        raise InvalidInput(
            file="export",
            key="--to",
            found=f"{trainer}: {said}",
            rule=rule,
            fix="export to another trainer, or leave --strict out",
        )
    files = render_files(source, trainer, launcher, handoff, {})
    with new_folder(out) as work:
        _write_files(work, files)
    try:
        checked = _verify_with_peers(source, handoff, trainer, launcher, pythons)
    except BaseException:
        shutil.rmtree(out)
        raise
    if checked:
        files = render_files(source, trainer, launcher, handoff, checked)
        _write_files(out, files)
    return ExportResult(source, trainer, launcher, handoff, tuple(files), checked)


def choose_targets(names: Sequence[str]) -> tuple[str, str]:
    """A trainer and a launcher: the ones that are named, or `deepspeed` and `torchrun`. Raises `BadInput`."""
    for name in names:
        if name not in TRAINERS and name not in LAUNCHERS:
            rule = f"a trainer ({', '.join(TRAINERS)}) or a launcher ({', '.join(LAUNCHERS)})"
            raise InvalidInput(
                file="export", key="--to", found=name, rule=rule, fix="correct the name"
            )
    trainers = [name for name in dict.fromkeys(names) if name in TRAINERS]
    launchers = [name for name in dict.fromkeys(names) if name in LAUNCHERS]
    if not names or len(trainers) > 1 or len(launchers) > 1:
        rule = "one trainer, one launcher, or one of each"
        raise InvalidInput(
            file="export",
            key="--to",
            found=list(names),
            rule=rule,
            fix="export once for each pair, into folders of their own",
        )
    return trainers[0] if trainers else "deepspeed", launchers[0] if launchers else "torchrun"


def render_files(
    source: ExportInput,
    trainer: str,
    launcher: str,
    handoff: ExportPlan,
    checked: dict[str, Verification],
) -> dict[str, str]:
    """Every file with its head: a pure function."""
    export = ExportResult(source, trainer, launcher, handoff, (), checked)
    files = {name: (trainer, text) for name, text in handoff.files.items()}
    files |= {
        name: (launcher, text) for name, text in LAUNCHERS[launcher].write(source, handoff).items()
    }
    if handoff.prepare:
        commands = "\n".join(quote_words(command) for command in handoff.prepare)
        files["prepare.sh"] = (
            trainer,
            f"set -euo pipefail\n{export_lines(source, process_environment(source, handoff))}{commands}\n",
        )
    check_file_names(files)
    found = {name: _with_header(export, name, of, text) for name, (of, text) in files.items()}
    return found | {
        "SUMMARY.md": _summary(export, list(files)),
        "export.json": _export_record(export),
    }


def _with_header(export: ExportResult, name: str, of: str, text: str) -> str:
    bundle, kind = export.source.bundle, name.rpartition(".")[2]
    about = {
        "recipe": bundle.recipe_id,
        "bundle": export.source.opened.id,
        "for": f"{export.trainer} on {export.launcher}",
        "status": export.status(of),
        "run": export.how,
    }
    if kind == "json":
        return json.dumps({"sweepcp": about} | json.loads(text), indent=1) + "\n"
    head = "".join(f"# sweepcp {key}: {value}\n" for key, value in about.items())
    return ("#!/usr/bin/env bash\n" if kind in SHELL_SUFFIXES else "") + head + text


def _summary(export: ExportResult, names: list[str]) -> str:
    source, handoff = export.source, export.handoff
    bundle, recipe = source.bundle, source.bundle.recipe
    mix = ", ".join(f"{p.source} {p.share:.2%}" for p in recipe.mixture.portions)
    lines = [
        f"# {bundle.name}: {export.trainer} on {export.launcher}",
        "",
        f"Recipe {bundle.recipe_id}, bundle {source.opened.id}.",
        f"{recipe.steps:,} steps of {recipe.batch_tokens:,} tokens in sequences of {recipe.seq_len:,}; "
        f"max LR {recipe.lr_fraction * bundle.model.max_lr:.4g}, {recipe.schedule}; {mix}.",
        "",
        "## Status",
        "",
        *(f"- {name}: {export.status(name)}" for name in (export.trainer, export.launcher)),
    ]
    command, file = LAUNCHER_CHECKS.get(export.launcher, ("", ""))
    if file in names:
        lines.append(
            f"- whether {export.launcher} takes its file, it says itself: `{command} {source.out}/{file}`"
        )
    for name, checked in export.checked.items():
        lines += [f"- {name} parsed otherwise: {f.what}: {f.detail}" for f in checked.wrong]
        lines += [
            f"- {name} agrees where a difference was stated: {fact}" for fact in checked.missing
        ]
    lines += ["", "## Run", ""]
    if planned := [c.name for c in bundle.corpora if c.store is None]:
        lines.append(
            f"- It cannot run yet: {', '.join(planned)} have no token store. Build them, and promote again."
        )
    if handoff.prepare:
        lines.append(f"- once, where all nodes see the result: `bash {source.out}/prepare.sh`")
    saves = "saves first" if handoff.saves_on_term else "does not save"
    lines += [
        f"- `{export.how}`",
        f"- started again, it goes on from the last checkpoint; told to end, it {saves}",
    ]
    lines += ["", "## What differs from the recipe", ""]
    lines += [f"- {FACTS[d.fact]}: {d.there}" for d in handoff.differences] or [
        "Nothing that is known."
    ]
    if handoff.notes:
        lines += ["", "## What else is to be known", "", *(f"- {note}" for note in handoff.notes)]
    return "\n".join([*lines, "", "## Files", "", *(f"- {name}" for name in names)]) + "\n"


def _export_record(export: ExportResult) -> str:
    source, hardware = export.source, export.source.bundle.target.hardware
    content = {
        "recipe_id": source.bundle.recipe_id,
        "bundle": str(source.opened.path),
        "bundle_id": source.opened.id,
        "trainer": export.trainer,
        "launcher": export.launcher,
        "nodes": hardware.nodes,
        "per_node": hardware.per_node,
        "steps": source.bundle.recipe.steps,
        "stores": source.stores,
        "model": source.model,
        "env": export.handoff.env,
        "differences": {d.fact: d.there for d in export.handoff.differences},
        "status": {name: export.status(name) for name in (export.trainer, export.launcher)},
    }
    return json.dumps(content, indent=1) + "\n"


def _verify_with_peers(
    source: ExportInput, handoff: ExportPlan, trainer: str, launcher: str, pythons: Sequence[str]
) -> dict[str, Verification]:
    """The trainer must be found in one of the interpreters; the launcher is parsed where it is found, too."""
    found: dict[str, Verification] = {}
    missing = {}
    for python in pythons:
        if trainer not in found:
            result = verify_trainer(source, handoff, trainer, python)
            if isinstance(result, str):
                missing[python] = result
            else:
                found[trainer] = result
        if launcher not in found and (checked := verify_launcher(source, launcher, python)):
            found[launcher] = checked
    if pythons and trainer not in found:
        rule = f"one of them has {trainer} installed"
        raise InvalidInput(
            file="export",
            key="--verify",
            found=missing,
            rule=rule,
            fix="install it there, or name another interpreter",
        )
    return found


def _write_files(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        write_text(folder / name, text)
        if name.endswith(SHELL_SUFFIXES):
            (folder / name).chmod(0o755)
