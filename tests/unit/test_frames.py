from pathlib import Path

import pandas as pd
import pytest

import sweepcp
from sweepcp.report.frames import MEMBER_COLUMNS, STEP_COLUMNS, TRIAL_COLUMNS
from tests.make_run import step_rows, write_run


def test_frames_have_a_row_per_trial_member_and_step(tmp_path: Path):
    run = sweepcp.load_run(write_run(tmp_path / "run", 5, documents=8, steps=10, t0003="diverged"))
    trials, members, steps = run.to_pandas(), run.members_to_pandas(), run.steps_to_pandas()
    assert trials["id"].tolist() == ["0000", "0001", "0002", "0003", "0004"]
    assert trials["domain"].isna().tolist() == [False, False, False, True, False]
    assert trials["chosen"].sum() == 1
    done, halves, members_per_half = 4, 2, 4
    assert len(members) == done * halves * members_per_half
    card = run.trials[2].scorecard
    assert card is not None
    reported = members[(members["id"] == "0002") & (members["half"] == "report")]
    assert reported["change"].tolist() == [m.change for m in card.report.members]
    assert reported["language"].tolist() == ["python", "en", "de", "python"]
    assert len(steps) == 50
    assert steps.iloc[12]["tokens:python-code"] == 1024 * 3
    assert set(run.steps_to_pandas(["0001"])["id"]) == {"0001"}


def test_means_of_members_are_the_scores(tmp_path: Path):
    run = sweepcp.load_run(write_run(tmp_path / "run", 3, documents=8))
    members = run.members_to_pandas().query(
        "unit == 'bits per byte' and half == 'select' and role == 'general'"
    )
    # All weights are 1.
    means = members.groupby("id")["change"].mean()
    assert means.tolist() == pytest.approx([t.general for t in run.trials])


def test_frames_of_several_runs_concatenate(tmp_path: Path):
    runs = [
        sweepcp.load_run(write_run(tmp_path / name, n, documents=8))
        for name, n in (("a", 2), ("b", 3))
    ]
    frame = pd.concat([run.to_pandas() for run in runs], ignore_index=True)
    assert frame["run"].tolist() == [str(tmp_path / "a")] * 2 + [str(tmp_path / "b")] * 3
    assert frame.groupby("run").size().tolist() == [2, 3]


def test_frames_of_an_empty_run_have_columns(tmp_path: Path):
    run = sweepcp.load_run(write_run(tmp_path / "run", 0))
    for frame, columns in (
        (run.to_pandas(), TRIAL_COLUMNS),
        (run.members_to_pandas(), MEMBER_COLUMNS),
        (run.steps_to_pandas(), STEP_COLUMNS),
    ):
        assert len(frame) == 0
        assert set(columns) <= set(frame.columns)


def test_steps_of_an_unfinished_trial_are_read_to_the_last_complete_line(tmp_path: Path):
    folder = write_run(tmp_path / "run", 2, documents=8)
    (folder / "trials" / "0001" / "trial.json").unlink()
    with (folder / "trials" / "0001" / "metrics.jsonl").open("a") as file:
        # A line that is still being written.
        file.write('{"step": 11, "lr": 1.0')
    run = sweepcp.load_run(folder)
    assert run.unfinished == {"0001": 10}
    assert run.state == "interrupted"
    steps = run.steps_to_pandas()
    assert steps["status"].tolist() == ["done"] * 10 + ["interrupted"] * 10
    assert len(step_rows(run.trials[0].recipe, 10)) == 10
