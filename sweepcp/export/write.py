"""The verb: a bundle, for a trainer on a launcher, as files."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sweepcp.errors import BadInput
from sweepcp.export.facts import FACTS
from sweepcp.export.handoff import Handoff, Source
from sweepcp.export.launchers import kubeflow, ray, skypilot, slurm, torchrun
from sweepcp.export.launchers.shell import environment, exports, words
from sweepcp.export.safe import check_files, check_texts
from sweepcp.export.site import Site
from sweepcp.export.trainers import axolotl, deepspeed, hf_trainer, llama_factory, megatron_lm, torchtitan
from sweepcp.export.verify import Checked, check_launcher, check_trainer
from sweepcp.files import new_folder, write_text
from sweepcp.promote.bundle import Opened

TRAINERS = {
    "deepspeed": deepspeed,
    "hf-trainer": hf_trainer,
    "axolotl": axolotl,
    "llama-factory": llama_factory,
    "megatron-lm": megatron_lm,
    "torchtitan": torchtitan,
}
LAUNCHERS = {"torchrun": torchrun, "slurm": slurm, "ray": ray, "kubeflow": kubeflow, "skypilot": skypilot}
BASH = ("sh", "sbatch")
CHECKS = {
    "slurm": ("sbatch --test-only", "job.sbatch"),
    "kubeflow": ("kubectl apply --dry-run=server -f", "trainjob.yaml"),
    "ray": ("kubectl apply --dry-run=server -f", "rayjob.yaml"),
}
"""How a launcher itself says whether it takes its file."""


@dataclass(frozen=True)
class Export:
    """What was written, and what its peers made of it."""

    source: Source
    trainer: str
    launcher: str
    handoff: Handoff
    files: tuple[str, ...]
    checked: dict[str, Checked]
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


def export(
    opened: Opened,
    names: Sequence[str],
    site: Site,
    where: Path | None,
    out: Path,
    pythons: Sequence[str],
    strict: bool,
) -> Export:
    """Write a bundle for a trainer and a launcher into the new folder `out`, and let the peers in `pythons` parse it.

    `where` is the site's file. Raises `BadInput` for what cannot be written there, and with `strict` for any difference
    between the trainer and the recipe.
    """
    trainer, launcher = choose(names)
    check_texts(opened, out)
    source = Source(opened, site, out, where or opened.path / "bundle.json")
    handoff = TRAINERS[trainer].write(source)
    if strict and handoff.differences:
        said = "; ".join(f"{FACTS[d.fact]}: {d.there}" for d in handoff.differences)
        rule = "with --strict, a trainer that does all that the recipe says"
        raise BadInput("export", "--to", f"{trainer}: {said}", rule, "export to another trainer, or leave --strict out")
    files = render(source, trainer, launcher, handoff, {})
    with new_folder(out) as work:
        _write(work, files)
    try:
        checked = _verify(source, handoff, trainer, launcher, pythons)
    except BaseException:
        shutil.rmtree(out)
        raise
    if checked:
        files = render(source, trainer, launcher, handoff, checked)
        _write(out, files)
    return Export(source, trainer, launcher, handoff, tuple(files), checked)


def choose(names: Sequence[str]) -> tuple[str, str]:
    """A trainer and a launcher: the ones that are named, or `deepspeed` and `torchrun`. Raises `BadInput`."""
    for name in names:
        if name not in TRAINERS and name not in LAUNCHERS:
            rule = f"a trainer ({', '.join(TRAINERS)}) or a launcher ({', '.join(LAUNCHERS)})"
            raise BadInput("export", "--to", name, rule, "correct the name")
    trainers = [name for name in dict.fromkeys(names) if name in TRAINERS]
    launchers = [name for name in dict.fromkeys(names) if name in LAUNCHERS]
    if not names or len(trainers) > 1 or len(launchers) > 1:
        rule = "one trainer, one launcher, or one of each"
        raise BadInput("export", "--to", list(names), rule, "export once for each pair, into folders of their own")
    return trainers[0] if trainers else "deepspeed", launchers[0] if launchers else "torchrun"


def render(
    source: Source, trainer: str, launcher: str, handoff: Handoff, checked: dict[str, Checked]
) -> dict[str, str]:
    """Every file with its head: a pure function."""
    export = Export(source, trainer, launcher, handoff, (), checked)
    files = {name: (trainer, text) for name, text in handoff.files.items()}
    files |= {name: (launcher, text) for name, text in LAUNCHERS[launcher].write(source, handoff).items()}
    if handoff.prepare:
        commands = "\n".join(words(command) for command in handoff.prepare)
        files["prepare.sh"] = trainer, f"set -euo pipefail\n{exports(source, environment(source, handoff))}{commands}\n"
    check_files(files)
    found = {name: _headed(export, name, of, text) for name, (of, text) in files.items()}
    return found | {"SUMMARY.md": _summary(export, list(files)), "export.json": _record(export)}


def _headed(export: Export, name: str, of: str, text: str) -> str:
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
    return ("#!/usr/bin/env bash\n" if kind in BASH else "") + head + text


def _summary(export: Export, names: list[str]) -> str:
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
    command, file = CHECKS.get(export.launcher, ("", ""))
    if file in names:
        lines.append(f"- whether {export.launcher} takes its file, it says itself: `{command} {source.out}/{file}`")
    for name, checked in export.checked.items():
        lines += [f"- {name} parsed otherwise: {f.what}: {f.detail}" for f in checked.wrong]
        lines += [f"- {name} agrees where a difference was stated: {fact}" for fact in checked.missing]
    lines += ["", "## Run", ""]
    if planned := [c.name for c in bundle.corpora if c.store is None]:
        lines.append(f"- It cannot run yet: {', '.join(planned)} have no token store. Build them, and promote again.")
    if handoff.prepare:
        lines.append(f"- once, where all nodes see the result: `bash {source.out}/prepare.sh`")
    saves = "saves first" if handoff.saves_on_term else "does not save"
    lines += [f"- `{export.how}`", f"- started again, it goes on from the last checkpoint; told to end, it {saves}"]
    lines += ["", "## What differs from the recipe", ""]
    lines += [f"- {FACTS[d.fact]}: {d.there}" for d in handoff.differences] or ["Nothing that is known."]
    if handoff.notes:
        lines += ["", "## What else is to be known", "", *(f"- {note}" for note in handoff.notes)]
    return "\n".join([*lines, "", "## Files", "", *(f"- {name}" for name in names)]) + "\n"


def _record(export: Export) -> str:
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


def _verify(
    source: Source, handoff: Handoff, trainer: str, launcher: str, pythons: Sequence[str]
) -> dict[str, Checked]:
    """The trainer must be found in one of the interpreters; the launcher is parsed where it is found, too."""
    found: dict[str, Checked] = {}
    missing = {}
    for python in pythons:
        if trainer not in found:
            result = check_trainer(source, handoff, trainer, python)
            if isinstance(result, str):
                missing[python] = result
            else:
                found[trainer] = result
        if launcher not in found and (checked := check_launcher(source, launcher, python)):
            found[launcher] = checked
    if pythons and trainer not in found:
        rule = f"one of them has {trainer} installed"
        raise BadInput("export", "--verify", missing, rule, "install it there, or name another interpreter")
    return found


def _write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        write_text(folder / name, text)
        if name.endswith(BASH):
            (folder / name).chmod(0o755)
