"""Reading of YAML files that people write, safely and strictly."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from sweepcp.errors import InvalidInput
from sweepcp.util.files import shipped_folder


def find_config_file(name: str, *, kind: str, key: str, folder: Path | None = None) -> Path:
    """Return a file by its path, or a shipped one by its name.

    Args:
        name: A path, or the name of a shipped file without its suffix.
        kind: The folder of shipped files, such as `experiments/targets`.
        key: The key, argument or option that names the file, for messages.
        folder: The folder that a relative path starts from; by default the working directory.

    Raises:
        InvalidInput: There is no such file.
    """
    path = (folder or Path.cwd()) / Path(name).expanduser()
    if path.is_file():
        return path
    shipped = {file.stem: file for file in shipped_folder(kind).glob("*.yaml")}
    if name in shipped:
        return shipped[name]
    raise InvalidInput(
        file=path,
        key=key,
        found=name,
        rule=f"the path of a file, or one of: {', '.join(sorted(shipped))}",
        fix="correct the path",
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that must hold a mapping.

    Raises:
        InvalidInput: The file cannot be read, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            file=path,
            key="the file",
            found=str(error),
            rule="a readable UTF-8 YAML file",
            fix="correct the path, make the file readable, or save it as UTF-8",
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


def parse_yaml(text: str, file: object) -> Any:
    """Return the content of one YAML document; `file` is where it comes from, for messages.

    Raises:
        InvalidInput: It is not valid YAML, or has a duplicate key. The error names the line.
    """
    try:
        return yaml.load(text, _StrictLoader)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, file) from None
    except yaml.YAMLError as error:
        raise InvalidInput(
            file=file,
            key="the document",
            found=str(error),
            rule="valid YAML",
            fix="save it as UTF-8 text",
        ) from None


def _syntax_error(error: yaml.MarkedYAMLError, file: object) -> InvalidInput:
    problem = error.problem or "not valid YAML"
    line = error.problem_mark.line + 1 if error.problem_mark else None
    key = f"line {line}" if line else "the document"
    fix = "correct the line and its indentation"
    if problem.startswith("duplicate key"):
        key = problem.split("'")[1]
        fix = "remove one of the two"
    return InvalidInput(
        file=f"{file}:{line}" if line else file,
        key=key,
        found=problem,
        rule="one valid YAML mapping, with each key once",
        fix=fix,
    )


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys and reads `1e-4` as a number."""

    # The signature is PyYAML's, with its positional boolean.
    def construct_mapping(
        self,
        node: yaml.MappingNode,
        deep: bool = False,  # noqa: FBT001, FBT002
    ) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"duplicate key {key!r}", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


# PyYAML follows YAML 1.1, in which a number in scientific notation needs a point and a sign.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)
