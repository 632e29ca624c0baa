"""TODO config.yaml_files."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from sweepcp.errors import InvalidInput
from sweepcp.util.files import shipped_folder


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys and reads `1e-4` as the number that it is."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"duplicate key {key!r}", problem_mark=key_node.start_mark
                )
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
        fix = (
            "remove one of the two"
            if "duplicate" in problem
            else "mend the line; mind the indentation"
        )
        at = f"{where}:{mark.line + 1}" if mark else where
        raise InvalidInput(
            file=at,
            key=key,
            found=problem,
            rule="a file is one valid YAML mapping, each key once",
            fix=fix,
        ) from None
    except yaml.YAMLError as error:
        raise InvalidInput(
            file=where,
            key="the document",
            found=str(error),
            rule="a file is valid YAML",
            fix="save it as UTF-8 text",
        ) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that must hold a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            file=path,
            key="the file",
            found=str(error),
            rule="a readable UTF-8 YAML file",
            fix="check the path and its rights",
        ) from None
    content = parse_yaml(text, path)
    if not isinstance(content, dict):
        raise InvalidInput(
            file=path,
            key="the document",
            found=content,
            rule="a mapping of keys to values",
            fix="write `key: value` lines",
        )
    return content


def find_config_file(name: str, kind: str, key: str, folder: Path | None = None) -> Path:
    """A file by path (from `folder`, or here), or a shipped one of a kind by name; `BadInput` for neither."""
    own = (folder or Path.cwd()) / Path(name).expanduser()
    if own.is_file():
        return own
    known = sorted(p.stem for p in shipped_folder(kind).glob("*.yaml"))
    if name in known:
        return shipped_folder(kind) / f"{name}.yaml"
    raise InvalidInput(
        file=own,
        key=key,
        found=name,
        rule=f"the path of a file, or one of: {', '.join(known)}",
        fix="correct the path",
    )
