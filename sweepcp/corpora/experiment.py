"""The experiment file: everything that a search needs to know, checked before anything is written."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sweepcp.config.experiment import Experiment
from sweepcp.config.overrides import _assign
from sweepcp.config.source import Source
from sweepcp.config.space import Range, Space
from sweepcp.config.suites import Suites
from sweepcp.config.validation import validate
from sweepcp.config.yaml_files import find_config_file, parse_yaml, read_yaml
from sweepcp.data.source_files import ResolvedSource, resolve_source
from sweepcp.errors import InvalidInput
from sweepcp.models.base import max_sequence_length, resolve_base


def load_experiment(
    name: str, overrides: Sequence[str] = ()
) -> tuple[Experiment, dict[str, ResolvedSource]]:
    """Read and check an experiment: a path, or the name of a shipped one. Also where each source's texts are.

    `overrides` are `a.b=value` with a YAML value. Raises `BadInput`; writes nothing, reads no texts.
    """
    path = find_config_file(name, "experiments", "EXPERIMENT")
    content = read_yaml(path)
    set_by: dict[str, str] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise InvalidInput(
                file="--set",
                key="--set",
                found=override,
                rule="key=value, such as budget.trials=8",
                fix="add the `=`",
            )
        if key.startswith("space.") and isinstance(content.get("space"), str):
            content["space"] = _read_space(content["space"], path.parent)
        _assign(content, key, parse_yaml(text, f"--set {override}"))
        set_by[key] = override
    if isinstance(content.get("space"), str):
        content["space"] = _read_space(content["space"], path.parent)
    try:
        experiment = validate(Experiment, content, path)
        return _resolve(experiment, path)
    except InvalidInput as error:
        for key, override in set_by.items():
            if f"{error.key}.".startswith(f"{key}.") or f"{key}.".startswith(f"{error.key}."):
                where = f"--set {override}"
                raise InvalidInput(
                    file=where, key=error.key, found=error.value, rule=error.rule, fix=error.fix
                ) from None
        raise


def _read_space(name: str, folder: Path) -> dict[str, Any]:
    path = find_config_file(name, "search_spaces", "space", folder)
    content = read_yaml(path)
    validate(Space, content, path)
    return content


def _resolve(experiment: Experiment, path: Path) -> tuple[Experiment, dict[str, ResolvedSource]]:
    """What no single section can know; paths become absolute."""
    experiment = experiment.model_copy(
        update={"base": resolve_base(experiment.base, path.parent, path)}
    )
    names = Counter(s.name for s in experiment.sources)
    for index, source in enumerate(experiment.sources):
        if names[source.name] > 1:
            raise InvalidInput(
                file=path,
                key=f"sources.{index}.name",
                found=source.name,
                rule="source names differ",
                fix="rename one of the two",
            )
    for role, member in experiment.suites.members:
        if member.source and member.source not in names:
            rule = f"one of the sources: {', '.join(names)}"
            raise InvalidInput(
                file=path,
                key=f"suites.{role}",
                found=member.source,
                rule=rule,
                fix="name a source of this experiment",
            )
    _check_roles(experiment, path)
    _check_lengths(experiment, path)
    for name in experiment.base.pretrain.mixture if experiment.base.pretrain else ():
        if name not in names:
            rule = f"one of the sources: {', '.join(names)}"
            raise InvalidInput(
                file=path,
                key="base.pretrain.mixture",
                found=name,
                rule=rule,
                fix="name a source of this experiment",
            )
    for name in experiment.target.source_tokens if experiment.target else ():
        if name not in names:
            rule = f"one of the sources: {', '.join(names)}"
            raise InvalidInput(
                file=path,
                key="target.source_tokens",
                found=name,
                rule=rule,
                fix="name a source of this experiment",
            )
    files = {s.name: resolve_source(s, path.parent, path) for s in experiment.sources}
    _check_shared_files(experiment, files, path)
    suites = _resolve_tasks(experiment.suites, path)
    return experiment.model_copy(update={"suites": suites}), files


def _check_roles(experiment: Experiment, path: Path) -> None:
    """Every share that the space can ask for has a source to come from."""
    needed: list[tuple[str, list[Source]]] = []
    general = [s for s in experiment.sources if s.role == "general"]
    if _space_reaches(experiment.space, "general_share", below=1):
        needed.append(("of role domain", [s for s in experiment.sources if s.role == "domain"]))
    if _space_reaches(experiment.space, "general_share", above=0):
        needed.append(("of role general", general))
        if experiment.space.non_english_share is not None:
            needed.append(
                ("of role general and language en", [s for s in general if s.language == "en"])
            )
            needed.append(
                (
                    "of role general and another language than en",
                    [s for s in general if s.language != "en"],
                )
            )
    for what, sources in needed:
        if not sources:
            rule = f"the space asks for a source {what}, there is none"
            raise InvalidInput(
                file=path,
                key="sources",
                found=[s.name for s in experiment.sources],
                rule=rule,
                fix=f"add a source {what}",
            )
        stated = [s.name for s in sources if s.weight is not None]
        if stated and len(stated) < len(sources):
            rule = "within a role all sources state a weight, or none does"
            raise InvalidInput(
                file=path,
                key="sources",
                found=f"weight of {', '.join(stated)} only",
                rule=rule,
                fix="state the others, or remove it",
            )


def _check_shared_files(
    experiment: Experiment, files: dict[str, ResolvedSource], path: Path
) -> None:
    """A file of two sources is read differently by them, and none of its documents is held out by one of them only."""
    owner: dict[Path, Source] = {}
    for source in experiment.sources:
        found = files[source.name]
        for file in (*found.paths, *found.held_out) if source.python is None else ():
            other = owner.setdefault(file.resolve(), source)
            if other is source:
                continue
            key, value = f"sources.{source.name}", f"{file}, as {other.name} does"
            if source.held_out_files or other.held_out_files or source.held_out != other.held_out:
                rule = "sources that share a file hold out the same of it, or one trains on what the other holds out"
                raise InvalidInput(
                    file=path,
                    key=key,
                    found=value,
                    rule=rule,
                    fix="give both the same `held_out`, and no held_out_files",
                )
            alike = ("field", "template", "unit", "filters", "exclude")
            if all(getattr(source, name) == getattr(other, name) for name in alike):
                rule = "two sources read different texts"
                raise InvalidInput(
                    file=path,
                    key=key,
                    found=value,
                    rule=rule,
                    fix="remove one, or tell them apart by filters",
                )


def _space_reaches(
    space: Space, name: str, below: float | None = None, above: float | None = None
) -> bool:
    axis = space.axes[name]
    values = [axis.low, axis.high] if isinstance(axis, Range) else [float(v) for v in axis.choices]
    return any(
        (below is not None and v < below) or (above is not None and v > above) for v in values
    )


def _check_lengths(experiment: Experiment, path: Path) -> None:
    base, training, budget = experiment.base, experiment.training, experiment.budget
    limit = max_sequence_length(base)
    lengths = {"training.seq_len": training.seq_len}
    if base.pretrain is not None:
        lengths["base.pretrain.training.seq_len"] = base.pretrain.training.seq_len
    for key, length in lengths.items():
        if limit is not None and length > limit:
            raise InvalidInput(
                file=path,
                key=key,
                found=length,
                rule=f"the base takes at most {limit} tokens",
                fix=f"use {limit} or less",
            )
    if budget.tokens % training.batch_tokens:
        near = max(1, round(budget.tokens / training.batch_tokens)) * training.batch_tokens
        rule = f"a multiple of training.batch_tokens ({training.batch_tokens})"
        raise InvalidInput(
            file=path, key="budget.tokens", found=budget.tokens, rule=rule, fix=f"use {near}"
        )


def _resolve_tasks(suites: Suites, path: Path) -> Suites:
    """Task folders as absolute paths; code in them only where it is allowed."""
    resolved: dict[str, list[Any]] = {"domain": [], "general": []}
    for role, member in suites.members:
        if member.path is not None:
            folder = (path.parent / Path(member.path).expanduser()).resolve()
            if not folder.is_dir():
                raise InvalidInput(
                    file=path,
                    key=f"suites.{role}",
                    found=member.path,
                    rule=f"a folder ({folder} is none)",
                    fix="correct the path",
                )
            for file in sorted(folder.rglob("*.yaml")):
                if "!function" in file.read_text(encoding="utf-8") and not member.allow_code:
                    rule = "task files run no Python unless that is allowed"
                    raise InvalidInput(
                        file=file,
                        key="!function",
                        found=member.name,
                        rule=rule,
                        fix="read it, then set `allow_code: true`",
                    )
            member = member.model_copy(update={"path": str(folder)})
        resolved[role].append(member)
    return Suites(domain=tuple(resolved["domain"]), general=tuple(resolved["general"]))
