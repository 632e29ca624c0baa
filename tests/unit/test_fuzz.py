"""Damaged files of every kind, some at random; `tests/fuzz/run.py` tries more of them."""

from pathlib import Path

import pytest

from tests.fuzz.mutate import remove
from tests.fuzz.run import choose_subjects, run_campaign
from tests.fuzz.subjects import run_command
from tests.fuzz.workspace import make_workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    make_workspace(folder)
    return folder


def run_cases(workspace: Path, *, cases: int, verbs: float) -> None:
    campaign = run_campaign(
        workspace, cases=range(cases), seed=0, verbs=verbs, subjects=choose_subjects()
    )
    for result in campaign.failures:
        print(f"case {result.number}: {result.subject}, {result.entry}\n{result.message}")
    assert not campaign.failures
    assert len({result.subject for result in campaign.results}) == len(choose_subjects())
    # Damage is found, and some of it is none.
    assert {result.status for result in campaign.results} == {0, 2}


def test_damaged_files_are_invalid_input(workspace: Path):
    run_cases(workspace, cases=600, verbs=0)


def test_commands_end_with_status_0_or_2_on_damaged_files(workspace: Path):
    run_cases(workspace, cases=41, verbs=1)


def test_undamaged_files_are_read(workspace: Path):
    """A workspace that is invalid itself would hide what damage does."""
    for subject in choose_subjects():
        for entry in subject.fast:
            entry(workspace, 0)
            remove(workspace / "out")
    for experiment in ("experiment.yaml", "lr-mix.yaml", "lr-mix-schedule.yaml"):
        with pytest.raises(SystemExit) as end:
            run_command("plan", workspace / experiment)
        assert end.value.code == 0
