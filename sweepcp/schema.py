"""Files that people write: YAML read safely and strictly, and errors that say what to type instead."""

import difflib
import json
import re
import typing
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from sweepcp.errors import BadInput
from sweepcp.files import shipped

M = TypeVar("M", bound=BaseModel)


class Schema(BaseModel):
    """Base of everything that is read from a file: unknown keys and wrong types are errors, instances are frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys and reads `1e-4` as the number that it is."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"duplicate key {key!r}", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, where: object) -> Any:
    """One YAML document; `BadInput` names the line of what is wrong."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f"line {mark.line + 1}" if mark else "the document"
        problem = error.problem or "not valid YAML"
        key = problem.split("'")[1] if problem.startswith("duplicate key") else line
        fix = "remove one of the two" if "duplicate" in problem else "mend the line; mind the indentation"
        at = f"{where}:{mark.line + 1}" if mark else where
        raise BadInput(at, key, problem, "a file is one valid YAML mapping, each key once", fix) from None
    except yaml.YAMLError as error:
        raise BadInput(where, "the document", str(error), "a file is valid YAML", "save it as UTF-8 text") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that must hold a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            path, "the file", str(error), "a readable UTF-8 YAML file", "check the path and its rights"
        ) from None
    content = parse_yaml(text, path)
    if not isinstance(content, dict):
        raise BadInput(path, "the document", content, "a mapping of keys to values", "write `key: value` lines")
    return content


def locate(name: str, kind: str, key: str, folder: Path | None = None) -> Path:
    """A file by path (from `folder`, or here), or a shipped one of a kind by name; `BadInput` for neither."""
    own = (folder or Path.cwd()) / Path(name).expanduser()
    if own.is_file():
        return own
    known = sorted(p.stem for p in shipped(kind).glob("*.yaml"))
    if name in known:
        return shipped(kind) / f"{name}.yaml"
    raise BadInput(own, key, name, f"the path of a file, or one of: {', '.join(known)}", "correct the path")


def validate(model: type[M], content: Any, where: object) -> M:
    """`content` as a `model`; `BadInput` for the first violation, with the key's path and a near name if any."""
    try:
        return model.model_validate_json(json.dumps(content, default=str))  # JSON mode: strict, yet lists become tuples
    except ValidationError as error:
        problems = error.errors(include_url=False)
        raise _explain(model, content, problems, where) from None


def _explain(model: type[BaseModel], content: Any, problems: list[Any], where: object) -> BadInput:
    first = min(problems, key=lambda p: p["type"] != "extra_forbidden")
    loc = tuple(part for part in first["loc"] if not str(part).startswith(("function-", "<")))  # tags are not keys
    key = ".".join(str(part) for part in loc) or "the document"
    kind, message, value = first["type"], first["msg"], first["input"]
    at = f"{where}:{line}" if (line := _line(where, loc)) else where
    more = f" ({len(problems) - 1} more after this one)" if len(problems) > 1 else ""
    if kind == "extra_forbidden":
        known = _fields(model, content, loc[:-1])
        near = difflib.get_close_matches(str(loc[-1]), known, n=1)
        fix = f"did you mean `{near[0]}`?" if near else f"use one of: {', '.join(known)}"
        return BadInput(at, key, value, "unknown key", fix + more)
    if kind == "missing":
        return BadInput(at, key, None, "a required key", f"add `{key}: ...`" + more)
    if isinstance(value, str) and kind in ("float_type", "int_type"):
        return BadInput(at, key, value, "a number, not text", f"write `{loc[-1]}: {value}` without quotes" + more)
    if kind == "value_error":
        rule, _, fix = message.removeprefix("Value error, ").partition("; fix: ")
        return BadInput(at, key, value, rule, (fix or "change the value") + more)
    return BadInput(
        at, key, value, message[0].lower() + message[1:], "change the value to one that the rule allows" + more
    )


def _fields(model: Any, content: Any, loc: tuple[Any, ...]) -> list[str]:
    """The names that the schema knows at `loc`, following lists and optional sections."""
    here: set[Any] = {model}
    for part in loc:
        step: set[Any] = set()
        for candidate in here:
            if isinstance(candidate, type) and issubclass(candidate, BaseModel) and part in candidate.model_fields:
                step |= _models(candidate.model_fields[str(part)].annotation)
            else:
                step.add(candidate)
        here = step
    return [n for m in here if isinstance(m, type) and issubclass(m, BaseModel) for n in m.model_fields]


def _models(annotation: Any) -> set[Any]:
    inner = typing.get_args(annotation)
    return set().union(*map(_models, inner)) if inner else {annotation}


def _line(where: object, loc: tuple[Any, ...]) -> int | None:
    """The line on which a key stands in the file `where`, if it stands there (an override does not)."""
    path = Path(str(where))
    if not path.is_file():
        return None
    node, line = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader), None
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            pairs = [(k, v) for k, v in node.value if k.value == str(part)]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            pairs = [(node.value[part], node.value[part])]
        else:
            pairs = []
        if not pairs:
            return line
        line, node = pairs[0][0].start_mark.line + 1, pairs[0][1]
    return line
