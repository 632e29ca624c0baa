"""TODO config.suites."""

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sweepcp.config.types import PositiveFloat, Role
from sweepcp.config.validation import ConfigModel

MAKERS = ("cloze", "swap")
MIN_HELD_OUT = 8
"""Fewer documents than this leave one half without an error bar too often."""


class MemberSpec(ConfigModel):
    """One member of a suite: exactly one of `held_out`, `cloze`, `swap` and `task`."""

    held_out: str | None = None
    """A source: bits per byte of its held-out text."""
    cloze: str | None = None
    """A source: the next word among four of like frequency, from its held-out text (a local lm-eval task)."""
    swap: str | None = None
    """A source: the text as it stands, or with two adjacent words swapped (a local lm-eval task)."""
    task: str | None = None
    """An lm-eval task, tag or group."""
    path: str | None = None
    """A folder of lm-eval task files for `task`, relative to the experiment file; by default lm-eval's own tasks."""
    allow_code: bool = False
    """Whether the task files in `path` may run Python (`!function`)."""
    items: Annotated[int, Field(ge=4)] | None = None
    """How many items: documents of `held_out` and items of `cloze` and `swap`, drawn by hash; the first ones of each
    `task`. By default all."""
    chars: Annotated[int, Field(ge=1)] | None = None
    """Score the first characters of each `held_out` document only; by default all."""
    few_shot: Annotated[int, Field(ge=0)] = 0
    language: str | None = None
    """By default the language of the source, or `en`."""
    weight: PositiveFloat = 1.0
    """In the mean that is the suite's scalar."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(x is not None for x in (self.held_out, self.cloze, self.swap, self.task)) != 1:
            raise ValueError(
                "a member has exactly one of held_out, cloze, swap and task; fix: keep one a list item"
            )
        if (self.cloze or self.swap) and self.items is None:
            raise ValueError("cloze and swap need a number of items; fix: add `items: 400`")
        if self.chars and not self.held_out:
            raise ValueError("chars belongs to held_out; fix: remove chars")
        for name, given in (
            ("path", self.path),
            ("allow_code", self.allow_code),
            ("few_shot", self.few_shot),
        ):
            if given and self.task is None:
                raise ValueError(f"{name} belongs to a task; fix: remove {name}")
        return self

    @property
    def source(self) -> str | None:
        """The source whose held-out text the member is made of."""
        return self.held_out or self.cloze or self.swap

    @property
    def name(self) -> str:
        """How tables call it; also the lm-eval name of a made task."""
        kind = next(k for k in ("held_out", *MAKERS, "task") if getattr(self, k))
        return str(self.task) if kind == "task" else f"{kind}_{self.source}"


class Suites(ConfigModel):
    """The two suites. Each needs a continuous member: held-out text, or a task with gold answers to score."""

    domain: Annotated[tuple[MemberSpec, ...], Field(min_length=1)]
    general: Annotated[tuple[MemberSpec, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [m.name for _, m in self.members]
        twice = [n for n, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(
                f"{twice[0]} stands twice in the suites; fix: remove one, or use its weight"
            )
        return self

    @property
    def members(self) -> list[tuple[Role, MemberSpec]]:
        roles: tuple[Literal["domain", "general"], ...] = ("domain", "general")
        return [(role, m) for role in roles for m in getattr(self, role)]
