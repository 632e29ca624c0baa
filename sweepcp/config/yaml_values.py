"""Values of YAML text: the core schema of YAML 1.2, strict and bounded."""

import re
from typing import Any

import yaml

from sweepcp.errors import InvalidInput

MAX_VALUES = 20_000
"""Of a document, counted after aliases are followed: a few lines of aliases can stand for billions
of values."""
MAX_LEVELS = 40
"""Of lists and mappings inside each other."""
MAX_INTEGER = 1 << 63
"""Integers are below it: those that every reader of JSON takes."""
MAX_FLOAT = 1e100
"""Numbers and their reciprocals are at most this, so that products of a few are finite."""
DOCUMENT = "the document"
"""The key of an error that concerns a file as a whole."""
KeyPath = tuple[int | str, ...]
"""Keys of mappings and indices of lists, from the document down."""
TAG = "tag:yaml.org,2002:"
DIGITS = r"[0-9]+(?:_[0-9]+)*"
NUMBERS = {
    "int": re.compile(rf"[-+]?{DIGITS}|0o[0-7]+|0x[0-9a-fA-F]+"),
    "float": re.compile(
        rf"[-+]?(?:\.{DIGITS}|{DIGITS}(?:\.(?:{DIGITS})?)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
    ),
}
"""The numbers of the core schema, and digits in groups: 2_662_400."""
CONSTANTS: dict[str, dict[str, Any]] = {
    "null": dict.fromkeys(("", "~", "null", "Null", "NULL")),
    "bool": dict.fromkeys(("true", "True", "TRUE"), True)
    | dict.fromkeys(("false", "False", "FALSE"), False),
}
KINDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "null": "nothing (null)",
    "str": "text",
    "seq": "a list",
    "map": "a mapping of keys to values",
}
"""The tags of the core schema, as messages name them."""
REFUSED_CHARACTERS = re.compile(
    "[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)
"""Control characters, and those that YAML 1.1 takes for ends of lines and YAML 1.2 does not."""


def parse_yaml(text: str, file: object, key: KeyPath = ()) -> Any:
    """Return the content of one YAML document, as `read_yaml` does.

    Args:
        text: The document.
        file: Where it comes from, for messages.
        key: The key whose value it is, for messages.

    Raises:
        InvalidInput: It is not valid YAML, has a duplicate key, a key that is no text, or a value
            that JSON does not have. The error names the line, if there are several.
    """
    document = _Document(text, file, key)
    node = document.compose()
    return None if node is None else document.convert(node, key)


def compose_yaml(text: str, file: object) -> yaml.Node | None:
    """Return the node of one YAML document, which knows lines; None for an empty one."""
    return _Document(text, file, ()).compose()


class _Loader(yaml.SafeLoader):
    """Composer of nodes with the tags of YAML 1.2, of bounded depth and number."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.levels = 0
        self.nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node, which PyYAML does for every key and value, within the bounds."""
        self.levels += 1
        self.nodes += 1
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.levels > MAX_LEVELS + 1:
            rule = f"at most {MAX_LEVELS} lists and mappings inside each other"
            raise yaml.MarkedYAMLError(problem="more", problem_mark=mark, note=rule)
        if self.nodes > MAX_VALUES:
            rule = f"at most {MAX_VALUES:,} keys and values"
            raise yaml.MarkedYAMLError(problem="more", problem_mark=mark, note=rule)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.levels -= 1
        return node

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        if kind is not yaml.ScalarNode:
            return TAG + ("seq" if kind is yaml.SequenceNode else "map")
        return TAG + (_kind_of_plain(value) if implicit[0] else "str")


def is_number(text: str) -> bool:
    """Return whether a text is a finite number where it stands without quotes."""
    return _kind_of_plain(text) in NUMBERS and not text.lower().endswith(("inf", "nan"))


def _kind_of_plain(text: str) -> str:
    """Return the kind of a scalar without quotes."""
    for kind, values in CONSTANTS.items():
        if text in values:
            return kind
    return next((kind for kind, number in NUMBERS.items() if number.fullmatch(text)), "str")


class _Document:
    """The text of one document, and the file that messages name."""

    def __init__(self, text: str, file: object, key: KeyPath) -> None:
        self.text, self.file, self.key = text, file, key
        self.values = 0
        self.open: list[yaml.Node] = []
        """Lists and mappings whose content is being converted."""

    def compose(self) -> yaml.Node | None:
        """Return the node of the document, or None if it is empty."""
        if match := REFUSED_CHARACTERS.search(self.text):
            line = self.text.count("\n", 0, match.start())
            raise self.error(
                line,
                found=f"character U+{ord(match.group()):04X}",
                rule="text without control characters, in UTF-8",
                fix="save the file as UTF-8 text, and write such a character as an escape in "
                "double quotes",
            )
        loader = _Loader(self.text)
        try:
            node: yaml.Node | None = loader.get_single_node()
        except yaml.MarkedYAMLError as error:
            raise self._syntax_error(error) from None
        except (ValueError, OverflowError, yaml.YAMLError) as error:
            # The scanner does not guard escapes such as "\UFFFFFFFF".
            raise self.error(
                loader.line,
                found=str(error),
                rule="valid YAML",
                fix="correct the line",
            ) from None
        return node

    def convert(self, node: yaml.Node, path: KeyPath) -> Any:
        """Return the value of a node; `path` is its key, for messages."""
        self.values += 1
        if self.values > MAX_VALUES:
            rule = f"at most {MAX_VALUES:,} values, counted where aliases stand for them"
            raise self.value_error(node, path, "more", rule=rule, fix="use fewer aliases")
        kind = node.tag.removeprefix(TAG)
        if isinstance(node, yaml.ScalarNode) and kind in ("str", *NUMBERS, *CONSTANTS):
            return self._scalar(node, path, kind)
        if kind != ("map" if isinstance(node, yaml.MappingNode) else "seq"):
            shown = node.tag.replace(TAG, "!!")
            rule = f"no tags but those of YAML's core schema: {', '.join(f'!!{k}' for k in KINDS)}"
            raise self.value_error(node, path, shown, rule=rule, fix="remove the tag")
        if node in self.open:
            rule = "an alias outside of what it repeats"
            raise self.value_error(
                node, path, "an alias of a list or mapping, inside it", rule=rule, fix="remove it"
            )
        self.open.append(node)
        value = self._mapping(node, path) if kind == "map" else self._sequence(node, path)
        self.open.pop()
        return value

    def _sequence(self, node: yaml.Node, path: KeyPath) -> list[Any]:
        return [self.convert(item, (*path, index)) for index, item in enumerate(node.value)]

    def _mapping(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for key_node, value_node in node.value:
            self._check_comma(node, key_node, value_node, path)
            key = self._key(key_node, path)
            if key in content:
                raise self.value_error(
                    key_node,
                    (*path, key),
                    f"duplicate key {key!r}",
                    rule="a mapping with each key once",
                    fix="remove one of the two",
                )
            content[key] = self.convert(value_node, (*path, key))
        return content

    def _check_comma(
        self, mapping: yaml.Node, key: yaml.Node, value: yaml.Node, path: KeyPath
    ) -> None:
        """Refuse a number that a comma made a key of: `{share: 0,1}` has the keys share and 1."""
        is_empty = value.start_mark.index == value.end_mark.index
        is_flow = isinstance(mapping, yaml.MappingNode) and mapping.flow_style
        if is_flow and is_empty and key.tag.removeprefix(TAG) in NUMBERS:
            raise self.value_error(
                key,
                path,
                f"a comma before {key.value}",
                rule="a comma only between the entries of `{...}`",
                fix="write a decimal point as in 0.5, and digit groups as in 1_000",
            )

    def _key(self, node: yaml.Node, path: KeyPath) -> str:
        kind = node.tag.removeprefix(TAG)
        if not isinstance(node, yaml.ScalarNode) or kind != "str":
            shown = node.value if isinstance(node, yaml.ScalarNode) else KINDS.get(kind, node.tag)
            rule = f"keys are text; this one is {KINDS.get(kind, node.tag)}"
            fix = f'put it in quotes: "{shown}"'
            if not isinstance(node, yaml.ScalarNode):
                fix = "write `key: value`, and put text that has brackets or braces in quotes"
            raise self.value_error(node, path, shown, rule=rule, fix=fix)
        if node.value == "<<":
            raise self.value_error(
                node,
                (*path, "<<"),
                "a merge key",
                rule="keys of YAML 1.2, which has no merge key `<<`",
                fix="repeat the keys that it stands for",
            )
        return self._text(node, path)

    def _scalar(self, node: yaml.Node, path: KeyPath, kind: str) -> Any:
        text: str = node.value
        if kind == "str":
            return self._text(node, path)
        if kind in CONSTANTS and text in CONSTANTS[kind]:
            return CONSTANTS[kind][text]
        if kind in NUMBERS and NUMBERS[kind].fullmatch(text):
            return self._number(node, path, kind)
        # A tag that the text does not match.
        raise self.value_error(
            node, path, f"!!{kind} {text}", rule=KINDS[kind], fix="correct it, or remove the tag"
        )

    def _number(self, node: yaml.Node, path: KeyPath, kind: str) -> int | float:
        digits = node.value.replace("_", "")
        if kind == "float":
            number = float(digits.lower().replace(".inf", "inf").replace(".nan", "nan"))
            is_zero = number == 0 and not re.search("[1-9]", re.split("[eE]", digits)[0])
            if not is_zero and not 1 / MAX_FLOAT <= abs(number) <= MAX_FLOAT:
                rule = f"0, or a number of {1 / MAX_FLOAT:g} to {MAX_FLOAT:g} in magnitude"
                fix = "change it, or put it in quotes if it is text"
                raise self.value_error(node, path, node.value, rule=rule, fix=fix)
            return number
        base = {"0o": 8, "0x": 16}.get(digits[:2], 10)
        # Python refuses to read thousands of digits.
        integer = int(digits, base) if len(digits) <= 100 else MAX_INTEGER
        if not -MAX_INTEGER <= integer < MAX_INTEGER:
            rule = "an integer of at most 64 bits"
            fix = "change it, or put it in quotes if it is text"
            raise self.value_error(node, path, node.value, rule=rule, fix=fix)
        return integer

    def _text(self, node: yaml.Node, path: KeyPath) -> str:
        # JSON writes a character as two escapes; YAML reads each of them as one.
        text: str = node.value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if "\0" in text or text.count("\ufffd") != node.value.count("\ufffd"):
            raise self.value_error(
                node,
                path,
                node.value,
                rule="text that UTF-8 can hold, without the character NUL",
                fix="remove the escape",
            )
        return text

    def _syntax_error(self, error: yaml.MarkedYAMLError) -> InvalidInput:
        problem = error.problem or "not valid YAML"
        mark = error.problem_mark or error.context_mark
        fix = "correct the line and its indentation; put text with special characters in quotes"
        if r"'\t'" in problem:
            fix = "indent with spaces, not with tabs, and put none after a key"
        if "another document" in problem:
            fix = "remove the line `---`, and write one file for each document"
        return self.error(
            mark.line if mark else None,
            found=problem,
            rule=error.note or "one valid YAML document",
            fix="write less" if error.note else fix,
        )

    def value_error(
        self, node: yaml.Node, path: KeyPath, found: str, *, rule: str, fix: str
    ) -> InvalidInput:
        """Return the error of a value, which is at `path`."""
        return self.error(
            node.start_mark.line, key=_format_key(path), found=found, rule=rule, fix=fix
        )

    def error(
        self, line: int | None, *, key: str = "", found: str, rule: str, fix: str
    ) -> InvalidInput:
        """Return an error that names a line, counted from 0, if the text has several."""
        is_numbered = line is not None and "\n" in self.text
        number = (line or 0) + 1
        return InvalidInput(
            file=f"{self.file}:{number}" if is_numbered else self.file,
            key=key or _format_key(self.key) or (f"line {number}" if is_numbered else DOCUMENT),
            found=found,
            rule=rule,
            fix=fix,
        )


def _format_key(path: KeyPath) -> str:
    return ".".join(map(str, path))
