"""The report page of runs in every state, its server, and the escaping of text from a run."""

import base64
import hashlib
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

import sweepcp
from sweepcp.corpora.experiment import load_experiment
from sweepcp.errors import InvalidInput
from sweepcp.report.page import render_page, write_report
from sweepcp.report.page_tables import language_table
from sweepcp.report.sections import certainty_lines, experiment_text, progress_text
from sweepcp.report.server import make_server
from tests.make_run import write_run


class Reader(HTMLParser):
    """Tags with their attributes, and the texts of each kind of element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.inside: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.links += [
            str(value)
            for name, value in attrs
            if name in ("src", "href", "action", "srcset", "data")
        ]
        if tag not in ("meta", "link", "rect", "path"):
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.inside[-1] if self.inside else "", []).append(data)

    @property
    def words(self) -> str:
        return " ".join(
            t for tag, texts in self.texts.items() if tag not in ("script", "style") for t in texts
        )

    @property
    def numbers(self) -> dict[str, object]:
        return next(
            json.loads(text) for text in self.texts["script"] if text.startswith('{"texts"')
        )


def read(folder: Path, **rule: object) -> Reader:
    return Reader(render_page(sweepcp.load_run(folder).with_rule(**rule)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(
        tmp_path_factory.mktemp("run"), 16, documents=20, t0003="diverged", t0009="failed"
    )


def test_answer_has_the_scores_of_the_reporting_half(folder: Path):
    run, seen = sweepcp.load_run(folder), read(folder)
    assert run.chosen is not None
    assert run.chosen.scorecard is not None
    half = run.chosen.scorecard.report
    assert f"{half.domain:+.1f} ± {half.domain_se:.1f} % domain" in seen.words
    assert "finished: 16 of 16 trials have ended" in seen.words
    assert "evaluation noise only" in seen.words
    assert sum(tag == "h1" for tag, _ in seen.tags) == 1


def test_every_trial_has_a_row_and_every_failure_a_reason(folder: Path):
    seen = read(folder)
    assert [text for text in seen.texts["td"] if re.fullmatch(r"\d{4}", text)].count("0005") >= 1
    for number in range(16):
        assert f"{number:04d}" in seen.texts["td"]
    assert seen.texts["td"].count("step 3 of 10: loss nan") == 2


def test_page_makes_no_requests(folder: Path):
    text = render_page(sweepcp.load_run(folder))
    seen = Reader(text)
    assert seen.links == ["data:,"]
    assert "connect-src" not in text[:2000]
    policy = next(line for line in text.splitlines() if "Content-Security-Policy" in line)
    scripts = [s for s in seen.texts["script"] if not s.startswith('{"texts"')]
    assert len(scripts) == 2
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"sha256-{digest}" in policy.replace("&#43;", "+")


def test_language_rows_are_weighted_means_of_members(folder: Path):
    trial = sweepcp.load_run(folder).trials[0]
    assert trial.scorecard is not None
    rows = {(row[0], row[1], row[2]): row[4] for row in language_table(trial).rows}
    german = next(m for m in trial.scorecard.report.members if m.language == "de")
    shown = f"{german.change:+.2f} ± {german.change_se:.2f} %".replace("-", "−")
    assert rows["general", "de", "bits per byte"] == shown
    assert ("domain", "python", "accuracy") in rows


def test_experiment_on_the_page_can_be_loaded(folder: Path, tmp_path: Path):
    run = sweepcp.load_run(folder)
    (tmp_path / "again.yaml").write_text(experiment_text(run))
    loaded, _ = load_experiment(str(tmp_path / "again.yaml"))
    assert json.loads(loaded.model_dump_json()) == run.experiment.model_dump(mode="json")


def test_page_of_an_empty_run(tmp_path: Path):
    folder = write_run(tmp_path, 0)
    seen = read(folder)
    assert "No trial is done, so there is nothing to choose from." in seen.words
    assert "interrupted: 0 of 1 trials have ended" in seen.words
    (folder / "base.json").unlink()
    assert "the base has not been scored yet" in read(folder).words


def test_page_of_one_trial(tmp_path: Path):
    seen = read(write_run(tmp_path, 1, documents=20))
    assert "The choice was made among few trials: 1 done." in seen.words
    assert "No trend is shown: it needs more done trials." in seen.words


def test_page_without_a_choice_names_the_nearest_trial(folder: Path):
    run = sweepcp.load_run(folder).with_rule(max_regression=0.0)
    seen = read(folder, max_regression=0.0)
    assert run.chosen is None
    assert (
        f"No trial meets the rule. The trial of least regression, {run.front.choice.nearest}"
        in seen.words
    )
    assert "general regression ≤ 0 %" in seen.words
    assert certainty_lines(run, run.certainty) == []


def test_page_of_failures_only(tmp_path: Path):
    seen = read(write_run(tmp_path, 2, t0000="failed", t0001="diverged"))
    assert "No trial is done" in seen.words
    assert "The recipes of the trials without a score: 1 failed, 1 diverged." in seen.words


def test_exceeded_bound_is_shown_with_the_answer(tmp_path: Path):
    folder = write_run(tmp_path, 12, documents=20)
    run = sweepcp.load_run(folder)
    assert run.chosen is not None
    assert run.chosen.scorecard is not None
    for bound in (
        -run.chosen.scorecard.report.general + 1,
        -run.chosen.scorecard.report.general - 0.01,
    ):
        told = run.with_rule(max_regression=max(bound, 0.0))
        if told.chosen is not None and told.chosen.scorecard is not None:
            missed = told.chosen.scorecard.report.general < -max(bound, 0.0)
            assert ("beyond the bound of" in Reader(render_page(told)).words) == missed


def test_missing_items_are_mentioned(tmp_path: Path):
    folder = write_run(tmp_path, 3, documents=20)
    (folder / "trials" / "0001" / "items.json").unlink()
    assert "Results of single items are missing" in read(folder).words


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)><b>'\"&{{ 7 * 7 }}$x$"


def test_text_of_a_run_does_not_become_markup(folder: Path, tmp_path: Path):
    """A run with hostile names and reasons gives the same elements and attributes."""
    worse = tmp_path / "run <b>"
    swaps = {
        "step 3 of 10: loss nan": HOSTILE,
        "here, CPU": HOSTILE,
        "a base": HOSTILE,
    }
    swaps |= {"held_out_docs_de": HOSTILE, '"de"': json.dumps(HOSTILE)}
    for path in folder.rglob("*"):
        if path.is_file():
            text = path.read_text()
            # Of the values of the experiment, only this one may be any text.
            if path.name == "experiment.json":
                text = text.replace('"language": "python"', f'"language": {json.dumps(HOSTILE)}')
            for old, new in swaps.items() if path.name != "experiment.json" else ():
                quoted = json.dumps(new) if old.startswith('"') else json.dumps(new)[1:-1]
                text = text.replace(old, new if old.startswith('"') else quoted)
            target = worse / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
    clean, seen = read(folder), read(worse)
    assert seen.tags == clean.tags
    assert HOSTILE in " ".join(seen.texts["td"])
    texts = seen.numbers["texts"]
    assert isinstance(texts, list)
    assert any("&lt;img src=x" in text for text in texts)
    assert not any("<img" in text or "<b>" in text for text in texts)
    run = sweepcp.load_run(worse)
    for drawn in (run.draw.front(), run.draw.plane(), run.draw.curves()):
        drawn.canvas.draw()


def test_unwritable_report_is_refused(folder: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="name another file"):
        write_report(sweepcp.load_run(folder), tmp_path / "file" / "report.html")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    folder = write_run(tmp_path, 4, documents=20)
    last = folder / "trials" / "0003" / "trial.json"
    last.rename(tmp_path / "later.json")
    with make_server(folder, 0) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield folder, running.server_address[1]
        running.shutdown()
        thread.join()


def ask(port: int, path: str, host: str | None = None) -> HTTPResponse:
    connection = HTTPConnection("127.0.0.1", port)
    connection.request("GET", path, headers={"Host": host} if host else {})
    return connection.getresponse()


def test_stamp_of_a_served_page_changes_with_the_run(served: tuple[Path, int]):
    folder, port = served
    first = json.loads(ask(port, "/now").read())
    assert "3 of 4 trials have ended" in first["progress"]
    assert "0003 at step 10 of 100" in first["progress"]
    text = ask(port, "/").read().decode()
    assert f'data-stamp="{first["stamp"]}"' in text
    assert "connect-src 'self'" in text[:2000].replace("&#39;", "'")
    assert json.loads(ask(port, "/now").read()) == first
    (folder / "later.json").rename(folder / "trials" / "0003" / "trial.json")
    second = json.loads(ask(port, "/now").read())
    assert second["stamp"] != first["stamp"]
    assert "finished: 4 of 4" in second["progress"]
    assert f'data-stamp="{second["stamp"]}"' in ask(port, "/").read().decode()


def test_server_answers_this_machine_only(served: tuple[Path, int]):
    _, port = served
    assert ask(port, "/", host="evil.example").status == 403
    assert ask(port, "/now", host="localhost:9000").status == 200  # through a tunnel
    assert ask(port, "/../secret").status == 404


def test_server_reports_a_corrupt_record(served: tuple[Path, int]):
    folder, port = served
    (folder / "trials" / "0001" / "trial.json").write_text("{<b>")
    answer = ask(port, "/")
    body = answer.read().decode()
    assert answer.status == 500
    assert "trial.json" in body
    assert "<b>" not in body


def test_commands_report_and_watch(folder: Path, tmp_path: Path):
    command = [sys.executable, "-m", "sweepcp"]
    files = [tmp_path / "report.html", tmp_path / "front.svg"]
    report = [*command, "report", str(folder), "--html", str(files[0]), "--image", str(files[1])]
    done = subprocess.run(
        [*report, "--max-regression", "1"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[1:] == [str(file) for file in files]
    assert "general regression ≤ 1 %" in files[0].read_text()
    for wrong in (
        ["report", str(tmp_path)],
        ["watch", str(tmp_path)],
        ["report", str(folder), "--image", "front.gif"],
    ):
        failed = subprocess.run([*command, *wrong], capture_output=True, text=True, check=False)
        assert failed.returncode == 2, failed.stderr
        assert "fix:" in failed.stderr
    watch = subprocess.Popen(
        [*command, "watch", str(folder), "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    assert watch.stdout is not None
    port = int(watch.stdout.readline().split("/")[2].split(":")[1])
    assert ask(port, "/").status == 200
    watch.send_signal(signal.SIGINT)
    assert watch.wait(20) == 0


def test_taken_port_is_refused(served: tuple[Path, int]):
    folder, port = served
    with pytest.raises(InvalidInput, match="name another port"):
        make_server(folder, port)


def test_run_under_a_lock_is_running(tmp_path: Path):
    folder = write_run(tmp_path, 4, documents=20)
    (folder / "trials" / "0003" / "trial.json").unlink()
    code = f"""
from pathlib import Path
from sweepcp.runs.run_folder import locked_run
with locked_run(Path({str(folder)!r})):
    print("held", flush=True)
    input()
"""
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    assert progress_text(sweepcp.load_run(folder)) == (
        "running: 3 of 4 trials have ended; in progress: 0003 at step 10 of 100"
    )
    holder.communicate("\n")
    assert sweepcp.load_run(folder).state == "interrupted"
