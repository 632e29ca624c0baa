"""Random damage to files: to the structure that a file holds, to its bytes, and to the file itself.

Everything is drawn from a `random.Random`, so a seed and a number name a case.
"""

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DEPTH, DIGITS, LONG = 5_000, 5_000, 5_000
PRINTABLE = 10**4000
"""Python refuses to print larger integers."""


class Raw(str):
    """Text that stands in the file as it is, in place of a value or a key."""


class Pairs(list[tuple[Any, Any]]):
    """A mapping as a list of pairs, whose keys may occur twice."""


COMMON: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7.5, -0.0, 1e-320, 1e308, 10**12, 2**31, 2**63, 10**30,
    10**400,
    "", " ", "0", "1", "-1", "1e3", "nan", "null", "true", "x", "no", "..", ".", "/", "~",
    "~nobody",
    "~/x", "../../x", "/dev/null", "/nonexistent/x", "a/b", "a\tb", "a\nb", "a\x00b", "\x1b[31m",
    "é", "𝄞", "\u2028", "\ufeff", "<b>&amp;</b>", "$(touch x)", "`id`", "%s%n", "{0}", "[bold]",
    "{{x}}", "*", "?", "[", "(", "a" * LONG, "é" * 300, "../" * 500,
    [], {}, [[]], [{}], {"": None}, [None], ["x"], [1, 2], {"x": 1}, [0] * 300,
]  # fmt: skip
"""Values of every type, and extreme ones."""
JSON_TEXTS = [
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * DIGITS, "-" + "9" * DIGITS, "01", "+1",
    '"\\ud800"', '"\\udc00x"', '{"\\ud800": 1}', '"\\u0000"', "[" * DEPTH + "]" * DEPTH,
    '{"a":' * DEPTH + "1" + "}" * DEPTH, "[" * 150 + "]" * 150, "nul", "'x'", "[1,]", '{"a" 1}',
    '{"a": 1, "a": 2}', "1.0", "1e2", "-0", "0x10", "undefined", "",
]  # fmt: skip
"""Values as they stand in a JSON file, right or wrong."""
YAML_TEXTS = [
    "!!int abc", "!!float x", "!!binary x", "!!timestamp x", "!!set {a, b}", "!!omap [a: 1]",
    "!!python/object/apply:os.system [id]", "!x y", "&a [*a]", "*nowhere", "&b {<<: *b}",
    "2024-05-13", "2024-13-45", "12:00:00", "190:20:30", "1_000", "0o17", "0b11", "0x_f", ".nan",
    ".inf", "-.Inf", "~", "no", "off", "y", "=", "<<", "? [a, b]", "{? [a]: 1}", "{? {a: 1}: 2}",
    "{1: a, '1': b}", "{null: 1}", "{true: 1}", "{<<: {a: 1}}", "{<<: [1]}", "|\n  text", ">-\n  x",
    '"\\ud800"', '"\\x00"', "'", '"', "[", "{", "}", "@x", "`x", "%x", "a: b: c", "- - -", "\t",
    "[" * DEPTH + "]" * DEPTH, "9" * DIGITS, "1e999", "-" * 40, "...", "--- x",
]  # fmt: skip
"""Values as they stand in a YAML file."""
KEYS: list[Any] = [
    "", "x", "format", "id", "name", "__class__", "a\x00b", "é", "a" * LONG, "*", "~", "/", "..",
    Raw("1"), Raw("-1"), Raw("null"), Raw("true"), Raw("1.5"), Raw("2024-05-13"), Raw("<<"),
    Raw("? [a]"), Raw("? {a: 1}"), Raw("&k x"), Raw("*k"), Raw("!!int x"), Raw('"\\ud800"'),
    Raw('"\\u0000"'),
]  # fmt: skip
TOKENS = [
    b"\x00", b"\xff", b"\xfe\xff", b"\xed\xa0\x80", b"\xc3", b"\xef\xbb\xbf", b"\x1a", b"\r",
    b"\n\n",
    b"\t", b" ", b"{", b"}", b"[", b"]", b'"', b"'", b":", b",", b"-", b"#", b"&a ",
    b"*a", b"!!int ",
    b"!!python/name:os.system ", b"<<: *a\n", b"---\n", b"...\n", b"%YAML 9.9\n---\n", b"\\",
    b"\\u",
    b"\\ud800", b"NaN", b"null", b"9" * 400, b"1e999", b"[" * DEPTH, b'{"a":' * DEPTH, b"- " * 2000,
    b"? ", b"| ", b"> ", b"@", b"`", b"\xe2\x80\xa8", b"\x7f", b"\x85",
]  # fmt: skip


def emit(value: Any) -> str:
    """Return a value as JSON, which is also YAML; what JSON lacks stands in it as it is."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict | Pairs):
        pairs = value.items() if isinstance(value, dict) else value
        return "{" + ", ".join(f"{emit_key(key)}: {emit(inner)}" for key, inner in pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(emit, value)) + "]"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > PRINTABLE:
        return "9" * DIGITS
    return json.dumps(value, default=str)


def emit_key(key: Any) -> str:
    """Return the key of a mapping: text in quotes, anything else as it is."""
    return str(key) if isinstance(key, Raw) else json.dumps(str(key))


def mutate_value(value: Any, rng: random.Random, texts: list[str]) -> Any:
    """Return a value with one to three changes of its structure."""
    root = {"": copy.deepcopy(value)}
    for _ in range(rng.choice([1, 1, 1, 1, 2, 3])):
        places = list(_places(root))
        if not places:
            break
        container, key = rng.choice(places)
        rng.choice(_OPERATIONS)(container, key, rng, texts, places)
    return root[""] if "" in root else Raw("")


def _places(container: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every value as a container and its key or index there."""
    if not isinstance(container, dict | list) or isinstance(container, Pairs):
        return
    keys = list(container) if isinstance(container, dict) else range(len(container))
    for key in keys:
        yield container, key
        yield from _places(container[key])


Operation = Callable[[Any, Any, random.Random, list[str], list[tuple[Any, Any]]], None]


def _any_value(rng: random.Random, texts: list[str]) -> Any:
    if rng.random() < 0.4:
        return Raw(rng.choice(texts))
    return copy.deepcopy(rng.choice(COMMON))


def _replace(container: Any, key: Any, rng: random.Random, texts: list[str], places: Any) -> None:
    container[key] = _any_value(rng, texts)


def _vary(container: Any, key: Any, rng: random.Random, texts: list[str], places: Any) -> None:
    """Change a value a little, and keep its type or not."""
    value = container[key]
    if isinstance(value, bool) or value is None:
        container[key] = rng.choice([not value, int(bool(value)), str(value).lower(), [value]])
    elif isinstance(value, int | float):
        changed: list[Any] = [
            -value, value + 1, value - 1, value * 10, value // 3, value * 10**20, 0, str(value),
            f"{value}x", [value], {"value": value}, Raw(f"{value}.0"), Raw(f"{value}e400"),
        ]  # fmt: skip
        container[key] = rng.choice(changed)
    elif isinstance(value, str):
        changed = [
            value[:-1], value + "x", value.upper(), value * 2, f" {value}", f"{value}\n",
            value[::-1],
            "", [value], {value: value}, value + "\x00", f"../{value}", f"~{value}",
            value[:1] * 300,
            value.replace("a", "é"), rng.choice(["0", "f", "a"]) * len(value),
        ]  # fmt: skip
        container[key] = rng.choice(changed)
    elif isinstance(value, list) and not isinstance(value, Pairs):
        changed = [
            [], value[:-1], value[1:], value + value, value[::-1], [value], [*value, None],
            dict(enumerate(map(str, range(len(value))))), value[:1] * 500, [*value, value[:1]],
        ]  # fmt: skip
        container[key] = rng.choice(changed)
    elif isinstance(value, dict):
        changed = [{}, list(value), list(value.values()), [value], {"x": value}, emit(value)]
        container[key] = rng.choice(changed)


def _delete(container: Any, key: Any, rng: random.Random, texts: list[str], places: Any) -> None:
    del container[key]


def _repeat_key(
    container: Any, key: Any, rng: random.Random, texts: list[str], places: Any
) -> None:
    """Let a key of a mapping occur twice, with another value or the same."""
    value = container[key]
    if not isinstance(value, dict) or not value:
        return
    pairs = Pairs(value.items())
    repeated, before = rng.choice(pairs)
    pairs.append((repeated, rng.choice([before, _any_value(rng, texts)])))
    container[key] = pairs


def _rename(container: Any, key: Any, rng: random.Random, texts: list[str], places: Any) -> None:
    if isinstance(container, dict):
        renamed = rng.choice([*KEYS, f"{key}s", f"{key} ", str(key)[:-1], str(key).upper()])
        container[renamed] = container.pop(key)


def _add_key(container: Any, key: Any, rng: random.Random, texts: list[str], places: Any) -> None:
    if isinstance(container, dict):
        container[rng.choice(KEYS)] = _any_value(rng, texts)
    elif isinstance(container, list):
        container.insert(rng.randrange(len(container) + 1), _any_value(rng, texts))


def _swap(container: Any, key: Any, rng: random.Random, texts: list[str], places: Any) -> None:
    other, other_key = rng.choice(places)
    value = copy.deepcopy(container[key])
    try:
        container[key] = copy.deepcopy(other[other_key])
        other[other_key] = value
    except (KeyError, IndexError):
        return


_OPERATIONS: list[Operation] = [
    _replace, _replace, _replace, _vary, _vary, _vary, _delete, _repeat_key, _rename, _add_key,
    _swap,
]  # fmt: skip


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Return bytes with one to four changes: cut, flipped, inserted, removed, repeated, encoded."""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at, to = sorted(rng.randrange(len(content) + 1) for _ in range(2))
        token = rng.choice(TOKENS)
        short = min(to, at + rng.randrange(1, 20))
        bit = bytes([content[at] ^ 1 << rng.randrange(8)]) if at < len(content) else b""
        changed = [
            content[:at], content[at:], content[:at] + token + content[at:], content[:at] + token,
            content[:at] + bit + content[at + 1 :], content[:at] + content[short:],
            content[:at] + content[at:short] * 3 + content[short:],
            content[:at] + token + content[short:],
        ]  # fmt: skip
        content = rng.choice(changed)
    rare = rng.random()
    if rare < 0.02:
        return b""
    if rare < 0.04:
        return content.decode("latin-1").encode(rng.choice(["utf-16", "utf-32", "utf-8-sig"]))
    if rare < 0.06:
        return rng.randbytes(rng.randrange(1, 200))
    return content


def damage_file(path: Path, rng: random.Random) -> None:
    """Replace a file by nothing, a folder, a link to nothing or to itself, or an empty file."""
    path.unlink()
    kind = rng.randrange(5)
    if kind == 1:
        path.mkdir()
    elif kind == 2:
        path.symlink_to(path)
    elif kind == 3:
        path.symlink_to(path.parent / "nowhere")
    elif kind == 4:
        path.touch()


def restore_file(path: Path, content: bytes) -> None:
    """Put a file back, whatever is in its place."""
    remove(path)
    path.write_bytes(content)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if there is one."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
