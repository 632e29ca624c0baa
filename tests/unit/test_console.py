"""Tables at every width, in every encoding: no number is cut, and nothing raises."""

import ast
import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from sweepcp.cli.app import echo_json
from sweepcp.cli.entry import main
from sweepcp.console.front import COLUMNS, front_rows, show_front
from sweepcp.console.progress import ConsoleProgress, make_console
from sweepcp.console.scorecard import show_scorecard
from sweepcp.console.stores import show_stores
from sweepcp.console.tables import UNBOUNDED, Column, Row, print_table
from sweepcp.runs.run_folder import Run, read_run
from sweepcp.util.streams import make_streams_printable, printable
from tests.make_run import write_run

MODULES = ("gzip", "zstandard", "os")
"""Whose `open` gives bytes."""
NUMBER = re.compile(r"[+-]?\d[\d,.]*(?:±\d[\d.]*)?")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(write_run(tmp_path_factory.mktemp("run") / "run", 8, documents=8))


def console_of(width: int, encoding: str = "utf-8") -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    return Console(file=file, width=width, height=25)


def text_of(console: Console) -> str:
    console.file.flush()
    stream = console.file.buffer  # type: ignore[attr-defined]
    return str(stream.getvalue().decode(console.encoding))


def numbers_in(text: str) -> set[str]:
    return set(NUMBER.findall(text))


@pytest.mark.parametrize("width", [*range(20, 141)])
def test_no_number_of_the_front_is_cut_at_any_width(run: Run, width: int):
    wide, console = console_of(UNBOUNDED), console_of(width)
    show_front(wide, run)
    show_front(console, run)
    text = text_of(console)
    assert "…" not in text
    assert set(text.split()) & {"chosen", "Choice"} == {"chosen", "Choice"}
    assert numbers_in(text) <= numbers_in(text_of(wide))
    assert max(map(len, text.splitlines())) <= width
    for row in front_rows(run):  # the id, and the two scores with their errors
        assert {row.cells[0], row.cells[5], row.cells[6]} <= set(text.split())


def test_columns_are_dropped_in_their_order_and_named(run: Run):
    seen = []
    for width in range(110, 36, -4):
        console = console_of(width)
        print_table(console, "Front", COLUMNS, front_rows(run))
        dropped = " ".join(text_of(console).partition("too narrow: ")[2].split()).split(", ")
        seen += [name for name in dropped if name and name not in seen]
    assert seen == ["proposed by", "domain", "general", "domain share", "LR fraction"]


def test_all_columns_are_shown_at_120_columns_and_where_there_is_no_width(run: Run):
    for width in (120, UNBOUNDED):
        console = console_of(width)
        show_front(console, run)
        text = text_of(console)
        assert "too narrow" not in text
        for name in ("LR fraction", "domain share", "proposed by", "unit", "items"):
            assert name in text


def test_a_table_without_room_for_its_first_columns_has_a_line_for_each_cell():
    columns = [Column(name="source", is_text=True), Column(name="tokens"), Column(name="share")]
    rows = [Row(cells=("a-source-with-a-long-name", "1,234,567,890", "12.34%"))]
    console = console_of(24)
    print_table(console, "Sources", columns, rows)
    assert text_of(console).splitlines() == [
        "",
        "Sources",
        "source:",
        "  a-source-with-a-long-name",
        "tokens: 1,234,567,890",
        "share: 12.34%",
        "",
    ]


def test_a_table_aligns_its_cells_and_wraps_the_names_of_columns_where_there_is_little_room():
    columns = [
        Column(name="trial", is_text=True),
        Column(name="domain share"),
        Column(name="", is_text=True),
    ]
    rows = [
        Row(cells=("base", "", ""), ends_section=True),
        Row(cells=("[b]日本", "12.5%", "•"), style="bold green", ends_section=True),
    ]
    expected = {
        30: [
            "trial    domain share   ",
            "─" * 24,
            "base                    ",
            " " * 24,
            "[b]日本         12.5%  •",
        ],
        20: [
            "         domain   ",
            "trial     share   ",
            "─" * 18,
            "base              ",
            " " * 18,
            "[b]日本   12.5%  •",
        ],
    }
    for width, lines in expected.items():
        console = console_of(width)
        print_table(console, "Trials", columns, rows)
        assert text_of(console).splitlines() == ["", "Trials", *lines]


def test_scorecards_and_stores_are_whole_at_every_width(run: Run):
    card = run.done[0].scorecard
    assert card is not None
    meta = {
        "train": {"documents": 12_345, "bytes": 98_765_432, "tokens": 23_456_789},
        "held_out": {"documents": 678},
    }
    store = SimpleNamespace(source="corpus", meta=meta, path="/a/long/path" * 9)
    for width in range(20, 141, 4):
        console = console_of(width)
        show_scorecard(console, card, "the run")
        show_stores(console, [store])  # type: ignore[list-item]
        text = text_of(console)
        assert "…" not in text
        assert store.path in text
        assert "23,456,789" in text
        for member in card.report.members:
            assert member.name in text
            assert f"{member.change:+.2f}±{member.change_se:.2f}" in text


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_the_progress_display_cuts_no_number(width: int):
    file = io.StringIO()
    console = Console(file=file, width=width, height=25, force_terminal=True, color_system=None)
    with ConsoleProgress(console) as progress:
        progress.update(
            "trials", done=12, total=3456, detail="0003 domain +12.34 % of 98,765 items"
        )
        progress.bars.refresh()
    lines = re.sub(r"\x1b\[[\d?]*[A-Za-z]", "\n", file.getvalue()).splitlines()
    shown = [line for line in lines if "trials" in line][-1]
    clock = r"\d:\d\d:\d\d"
    assert "12/3456" in shown
    assert numbers_in(re.sub(clock, "", shown)) <= {"12", "3456", "0003", "+12.34", "98,765"}


@pytest.mark.parametrize(
    ("columns", "width"),
    [("60", 60), ("0", UNBOUNDED), ("abc", UNBOUNDED), ("-5", UNBOUNDED), ("²", UNBOUNDED)],
)
def test_the_width_is_that_of_a_valid_columns_variable(
    columns: str, width: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "dumb")
    assert make_console().width == width


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", r"<= +-0.1 -> 12^2 gr\xf6\xdfe \u4e2d \xe9"),
        ("latin-1", r"<= ±0.1 -> 12² größe \u4e2d \xe9"),
        ("utf-8", r"≤ ±0.1 → 12² größe 中 \xe9"),
    ],
)
def test_characters_that_an_encoding_lacks_are_replaced(encoding: str, expected: str):
    name = b"\xe9".decode("utf-8", "surrogateescape")
    assert printable(f"≤ ±0.1 → 12² größe 中 {name}", encoding) == expected


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_commands_print_in_every_encoding(encoding: str, run: Run, monkeypatch: pytest.MonkeyPatch):
    undecodable = b"/no/\xe9\xff".decode("utf-8", "surrogateescape")
    commands = (
        ["front", str(run.path)],
        ["front", str(run.path), "--json"],
        ["front", "--help"],
        ["front", "/no/größe≤"],
        ["front", undecodable],
        ["plan", undecodable],
    )
    for arguments in commands:
        out, err = io.BytesIO(), io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding))
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(err, encoding=encoding))
        monkeypatch.setattr(sys, "argv", ["sweepcp", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        printed = out.getvalue() + err.getvalue()
        assert printed.decode(encoding)
        assert stop.value.code in (0, 2)


def test_json_is_valid_where_its_characters_cannot_be_printed(monkeypatch: pytest.MonkeyPatch):
    content = {"name": "größe ≤ " + b"\xff".decode("utf-8", "surrogateescape")}
    for encoding in ("ascii", "latin-1", "utf-8"):
        out = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding))
        make_streams_printable()
        echo_json(content)
        sys.stdout.flush()
        assert json.loads(out.getvalue().decode(encoding)) == content


def test_files_are_utf_8_in_every_locale():
    """`open` and the text of child processes would otherwise follow the locale."""
    sources = [*Path(sys.modules["sweepcp"].__file__ or "").parent.rglob("*.py")]
    assert len(sources) > 50
    found = [
        f"{source}:{call.lineno}"
        for source in sources
        for call in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and depends_on_locale(call)
    ]
    assert found == []


def depends_on_locale(call: ast.Call) -> bool:
    function, keywords = call.func, {keyword.arg for keyword in call.keywords}
    name = getattr(function, "attr", getattr(function, "id", ""))
    if name in ("run", "Popen", "check_output"):
        return "text" in keywords and "encoding" not in keywords
    is_path_method = isinstance(function, ast.Attribute) and name in ("read_text", "open")
    if not is_path_method and name not in ("open", "fdopen"):
        return False
    texts = [value.value for value in call.args if isinstance(value, ast.Constant)]
    is_text = not any("b" in text or text == "utf-8" for text in texts if isinstance(text, str))
    of_module = isinstance(function, ast.Attribute) and ast.unparse(function.value) in MODULES
    return is_text and not of_module and "encoding" not in keywords
