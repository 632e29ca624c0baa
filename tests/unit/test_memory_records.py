"""GPU memory in records, tables and on the page; runs of versions that did not record it."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import sweepcp
from sweepcp.cli.entry import main
from sweepcp.models import loading
from sweepcp.report.page import render_page
from sweepcp.report.page_tables import MEMORY_COLUMNS, trial_table
from sweepcp.report.sections import cost_lines
from sweepcp.runs.memory_use import smallest_halving
from sweepcp.runs.run_folder import read_run
from sweepcp.runs.trial import check_environment
from sweepcp.search import rescore
from tests.make_run import write_run

COSTS: list[dict[str, object]] = [
    {"first_micro_batch": 16, "micro_batch": 16, "memory_gib": 10.0, "estimated_memory_gib": 10.0},
    {"first_micro_batch": 16, "micro_batch": 8, "memory_gib": 6.0, "estimated_memory_gib": 5.0},
    {"first_micro_batch": 8, "micro_batch": 8, "memory_gib": 4.5, "estimated_memory_gib": 5.0},
    {"first_micro_batch": 32, "micro_batch": 8, "memory_gib": 5.0, "estimated_memory_gib": None},
]
HALVED = (
    "GPU memory ran out in trial 0001: it finished with 8 sequences per forward pass, and trials "
    "that start later have no more."
)
MEMORY_KEYS = [
    "first_micro_batch", "micro_batch", "attention", "memory_gib", "estimated_memory_gib",
]  # fmt: skip


def change_record(file: Path, change: dict[str, Any], *, section: str) -> None:
    content = json.loads(file.read_text())
    content[section] |= change
    file.write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of four trials on a GPU."""
    folder = write_run(tmp_path / "run", 4, documents=8)
    for number, cost in enumerate(COSTS):
        file = folder / f"trials/{number:04d}/trial.json"
        change_record(file, cost | {"attention": "varlen"}, section="cost")
    return folder


@pytest.fixture
def old_folder(tmp_path: Path) -> Path:
    """A run as a version wrote it that knew neither micro batches nor attention."""
    folder = write_run(tmp_path / "old", 3, documents=8)
    for file in folder.glob("trials/*/trial.json"):
        content = json.loads(file.read_text())
        for key in MEMORY_KEYS:
            del content["cost"][key]
        file.write_text(json.dumps(content))
    file = folder / "experiment.json"
    content = json.loads(file.read_text())
    for key in ("attention", "recompute", "compile"):
        del content["experiment"]["training"][key]
    content["experiment"]["training"]["micro_batch"] = None
    content["experiment"]["budget"]["gpus_per_trial"] = 0
    file.write_text(json.dumps(content))
    return folder


def output_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str
) -> str:
    monkeypatch.setattr("sys.argv", ["sweepcp", *words])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_tables_have_memory_and_its_ratio_to_the_estimate(folder: Path, tmp_path: Path):
    run = sweepcp.load_run(folder)
    assert [trial.cost.memory_ratio for trial in run.trials if trial.cost] == [1.0, 1.2, 0.9, None]
    frame = run.to_pandas()
    assert frame["micro_batch"].tolist() == [16, 8, 8, 8]
    assert frame["attention"].tolist() == ["varlen"] * 4
    assert frame["memory_gib"].tolist() == [10, 6, 4.5, 5]
    assert frame["estimated_memory_gib"].tolist()[:3] == [10, 5, 5]
    assert frame["memory_ratio"].tolist()[:3] == [1, 1.2, 0.9]
    assert frame["memory_ratio"].isna().tolist() == [False, False, False, True]
    table = trial_table(run, None)
    assert table.columns[-3:] == MEMORY_COLUMNS
    assert [row[-3:] for row in table.rows] == [
        ["16", "10.00", "1.00"],
        ["8", "6.00", "1.20"],
        ["8", "4.50", "0.90"],
        ["8", "5.00", ""],
    ]


def test_the_page_has_memory_beside_the_cost(folder: Path):
    run = sweepcp.load_run(folder)
    lines = cost_lines(run)
    expected = [
        "Forward passes of training: 16 sequences with varlen attention in 1 trial, 8 sequences "
        "with varlen attention in 3 trials.",
        HALVED,
        "GPU memory of training: at most 10 GiB, 0.90 to 1.20 times the estimate.",
    ]
    assert lines[2:5] == expected
    page = render_page(run)
    assert all(line in page for line in expected)
    assert "measured / estimated memory" in page


def test_front_prints_what_was_halved_and_writes_memory(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    assert output_of(capsys, monkeypatch, "front", str(folder)).count(HALVED) == 1
    table = tmp_path / "t.csv"
    output_of(capsys, monkeypatch, "front", str(folder), "--csv", str(table))
    rows = list(csv.DictReader(table.open()))
    assert [row["micro_batch"] for row in rows] == ["16", "8", "8", "8"]
    assert [row["memory_ratio"] for row in rows] == ["1.0", "1.2", "0.9", ""]
    content = json.loads(output_of(capsys, monkeypatch, "front", str(folder), "--json"))
    assert [trial["cost"]["memory_ratio"] for trial in content["trials"]] == [1.0, 1.2, 0.9, None]
    assert content["trials"][1]["cost"]["estimated_memory_gib"] == 5


def test_runs_of_earlier_versions_are_read_and_shown_as_before(
    old_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    run = sweepcp.load_run(old_folder)
    training = run.experiment.training
    assert (training.micro_batch, training.attention) == ("auto", "auto")
    assert (training.recompute, training.compile) == (False, False)
    assert run.experiment.budget.gpus_per_trial == 0
    for trial in run.trials:
        assert trial.cost is not None
        assert all(not getattr(trial.cost, key) for key in (*MEMORY_KEYS, "memory_ratio"))
    assert smallest_halving(run.trials) is None
    assert run.to_pandas()["memory_gib"].isna().all()
    assert not set(MEMORY_COLUMNS) & set(trial_table(run, None).columns)
    text = " ".join(cost_lines(run))
    assert "memory" not in text
    assert "Forward passes" not in text
    assert "memory" not in output_of(capsys, monkeypatch, "front", str(old_folder))


@pytest.mark.parametrize("recorded", [{"attention": "sdpa"}, {}])
def test_scores_with_another_attention_do_not_compare(recorded: dict[str, str]):
    """Earlier versions recorded none: they had none of those that know where documents end."""
    base = {"device": "cuda"}
    for same in ("sdpa", "eager"):
        check_environment({"attention": same}, base, where="a worker", fix="a fix")
    now = base | {"attention": "varlen"}
    check_environment(now, now, where="a worker", fix="a fix")
    with pytest.raises(sweepcp.errors.InvalidInput) as caught:
        check_environment(now, base | recorded, where="a worker", fix="a fix")
    assert caught.value.key == "attention"
    assert caught.value.found == "attention varlen"
    assert caught.value.rule.endswith("attention sdpa")


class Loaded(Exception):
    """Ends a test once a model is loaded."""


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"device": "cpu", "attention": "eager"}, "eager"),
        ({"device": "cpu"}, "sdpa"),  # of an earlier version
        ({"device": "cuda", "attention": "varlen"}, "sdpa"),  # refused for its device
    ],
)
def test_a_model_is_scored_with_the_attention_of_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
):
    def load_model(*_: object, attention: str, **__: object) -> None:
        raise Loaded(attention)

    run = read_run(folder)
    assert run.base is not None
    base = run.base.model_copy(update={"environment": environment})
    spec = SimpleNamespace(precision="fp32")
    monkeypatch.setattr(rescore, "stores_of_run", lambda _: {})
    monkeypatch.setattr(rescore, "experiment_scoring_spec", lambda *_, **__: spec)
    monkeypatch.setattr(rescore, "visible_gpus", lambda: ())
    monkeypatch.setattr(loading, "load_tokenizer", lambda _: None)
    monkeypatch.setattr(loading, "load_model", load_model)
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    with pytest.raises(Loaded, match=f"^{expected}$"):
        rescore._make_scorer(folder, replace(run, base=base))
