"""The `suites` section of an experiment: what trials are scored on."""

from collections import Counter
from typing import Annotated, Self, get_args

from pydantic import Field, model_validator

from sweepcp.config.types import PositiveFloat, PositiveInt, Role, ScoringMode
from sweepcp.config.validation import ConfigModel

GENERATED_KINDS = ("cloze", "swap")
"""Members whose lm-eval tasks are generated from held-out text."""
MIN_HELD_OUT = 8
"""Fewest held-out documents of a source. With fewer, a split of them often has no error bar."""


class MemberSpec(ConfigModel):
    """One member of a suite: exactly one of `held_out`, `cloze`, `swap` and `task`."""

    held_out: str | None = None
    """A source: bits per byte of its held-out text."""
    cloze: str | None = None
    """A source: the next word of its held-out text, among four of similar frequency (a generated
    lm-eval task)."""
    swap: str | None = None
    """A source: its held-out text against a copy with two adjacent words swapped (a generated
    lm-eval task)."""
    task: str | None = None
    """An lm-eval task, tag or group."""
    path: str | None = None
    """A folder of lm-eval task files for `task`, relative to the experiment file; by default
    lm-eval's own tasks."""
    allow_code: bool = False
    """Whether code may run: what task files in `path` lead to, such as `!function`, and what a
    model writes, for tasks that are scored by running it (`unsafe_code`)."""
    items: Annotated[int, Field(ge=4)] | None = None
    """The number of items, drawn by the hash of their content: documents of `held_out`, items of
    `cloze` and `swap`, items of each lm-eval task of `task`. By default all."""
    chars: PositiveInt | None = None
    """Score the first characters of each `held_out` document only; by default all."""
    few_shot: Annotated[int, Field(ge=0)] | None = None
    """The number of examples before each item of a `task`; by default what the task's file says."""
    language: str | None = None
    """By default the language of the source, or `en`."""
    weight: PositiveFloat = 1.0
    """Its weight in the mean that is the suite's scalar."""

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        kinds = (self.held_out, self.cloze, self.swap, self.task)
        if sum(kind is not None for kind in kinds) != 1:
            raise ValueError(
                "a member has exactly one of held_out, cloze, swap and task; "
                "fix: keep one per list item"
            )
        if (self.cloze or self.swap) and self.items is None:
            raise ValueError("cloze and swap need a number of items; fix: add `items: 400`")
        if self.chars and not self.held_out:
            raise ValueError("chars belongs to held_out; fix: remove chars")
        if self.task is None:
            for name in ("path", "allow_code", "few_shot"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} belongs to a task; fix: remove {name}")
        return self

    @property
    def source(self) -> str | None:
        """The source whose held-out text the member scores, or is generated from."""
        return self.held_out or self.cloze or self.swap

    @property
    def name(self) -> str:
        """The name in tables; also the lm-eval name of a generated task."""
        for kind in ("held_out", *GENERATED_KINDS):
            if getattr(self, kind):
                return f"{kind}_{self.source}"
        return str(self.task)


class Suites(ConfigModel):
    """The two suites.

    Each needs a continuous member: held-out text, or a task with gold answers to score.
    """

    domain: Annotated[tuple[MemberSpec, ...], Field(min_length=1)]
    """Members that measure what is learned."""
    general: Annotated[tuple[MemberSpec, ...], Field(min_length=1)]
    """Members that measure what is forgotten."""
    scoring: ScoringMode = "shared"
    """How the answers of lm-eval tasks are computed in a search. `shared`: a context once for all
    of its answers, within 1e-4 nats per answer of lm-eval; members for which that does not hold are
    scored by `exact`. `exact`: the log-probabilities of lm-eval, bit for bit."""

    @model_validator(mode="after")
    def _check_distinct(self) -> Self:
        counts = Counter(member.name for _, member in self.members)
        for name, count in counts.items():
            if count > 1:
                raise ValueError(
                    f"{name} is in the suites twice; fix: remove one, and raise the other's weight"
                )
        return self

    @property
    def members(self) -> list[tuple[Role, MemberSpec]]:
        """All members with their roles, those of `domain` first."""
        roles: tuple[Role, ...] = get_args(Role)
        return [(role, member) for role in roles for member in getattr(self, role)]
