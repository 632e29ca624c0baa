"""The experiment file: everything that a search needs to know, checked before anything is written."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from sweepcp.base import BaseSpec, max_length, resolve
from sweepcp.data.sources import Found, Source, find
from sweepcp.errors import BadInput
from sweepcp.front import Reference, Rule
from sweepcp.recipe import Recipe, Training
from sweepcp.schema import Schema, locate, parse_yaml, read_yaml, validate
from sweepcp.search import Budget
from sweepcp.space import Point, Range, Space, WeightedSource, recipe_at
from sweepcp.suites import Suites


class TrainingSection(Training):
    """The fields of a recipe that trials share, and how a step is computed."""

    micro_batch: Annotated[int, Field(ge=1)] | None = None
    """Sequences in one forward pass; by default the whole batch."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What a step computes in; weights are fp32. `auto`: bf16 on a GPU, fp32 on a CPU."""


class Choose(Rule):
    """The rule of choice, and the hypervolume's reference point."""

    reference: Reference = Reference()


class TargetBudget(Schema):
    """The run that trials stand for, as far as repetition goes."""

    tokens: Annotated[int, Field(ge=1)]
    source_tokens: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Source → its training tokens there, where the target's corpus is larger than the one here."""
    match_repetition: bool = False
    """Let trials see only so much of each source that they repeat it as often as the target's run will."""


class Experiment(Schema):
    """An experiment file. Paths in it are relative to the file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    seed: int = 0
    """Of the proposals and of every trial's data order."""
    base: BaseSpec
    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    suites: Suites
    space: Space
    """Inline, or the name or path of a file of search spaces (which `load_experiment` reads first)."""
    training: TrainingSection
    budget: Budget
    target: TargetBudget | None = None
    choose: Choose

    def weighted(self, tokens: dict[str, float]) -> list[WeightedSource]:
        """The sources with their weights: as stated, or by their training tokens."""
        return [
            WeightedSource(name=s.name, role=s.role, language=s.language, weight=s.weight or tokens[s.name])
            for s in self.sources
        ]

    def recipe(self, point: Point, tokens: dict[str, float]) -> Recipe:
        """The recipe of a trial at a point of the space; `tokens` are the sources' training tokens."""
        return recipe_at(point, self.weighted(tokens), self.training, self.budget.tokens, self.seed)


def load_experiment(name: str, overrides: Sequence[str] = ()) -> tuple[Experiment, dict[str, Found]]:
    """Read and check an experiment: a path, or the name of a shipped one. Also where each source's texts are.

    `overrides` are `a.b=value` with a YAML value. Raises `BadInput`; writes nothing, reads no texts.
    """
    path = locate(name, "experiments", "EXPERIMENT")
    content = read_yaml(path)
    set_by: dict[str, str] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise BadInput("--set", "--set", override, "key=value, such as budget.trials=8", "add the `=`")
        if key.startswith("space.") and isinstance(content.get("space"), str):
            content["space"] = _read_space(content["space"], path.parent)
        _assign(content, key, parse_yaml(text, f"--set {override}"))
        set_by[key] = override
    if isinstance(content.get("space"), str):
        content["space"] = _read_space(content["space"], path.parent)
    try:
        experiment = validate(Experiment, content, path)
        return _check(experiment, path)
    except BadInput as error:
        for key, override in set_by.items():
            if f"{error.key}.".startswith(f"{key}.") or f"{key}.".startswith(f"{error.key}."):
                where = f"--set {override}"
                raise BadInput(where, error.key, error.value, error.rule, error.fix) from None
        raise


def _read_space(name: str, folder: Path) -> dict[str, Any]:
    path = locate(name, "search_spaces", "space", folder)
    content = read_yaml(path)
    validate(Space, content, path)
    return content


def _assign(content: Any, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for part in parents:
        if isinstance(content, list):
            content = _item(content, part, key)
        else:
            if not isinstance(content.get(part), (dict, list)):
                content[part] = {}
            content = content[part]
    if isinstance(content, list):
        content[content.index(_item(content, last, key))] = value
    else:
        content[last] = value


def _item(items: list[Any], part: str, key: str) -> Any:
    for index, item in enumerate(items):
        if part == str(index) or (isinstance(item, dict) and item.get("name") == part):
            return item
    names = ", ".join(str(i.get("name", n)) if isinstance(i, dict) else str(n) for n, i in enumerate(items))
    raise BadInput(f"--set {key}", key, part, f"an item of the list, by index or name: {names}", "name one of them")


def _check(experiment: Experiment, path: Path) -> tuple[Experiment, dict[str, Found]]:
    """What no single section can know; paths become absolute."""
    experiment = experiment.model_copy(update={"base": resolve(experiment.base, path.parent, path)})
    names = Counter(s.name for s in experiment.sources)
    for index, source in enumerate(experiment.sources):
        if names[source.name] > 1:
            raise BadInput(path, f"sources.{index}.name", source.name, "source names differ", "rename one of the two")
    for role, member in experiment.suites.members:
        if member.source and member.source not in names:
            rule = f"one of the sources: {', '.join(names)}"
            raise BadInput(path, f"suites.{role}", member.source, rule, "name a source of this experiment")
    _check_roles(experiment, path)
    _check_lengths(experiment, path)
    for name in experiment.base.pretrain.mixture if experiment.base.pretrain else ():
        if name not in names:
            rule = f"one of the sources: {', '.join(names)}"
            raise BadInput(path, "base.pretrain.mixture", name, rule, "name a source of this experiment")
    for name in experiment.target.source_tokens if experiment.target else ():
        if name not in names:
            rule = f"one of the sources: {', '.join(names)}"
            raise BadInput(path, "target.source_tokens", name, rule, "name a source of this experiment")
    files = {s.name: find(s, path.parent, path) for s in experiment.sources}
    _check_shared_files(experiment, files, path)
    suites = _resolve_tasks(experiment.suites, path)
    return experiment.model_copy(update={"suites": suites}), files


def _check_roles(experiment: Experiment, path: Path) -> None:
    """Every share that the space can ask for has a source to come from."""
    needed: list[tuple[str, list[Source]]] = []
    general = [s for s in experiment.sources if s.role == "general"]
    if _reaches(experiment.space, "general_share", below=1):
        needed.append(("of role domain", [s for s in experiment.sources if s.role == "domain"]))
    if _reaches(experiment.space, "general_share", above=0):
        needed.append(("of role general", general))
        if experiment.space.non_english_share is not None:
            needed.append(("of role general and language en", [s for s in general if s.language == "en"]))
            needed.append(("of role general and another language than en", [s for s in general if s.language != "en"]))
    for what, sources in needed:
        if not sources:
            rule = f"the space asks for a source {what}, there is none"
            raise BadInput(path, "sources", [s.name for s in experiment.sources], rule, f"add a source {what}")
        stated = [s.name for s in sources if s.weight is not None]
        if stated and len(stated) < len(sources):
            rule = "within a role all sources state a weight, or none does"
            raise BadInput(
                path, "sources", f"weight of {', '.join(stated)} only", rule, "state the others, or remove it"
            )


def _check_shared_files(experiment: Experiment, files: dict[str, Found], path: Path) -> None:
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
                raise BadInput(path, key, value, rule, "give both the same `held_out`, and no held_out_files")
            alike = ("field", "template", "unit", "filters", "exclude")
            if all(getattr(source, name) == getattr(other, name) for name in alike):
                rule = "two sources read different texts"
                raise BadInput(path, key, value, rule, "remove one, or tell them apart by filters")


def _reaches(space: Space, name: str, below: float | None = None, above: float | None = None) -> bool:
    axis = space.axes[name]
    values = [axis.low, axis.high] if isinstance(axis, Range) else [float(v) for v in axis.choices]
    return any((below is not None and v < below) or (above is not None and v > above) for v in values)


def _check_lengths(experiment: Experiment, path: Path) -> None:
    base, training, budget = experiment.base, experiment.training, experiment.budget
    limit = max_length(base)
    lengths = {"training.seq_len": training.seq_len}
    if base.pretrain is not None:
        lengths["base.pretrain.training.seq_len"] = base.pretrain.training.seq_len
    for key, length in lengths.items():
        if limit is not None and length > limit:
            raise BadInput(path, key, length, f"the base takes at most {limit} tokens", f"use {limit} or less")
    if budget.tokens % training.batch_tokens:
        near = max(1, round(budget.tokens / training.batch_tokens)) * training.batch_tokens
        rule = f"a multiple of training.batch_tokens ({training.batch_tokens})"
        raise BadInput(path, "budget.tokens", budget.tokens, rule, f"use {near}")


def _resolve_tasks(suites: Suites, path: Path) -> Suites:
    """Task folders as absolute paths; code in them only where it is allowed."""
    resolved: dict[str, list[Any]] = {"domain": [], "general": []}
    for role, member in suites.members:
        if member.path is not None:
            folder = (path.parent / Path(member.path).expanduser()).resolve()
            if not folder.is_dir():
                raise BadInput(path, f"suites.{role}", member.path, f"a folder ({folder} is none)", "correct the path")
            for file in sorted(folder.rglob("*.yaml")):
                if "!function" in file.read_text(encoding="utf-8") and not member.allow_code:
                    rule = "task files run no Python unless that is allowed"
                    raise BadInput(file, "!function", member.name, rule, "read it, then set `allow_code: true`")
            member = member.model_copy(update={"path": str(folder)})
        resolved[role].append(member)
    return Suites(domain=tuple(resolved["domain"]), general=tuple(resolved["general"]))


def json_schema() -> dict[str, Any]:
    """The JSON schema of experiment files, for editors."""
    schema = Experiment.model_json_schema()
    schema["properties"]["space"] = {"anyOf": [schema["properties"]["space"], {"type": "string"}]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def differences(before: dict[str, Any], now: dict[str, Any], key: str = "") -> list[str]:
    """The keys in which two JSON values differ, as `key: before → now`."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(k for k in now if k not in before)]
        found = [differences(before.get(k), now.get(k), f"{key}.{k}" if key else k) for k in keys]  # type: ignore[arg-type]
        return [line for lines in found for line in lines]
    return [] if before == now else [f"{key}: {json.dumps(before)} → {json.dumps(now)}"]
