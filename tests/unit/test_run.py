import gc
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import sweepcp
from sweepcp.errors import InvalidInput
from sweepcp.report.sections import untested_lines
from sweepcp.report.tables import run_as_dict, write_csv
from sweepcp.runs.run_folder import RunIdentity, RunWriter, locked_run
from sweepcp.runs.trial import TrialOutcome
from sweepcp.util import records
from tests.make import experiment, trial
from tests.make_run import step_rows, write_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of three trials: two done, one failed."""
    writer = RunWriter(tmp_path / "run")
    sources = {"python-docs": "x", "python-code": "y"}
    writer.start(experiment(), RunIdentity(sources=sources))
    for t in (trial(0, 7, -1), trial(1, 12, -9), trial(2, None, None)):
        writer.begin_trial(t.id)
        writer.append_metrics(t.id, step_rows(t.recipe, 1))
        writer.write_trial(t, TrialOutcome(status=t.status))
    return writer.path


def test_run_is_read_as_it_was_written(folder: Path):
    run = sweepcp.load_run(folder)
    assert run.trials == [trial(0, 7, -1), trial(1, 12, -9), trial(2, None, None)]
    assert run.base is None
    assert str(run.rule) == "most domain gain, general regression ≤ 2 %"
    assert run.front.choice.id == "0000"


def test_every_record_is_read_and_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = write_run(tmp_path, 12, t0003="diverged", t0007="failed")
    read: list[Path] = []
    original = records.read_bytes

    def read_bytes(path: Path, *, fix: str) -> bytes:
        read.append(path)
        return original(path, fix=fix)

    def parse_again(content: bytes) -> None:
        raise AssertionError

    monkeypatch.setattr(records, "read_bytes", read_bytes)
    monkeypatch.setattr(records, "check_unambiguous", parse_again)
    collects = gc.isenabled()
    assert len(sweepcp.load_run(run).front.ids) > 1
    assert gc.isenabled() is collects
    assert len(read) == len(set(read))
    names = Counter(path.name for path in read)
    assert names == {"experiment.json": 1, "base.json": 1, "trial.json": 12}


def test_frame_and_csv_have_a_row_per_trial(folder: Path, tmp_path: Path):
    run = sweepcp.load_run(folder)
    frame = run.to_pandas()
    assert frame["id"].tolist() == ["0000", "0001", "0002"]
    assert frame["on_front"].tolist() == [True, True, False]
    assert frame["chosen"].tolist() == [True, False, False]
    assert frame.loc[0, "share:docs"] == 0.5
    write_csv(run, tmp_path / "t.csv")
    assert pd.read_csv(tmp_path / "t.csv")["general"].tolist()[:2] == [-1, -9]


def test_a_row_has_each_score_and_error_of_each_half_in_its_place(tmp_path: Path):
    run = sweepcp.load_run(write_run(tmp_path, 3))
    row, trial = run.trial_rows()[2], run.trials[2]
    card = trial.scorecard
    assert card is not None
    columns = ("domain", "domain_se", "general", "general_se")
    assert [row[name] for name in columns] == [getattr(card.select, name) for name in columns]
    reported = [row[f"reported_{name}"] for name in columns]
    assert reported == [getattr(card.report, name) for name in columns]
    assert len({row[name] for name in columns} | set(reported)) == 8
    portions = {portion.role: portion for portion in trial.recipe.mixture.portions}
    assert row["domain_share"] == portions["domain"].share != portions["general"].share
    assert row["general_share"] == portions["general"].share
    assert (row["train_seconds"], row["score_seconds"]) == (6, 3)
    assert row["lr_fraction"] == trial.point["lr_fraction"]


def test_rows_have_absolute_numbers_of_recipes_in_columns_of_their_own(tmp_path: Path):
    """In every row, also where a value is the default; the page names what was not varied."""
    axes = "warmup_steps: {choices: [2, 3]}, epsilon: {choices: [1e-8, 1e-6]}"
    space = (
        f"{{lr_fraction: {{low: 0.1, high: 1}}, general_share: {{choices: [0.4, 0.5]}}, {axes}}}"
    )
    run = sweepcp.load_run(write_run(tmp_path, 2, space=space))
    columns = ("warmup", "warmup_steps", "final_fraction", "min_lr", "epsilon")
    rows = [tuple(row[name] for name in columns) for row in run.trial_rows()]
    assert rows == [(None, 2, 0.1, None, 1e-8), (None, 3, 0.1, None, 1e-6)]
    (shared,) = (line for line in untested_lines(run) if line.startswith("Other values"))
    assert "schedule cosine, final_fraction 0.1, weight_decay 0.1, clip 1.0" in shared


def test_a_trial_beyond_the_budget_does_not_finish_the_search(tmp_path: Path):
    run = sweepcp.load_run(write_run(tmp_path, 3))
    assert run.state == "finished"
    moved = run.trials[2].model_copy(update={"number": 7})
    assert replace(run, trials=[*run.trials[:2], moved]).state == "interrupted"


def test_a_line_that_is_being_written_is_no_step(folder: Path):
    run = sweepcp.load_run(folder)
    with (folder / "trials" / "0000" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "loss": 1')
    assert [row["step"] for row in run.read_steps("0000")] == [1]


def test_json_has_the_documented_keys(folder: Path):
    content = run_as_dict(sweepcp.load_run(folder))
    json.dumps(content, allow_nan=False)
    assert set(content) >= {"base", "trials", "choice", "hypervolume", "reference"}
    first, _, failed = content["trials"]
    assert set(first) >= {"id", "status", "recipe", "domain", "general", "on_front"}
    assert first["recipe"]["lr_fraction"] == 0.1
    assert (first["recipe"]["domain_share"], first["recipe"]["general_share"]) == (0.5, 0.5)
    assert (failed["domain"], failed["on_front"]) == (None, False)
    assert content["reference"] == {"domain": -10.0, "general": -50.0}


@pytest.mark.parametrize("damage", ["", "{", '{"format": 1}', "[]"])
def test_corrupt_record_is_refused_with_its_file(folder: Path, damage: str):
    path = folder / "trials" / "0001" / "trial.json"
    path.write_text(damage)
    with pytest.raises(InvalidInput) as error:
        sweepcp.load_run(folder)
    assert error.value.file == str(path)


def test_experiment_of_another_version_is_refused_with_file_and_key(folder: Path):
    path = folder / "experiment.json"
    record = json.loads(path.read_text())
    record["experiment"]["space"]["unknown_axis"] = {"low": 0.0, "high": 1.0}
    path.write_text(json.dumps(record))
    with pytest.raises(InvalidInput, match="unknown key") as error:
        sweepcp.load_run(folder)
    assert error.value.file == str(path)
    assert error.value.key == "space.unknown_axis"


def test_folder_without_experiment_is_refused(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"with the experiment\.json"):
        sweepcp.load_run(tmp_path)


def test_unfinished_trial_is_not_read_and_is_cleared_when_it_begins_again(folder: Path):
    writer = RunWriter(folder)
    writer.begin_trial("0003")
    writer.append_metrics("0003", [{"step": 1}])
    assert len(sweepcp.load_run(folder).trials) == 3
    writer.begin_trial("0003")
    assert not (folder / "trials" / "0003" / "metrics.jsonl").exists()


def test_one_process_writes_and_its_lock_ends_with_it(tmp_path: Path):
    code = f"""
import sys, time
from pathlib import Path
from sweepcp.runs.run_folder import locked_run
with locked_run(Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(InvalidInput, match=f"process {holder.pid}"), locked_run(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with locked_run(tmp_path) as writer:
        assert writer.path == tmp_path
