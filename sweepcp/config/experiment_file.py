"""Reading of an experiment file, as far as it needs neither data nor models."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sweepcp.config.experiment import Experiment
from sweepcp.config.lr_checks import check_learning_rates
from sweepcp.config.overrides import attributed_to_overrides, parse_override, set_key
from sweepcp.config.recipe import nearest_multiple
from sweepcp.config.source import Source
from sweepcp.config.space import Space
from sweepcp.config.validation import validate
from sweepcp.config.yaml_files import find_config_file, read_yaml
from sweepcp.errors import InvalidInput, located


def parse_experiment(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file, apply overrides, and check its sections against each other.

    Args:
        path: The experiment file.
        overrides: `a.b=value` with a YAML value, applied in this order.

    Returns:
        The experiment, with the content of its search space file. Other paths are as in the file.

    Raises:
        InvalidInput: The file, an override or the search space file is not valid.
    """
    content = read_yaml(path)
    for override in overrides:
        key, value = parse_override(override)
        if key.startswith("space."):
            _inline_space(content, path)
        set_key(content, key, value)
    with attributed_to_overrides(overrides, _source_names(content)):
        _inline_space(content, path)
        experiment = validate(Experiment, content, path)
        with located(path):
            _check_sections(experiment)
    return experiment


def _source_names(content: dict[str, Any]) -> list[object]:
    """Return the names of the sources of a content that may have any form."""
    sources = content.get("sources")
    items = sources if isinstance(sources, list) else []
    return [item.get("name") if isinstance(item, dict) else None for item in items]


def _check_sections(experiment: Experiment) -> None:
    """Raise `InvalidInput` if sections of an experiment contradict each other."""
    _check_source_names(experiment)
    _check_roles(experiment)
    _check_weights(experiment)
    tokens, batch_tokens = experiment.budget.tokens, experiment.training.batch_tokens
    if tokens % batch_tokens:
        raise InvalidInput(
            key="budget.tokens",
            found=tokens,
            rule=f"a multiple of training.batch_tokens ({batch_tokens})",
            fix=f"use {nearest_multiple(tokens, unit=batch_tokens)}",
        )
    check_learning_rates(experiment)


def _inline_space(content: dict[str, Any], file: Path) -> None:
    """Replace the name of a search space file, in the experiment in `file`, by its content."""
    name = content.get("space")
    if not isinstance(name, str):
        return
    with located(file):
        path = find_config_file(name, kind="search_spaces", key="space", folder=file.parent)
    space = read_yaml(path)
    # Validated here, too, so that errors name this file and a line in it.
    validate(Space, space, path)
    content["space"] = space


def _check_source_names(experiment: Experiment) -> None:
    """Check that names of sources are unique, and that other sections use no other names."""
    names = [source.name for source in experiment.sources]
    counts = Counter(names)
    for index, name in enumerate(names):
        if counts[name] > 1:
            raise InvalidInput(
                key=f"sources.{index}.name",
                found=name,
                rule="a name that no other source has",
                fix="rename one of the two",
            )
    for role, member in experiment.suites.members:
        if member.source:
            _check_known([member.source], names, key=f"suites.{role}")
    if experiment.base.pretrain:
        _check_known(experiment.base.pretrain.mixture, names, key="base.pretrain.mixture")
    if experiment.target:
        _check_known(experiment.target.source_tokens, names, key="target.source_tokens")


def _check_known(used: Iterable[str], names: list[str], *, key: str) -> None:
    for name in used:
        if name not in names:
            raise InvalidInput(
                key=key,
                found=name,
                rule=f"one of the sources: {', '.join(names)}",
                fix="name a source of this experiment",
            )


def _check_roles(experiment: Experiment) -> None:
    """Check that every share that the space includes has a source to come from."""
    for description, sources in _searched_groups(experiment).items():
        if not sources:
            raise InvalidInput(
                key="sources",
                found=[source.name for source in experiment.sources],
                rule=f"at least one source {description}, which the space gives a share",
                fix=f"add a source {description}",
            )


def _check_weights(experiment: Experiment) -> None:
    """Check that weights are comparable: stated ones and token counts do not mix."""
    for sources in _searched_groups(experiment).values():
        weighted = [source.name for source in sources if source.weight is not None]
        if weighted and len(weighted) < len(sources):
            raise InvalidInput(
                key="sources",
                found=f"weight of {', '.join(weighted)} only",
                rule="within a role all sources state a weight, or none does",
                fix="state the weights of the others, or remove it",
            )


def _searched_groups(experiment: Experiment) -> dict[str, list[Source]]:
    """Return the sources among which the space splits a share, by a description of the group."""
    domain = [source for source in experiment.sources if source.role == "domain"]
    general = [source for source in experiment.sources if source.role == "general"]
    lowest, highest = experiment.space.bounds("general_share")
    groups = {}
    if lowest < 1:
        groups["of role domain"] = domain
    if highest > 0:
        groups["of role general"] = general
        if experiment.space.non_english_share is not None:
            english = [source for source in general if source.language == "en"]
            others = [source for source in general if source.language != "en"]
            groups["of role general and language en"] = english
            groups["of role general and another language than en"] = others
    return groups
