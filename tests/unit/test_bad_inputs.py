"""Every bad input of the table ends with status 2 and one message, and nothing is written."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from sweepcp.cli.entry import main
from sweepcp.config.yaml_values import parse_yaml
from sweepcp.data.source_files import resolve_source
from sweepcp.errors import InvalidInput
from sweepcp.util.files import shipped_folder
from sweepcp.util.paths import user_path
from tests.exports import promoted
from tests.make import jsonl
from tests.make import source as make_source
from tests.make_run import write_run
from tests.unit.bad_inputs import (
    CONTENTS,
    DOCUMENTS,
    EXCLUDED,
    LABELLED,
    OPTIONS,
    OVERRIDES,
    SOURCES,
    VALUES,
    label,
)

EXPERIMENT = """\
name: case
seed: 0
base:
  max_lr: 3e-3
  pretrain:
    config: {model_type: llama, max_position_embeddings: 256}
    tokenizer: bytes
    mixture: {gen: 1.0}
    tokens: 20_480
    training: {seq_len: 128, batch_tokens: 2048}
sources:
  - {name: dom, role: domain, files: [dom.jsonl], held_out: 0.1}
  - {name: gen, role: general, files: [gen.jsonl], held_out: 0.1}
suites:
  domain: [{held_out: dom, chars: 400}]
  general: [{held_out: gen, chars: 400}]
space: lr-mix
training: {seq_len: 128, batch_tokens: 1024}
budget: {trials: 1, tokens: 10_240}
choose: {max_regression: 50}
"""
SHIPPED = {
    "space": "search_spaces/lr-mix.yaml",
    "target": "experiments/targets/llama-3.1-8b-4x8.yaml",
    "recipe": "experiments/recipes/e-llama.yaml",
    "site": "experiments/sites/example.yaml",
}
COMMANDS = {
    "experiment": ["plan", "experiment.yaml"],
    "space": ["plan", "experiment.yaml", "--set", "space=space.yaml"],
    "target": ["promote", "--recipe", "recipe.yaml", "--target", "target.yaml", "--out", "new"],
    "recipe": ["promote", "--recipe", "recipe.yaml", "--target", "target.yaml", "--out", "new"],
    "site": ["export", "bundle", "--to", "slurm", "--site", "site.yaml", "--out", "new"],
}
"""A command that reads the file of each kind."""
SCALARS = [
    # (text, its value)
    ("no", "no"),
    ("NO", "NO"),
    ("on", "on"),
    ("yes", "yes"),
    ("y", "y"),
    ("true", True),
    ("FALSE", False),
    ("tRUE", "tRUE"),
    ("null", None),
    ("~", None),
    ("", None),
    ("NONE", "NONE"),
    ("12:00:00", "12:00:00"),
    ("1:30", "1:30"),
    ("190:20:30.15", "190:20:30.15"),
    ("2024-05-13", "2024-05-13"),
    ("2024-05-13 12:00:00Z", "2024-05-13 12:00:00Z"),
    ("017", 17),
    ("0o17", 15),
    ("0x1F", 31),
    ("-0x1F", "-0x1F"),
    ("0b1", "0b1"),
    ("08", 8),
    ("+5", 5),
    ("2_662_400", 2_662_400),
    ("1__000", "1__000"),
    ("_1", "_1"),
    ("1_", "1_"),
    ("1_000.5", 1000.5),
    ("1e-4", 1e-4),
    ("1E5", 1e5),
    (".5", 0.5),
    ("5.", 5.0),
    ("1e5.0", "1e5.0"),
    ("1,000", "1,000"),
    ("inf", "inf"),
    ("nan", "nan"),
    ("=", "="),
    ("!!str 5", "5"),
    ("!!float 5", 5.0),
    ("!!int '7'", 7),
    ("'5'", "5"),
    ('"\\ud83d\\ude00"', "\N{GRINNING FACE}"),
    ("9223372036854775807", 2**63 - 1),
    ("0e999", 0.0),
    ("0." + "3" * 5000, 1 / 3),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file of each kind that people write, a run, and a bundle."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    for kind, name in SHIPPED.items():
        parent = shipped_folder(name.partition("/")[0])
        shutil.copy(parent.parent / name, folder / f"{kind}.yaml")
    for name in ("dom", "gen"):
        jsonl(folder / f"{name}.jsonl", [{"text": f"{name} text {n}"} for n in range(40)])
    (folder / "folder").mkdir()
    (folder / "folder" / "file").write_text("x")
    (folder / "file").write_text("x")
    os.mkfifo(folder / "pipe")
    (folder / "nowhere").symlink_to("nothing")
    (folder / "round").symlink_to("round")
    (folder / "mined" / "scores").mkdir(parents=True)
    (folder / "mined" / "scores" / "weights.npy").touch()
    write_run(folder / "run", 2)
    promoted(folder, "llama-3.1-8b-4x8")
    return folder


Refused = Callable[..., None]


@pytest.fixture
def refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refused:
    """A check that a command is refused in one message with these parts, and writes nothing."""
    monkeypatch.chdir(folder)

    def check(args: list[str], *parts: str) -> None:
        before = snapshot(folder)
        monkeypatch.setattr(sys, "argv", ["sweepcp", *args])
        with pytest.raises(SystemExit) as stop:
            main()
        message = capsys.readouterr().err
        assert stop.value.code == 2, message
        lines = message.splitlines()
        assert [line.split(":")[0].strip() for line in lines] == ["Error", "found", "rule", "fix"]
        for part in parts:
            assert part in message
        assert snapshot(folder) == before

    return check


def snapshot(folder: Path) -> list[tuple[str, int]]:
    """Return the names and sizes of all files below a folder."""
    return sorted((str(path), path.lstat().st_size) for path in folder.rglob("*"))


@contextmanager
def replaced(file: Path, content: bytes) -> Iterator[None]:
    """Put another content into a file for a while."""
    before = file.read_bytes() if file.exists() else None
    file.write_bytes(content)
    try:
        yield
    finally:
        file.unlink()
        if before is not None:
            file.write_bytes(before)


def with_kinds(rows: list[Any]) -> list[Any]:
    """Return rows with a kind of file for each, all kinds in turn."""
    return [
        pytest.param(kind, *row[1:], id=f"{kind}: {row[0]}")
        for kind, row in zip(cycle(COMMANDS), rows, strict=False)
    ]


@pytest.mark.parametrize(("kind", "addition", "place", "rule"), with_kinds(DOCUMENTS))
def test_additions(folder: Path, refused: Refused, kind: str, addition: str, place: str, rule: str):
    file = folder / f"{kind}.yaml"
    text = file.read_text() + addition + "\n"
    with replaced(file, text.encode("utf-8", "surrogatepass")):
        refused(COMMANDS[kind], f"{kind}.yaml", f": {place}", rule)


@pytest.mark.parametrize(("kind", "content", "place", "rule"), with_kinds(CONTENTS))
def test_contents(folder: Path, refused: Refused, kind: str, content: bytes, place: str, rule: str):
    with replaced(folder / f"{kind}.yaml", content):
        refused(COMMANDS[kind], f"{kind}.yaml", f": {place}", rule)


@pytest.mark.parametrize(("kind", "old", "new", "place", "rule"), VALUES)
def test_values(
    folder: Path, refused: Refused, kind: str, old: str, new: str, place: str, rule: str
):
    file = folder / f"{kind}.yaml"
    text = file.read_text()
    assert old in text
    with replaced(file, text.replace(old, new, 1).encode()):
        refused(COMMANDS[kind], f"{kind}.yaml", place, rule)


@pytest.mark.parametrize(("override", "place", "rule"), OVERRIDES)
def test_overrides(refused: Refused, override: str, place: str, rule: str):
    refused(["plan", "experiment.yaml", "--set", override], "--set", place, rule)


@pytest.mark.parametrize(("command", "value", "place", "rule"), OPTIONS)
def test_options(refused: Refused, command: str, value: str, place: str, rule: str):
    refused([*command.split(), value], place, rule)


@pytest.mark.parametrize(("fields", "place", "rule"), SOURCES)
def test_sources(refused: Refused, fields: dict[str, object], place: str, rule: str):
    source = {"name": "dom", "role": "domain"} | fields
    refused(["plan", "experiment.yaml", "--set", f"sources.0={json.dumps(source)}"], place, rule)


@pytest.mark.parametrize(("line", "rule"), EXCLUDED)
def test_exclude_lists(folder: Path, refused: Refused, line: bytes, rule: str):
    with replaced(folder / "exclude.jsonl", b'{"id": "0123456789abcdef"}\n\n' + line):
        command = ["data", "build", "experiment.yaml", "--set", "sources.dom.exclude=exclude.jsonl"]
        refused(command, "exclude.jsonl:3: ", rule)


@pytest.mark.parametrize(("line", "rule"), LABELLED)
def test_labels(folder: Path, refused: Refused, line: bytes, rule: str):
    with replaced(folder / "mined" / "sample.jsonl", label() + b"\n" + line):
        command = ["data", "mine", "experiment.yaml", "--corpus", "gen", "--out", "mined"]
        refused(command, "sample.jsonl:2: ", rule)


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_scalars_are_those_of_yaml_1_2_and_digits_in_groups(text: str, value: object):
    parsed = parse_yaml(text, "x.yaml")
    assert parsed == value
    assert type(parsed) is type(value)


def test_an_exclude_list_is_read_before_any_work(folder: Path):
    with replaced(folder / "exclude.jsonl", b"{"), pytest.raises(InvalidInput, match=r"\.jsonl:1"):
        resolve_source(make_source(files=["dom.jsonl"], exclude="exclude.jsonl"), folder=folder)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("~", "/home/me"),
        ("~/x", "/home/me/x"),
        ("~x.jsonl", "/work/~x.jsonl"),
        ("./~/x", "/work/~/x"),
        ("./~root/x", "/work/~root/x"),
        ("a/~", "/work/a/~"),
        ("../x", "/work/../x"),
        ("/x", "/x"),
        ("a b[1]*", "/work/a b[1]*"),
    ],
)
def test_paths(monkeypatch: pytest.MonkeyPatch, name: str, path: str):
    monkeypatch.setenv("HOME", "/home/me")
    assert user_path(name, folder=Path("/work")) == Path(path)


def test_folders_above_an_output_are_created(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    table = tmp_path / "a" / "b" / "trials.csv"
    monkeypatch.setattr(sys, "argv", ["sweepcp", "front", str(folder / "run"), "--csv", str(table)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert len(table.read_text().splitlines()) == 3


def test_messages_escape_what_a_terminal_would_obey():
    error = InvalidInput(file="a\x1b[2Jb\n", key="k" * 999, found="\u202e", rule="r\r", fix="é")
    assert (
        str(error)
        == f"a\\x1b[2Jb\\n: {'k' * 197}...\n  found: '\\u202e'\n  rule:  r\\r\n  fix:   é"
    )
