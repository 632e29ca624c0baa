"""Types of text that may be written into exported files.

Launchers quote text for the file in which it stands, so most values may hold any characters of one
line. Names and paths are allow-lists, because many programs read them, each with rules of its own.
"""

import re
import unicodedata
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

from sweepcp.errors import InvalidInput

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
HUB_ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?")
PLAIN_PATH_PATTERN = re.compile(r"/[A-Za-z0-9_.@+=,/-]*")
"""A path that no shell changes, however often it is read."""
NOT_IN_PATHS = '$`"\\;|<>*?'
"""Characters of which shells, globs or trainers make something else, and which no path needs."""
KUBERNETES_LABEL_PATTERN = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""A label of RFC 1123."""
KUBERNETES_NAME_PATTERN = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
"""A label of RFC 1123 that begins with a letter, as services and job sets require (RFC 1035)."""
_IMAGE_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
IMAGE_PATTERN = re.compile(
    rf"(?:[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]+)?/)?{_IMAGE_PART}(?:/{_IMAGE_PART})*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@[A-Za-z0-9.+_-]+:[0-9a-fA-F]{32,})?"
)
"""A reference of an image: the grammar of github.com/distribution/reference."""
ENVIRONMENT_NAME_PATTERN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MAX_TEXT = 4096
"""Characters of a value, which is more than a path may have."""
CONTROL_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, surrogates and separators of lines."""
SECRET_PATTERN = re.compile(
    r"hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|AKIA[A-Z0-9]{16}|xox[abprs]-[\w-]{10,}|AIza[\w-]{30,}|eyJ[\w-]{16,}\.[\w-]{16,}|-----BEGIN"
)
"""How tokens of hubs, clouds, forges and trackers, JSON web tokens and private keys begin."""
SECRET_NAME_PATTERN = re.compile(
    r"(?:^|_)(?:SECRETS?|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?"
    r"|(?:API|ACCESS|PRIVATE|AUTH|SIGNING|ENCRYPTION)_?KEY)(?:_|\d|$)|(?:^|_)TOKEN\d*$"
)
"""Names of secrets: whole words, so that TOKENIZERS_PARALLELISM and MAX_TOKENS are none."""
TEXT_TOKEN_PATTERN = re.compile(
    r"(?:PAD|BOS|EOS|UNK|SEP|CLS|MASK|STOP|START|END|FIRST|LAST|SPECIAL|IMAGE|MAX|MIN|NUM|PER)_TOKEN\d*$"
)
"""Names of tokens of text, or of their number."""
NO_SECRET_VALUE_PATTERN = re.compile(r"|0|1|true|false|yes|no|on|off|/.*|\$.*", re.IGNORECASE)
"""Values that are no secret under any name: switches, paths, other variables."""


class SecretFound(ValueError):
    """A value may be a secret, so no message repeats it."""


def refuse_secret(text: str) -> None:
    """Raise `InvalidInput` if a text holds what looks like a token or a private key.

    The message does not repeat the secret.
    """
    if match := SECRET_PATTERN.search(text):
        raise InvalidInput(
            found=f"{match.group()[:4]}… ({len(text)} characters)",
            rule="no secret is ever written into a file",
            fix="remove it, revoke it, and name its environment variable instead",
        )


def is_secret(name: str, value: str) -> bool:
    """Return whether an environment variable holds a secret, by its name."""
    upper_name = name.upper()
    if TEXT_TOKEN_PATTERN.search(upper_name) or NO_SECRET_VALUE_PATTERN.fullmatch(value):
        return False
    return SECRET_NAME_PATTERN.search(upper_name) is not None


def is_one_line(text: str) -> bool:
    """Return whether a text has no line breaks and no other control characters but tabs."""
    return all(c == "\t" or unicodedata.category(c) not in CONTROL_CATEGORIES for c in text)


def is_path(text: str) -> bool:
    """Return whether a text is an absolute path that may be written into exported files."""
    plain = is_one_line(text) and not set(text) & set(NOT_IN_PATHS)
    return text.startswith("/") and len(text) <= MAX_TEXT and plain and ".." not in text.split("/")


def matches_text(pattern: re.Pattern[str], rule: str) -> AfterValidator:
    """Return the validator of text that matches a pattern and holds no secret."""
    return valid_text(
        lambda text: len(text) <= MAX_TEXT and pattern.fullmatch(text) is not None,
        f"{rule}; fix: use only what matches {pattern.pattern}",
    )


def valid_text(is_valid: Callable[[str], bool], problem: str) -> AfterValidator:
    """Return the validator of text without secrets.

    Args:
        is_valid: Whether a text is valid; secrets are refused in any case.
        problem: `rule; fix: fix`, for texts that are not valid.
    """

    def check(text: str) -> str:
        if SECRET_PATTERN.search(text):
            raise SecretFound(
                "no secret is ever written; fix: name its environment variable under `secrets`"
            )
        if not is_valid(text):
            raise ValueError(problem)
        return text

    return AfterValidator(check)


def integer_as_text(value: Any) -> Any:
    """Return an integer that was written without quotes as text; anything else as it is.

    Raises:
        ValueError: For true, false and fractions, whose text is not that which was written.
    """
    if isinstance(value, bool | float):
        rule = "text or an integer"
        raise ValueError(f"{rule}; fix: write it in quotes, as the program that reads it needs it")
    return str(value) if isinstance(value, int) else value


IntegerAsText = BeforeValidator(integer_as_text)
"""Reads an integer that was written without quotes as text."""
TextOrInteger = WithJsonSchema({"type": ["string", "integer"]})

PlainName = Annotated[
    str, matches_text(NAME_PATTERN, "a name of letters, digits, `_`, `.` and `-`")
]
EnvironmentName = Annotated[
    str,
    matches_text(
        ENVIRONMENT_NAME_PATTERN,
        "the name of an environment variable, of letters, digits and `_`",
    ),
]
Text = Annotated[
    str,
    valid_text(
        lambda text: len(text) <= MAX_TEXT and is_one_line(text),
        f"text of one line, without control characters, of at most {MAX_TEXT:,} characters; "
        "fix: remove the line breaks, or shorten it",
    ),
]
EnvironmentValue = Annotated[Text, IntegerAsText, TextOrInteger]
"""Literal: launchers quote it, so that no shell expands `$VAR` or `~` in it."""
AbsolutePath = Annotated[
    str,
    valid_text(
        is_path,
        f"an absolute path without `..`, line breaks and {NOT_IN_PATHS}; "
        "fix: write the path that is meant, or rename a folder",
    ),
]
ContainerImage = Annotated[
    str,
    valid_text(
        lambda text: len(text) <= MAX_TEXT and IMAGE_PATTERN.fullmatch(text) is not None,
        "the name of a container image, such as registry.example.com/nlp/train:1; "
        "fix: write it without `docker:` and in the form host/name:tag",
    ),
]
