"""Shell code that people hand over, to be written into exported scripts as it is."""

import re
import subprocess
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from sweepcp.config.safe_text import SECRET_PATTERN, SecretFound, is_one_line, is_secret

ASSIGNMENT_PATTERN = re.compile(r"\b([A-Za-z_][A-Za-z0-9_]*)=([\"']?)([^\s\"';&|]*)")
REFERENCE = ("$", "`", "<")
"""How a value begins that is read from elsewhere."""


def _split_block(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(value.splitlines())
    # In strict mode, a list is a tuple in JSON only, which the result of a validator is not.
    return tuple(value) if isinstance(value, list) else value


def _check_lines(lines: tuple[str, ...]) -> tuple[str, ...]:
    for line in lines:
        if not all(map(is_one_line, line.split("\n"))):
            raise ValueError("shell code without control characters; fix: remove them")
        _refuse_secrets(line)
    if lines and lines[-1].endswith("\\"):
        raise ValueError("complete shell code; fix: remove the backslash at the end")
    if problem := _syntax_error("\n".join(lines)):
        rule = f"complete shell code, but bash says: {problem}"
        raise ValueError(f"{rule}; fix: correct the line, or close what it opens")
    return lines


def _refuse_secrets(line: str) -> None:
    fix = "name the variable under `secrets`, or read it from a file on the nodes"
    if SECRET_PATTERN.search(line):
        raise SecretFound(f"no secret is ever written; fix: {fix}")
    for name, _, value in ASSIGNMENT_PATTERN.findall(line):
        if value and not value.startswith(REFERENCE) and is_secret(name, value):
            raise SecretFound(f"{name} is a secret by its name; fix: {fix}")


def _syntax_error(code: str) -> str:
    """Return what bash says against a script that it does not run; "" if it says nothing.

    An open quote, block or here-document would swallow the script that follows.
    """
    if not code:
        return ""
    try:
        done = subprocess.run(
            ["bash", "-O", "extglob", "-n"],
            input=f"{code}\n".encode(),
            capture_output=True,
            env={"LC_ALL": "C", "PATH": "/usr/local/bin:/usr/bin:/bin"},
            check=False,
        )
    except FileNotFoundError:
        return ""
    return done.stderr.decode(errors="replace").strip().partition("\n")[0]


ShellLines = Annotated[tuple[str, ...], BeforeValidator(_split_block), AfterValidator(_check_lines)]
"""A list of lines, or a block of them; bash parses them, but does not run them."""
