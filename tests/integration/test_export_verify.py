"""Verification by the trainers that sweepcp itself depends on; tests/peers has the others."""

import os
import sys

import pytest

from tests.exports import CASES, cases_of, short, verdicts, with_each_key_altered
from tests.integration.conftest import sweepcp


@pytest.mark.parametrize("trainer", ["hf-trainer", "deepspeed"])
def test_what_is_exported_is_what_is_parsed(tmp_path, trainer):
    for case, checked in zip(
        CASES, verdicts(sys.executable, trainer, cases_of(tmp_path, trainer)), strict=True
    ):
        assert checked.good, (case, checked.wrong, checked.missing)
        assert not checked.open


def test_every_key_for_the_hf_trainer_is_checked(tmp_path):
    variants = with_each_key_altered(tmp_path / "out", short(tmp_path / "bundle"), "hf-trainer")
    checked = dict(
        zip(variants, verdicts(sys.executable, "hf-trainer", list(variants.values())), strict=True)
    )
    assert checked.pop("nothing").good
    assert len(checked) > 40
    assert [what for what, found in checked.items() if found.good] == []


def test_the_command_says_verified_in_every_file_of_the_trainer(tmp_path):
    bundle, out = short(tmp_path / "bundle").path, tmp_path / "out"
    done = sweepcp(
        "export",
        bundle,
        "--to",
        "hf-trainer",
        "--to",
        "slurm",
        "--out",
        out,
        "--verify",
        sys.executable,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "17 facts and" in done.stdout
    for name in ("train.py", "training_args.yaml", "ds_config.json", "SUMMARY.md", "export.json"):
        assert "verified: parsed by transformers 5." in (out / name).read_text(), name
    assert "NOT VERIFIED" in (out / "job.sbatch").read_text()
    assert (out / "job.sbatch").stat().st_mode & 0o111
    assert "sbatch --test-only" in (out / "SUMMARY.md").read_text()


def test_the_command_fails_when_something_else_is_parsed(tmp_path):
    """By an interpreter that changes a value before it reads it."""
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nsed -i "s/^weight_decay: .*/weight_decay: 0.2/" "$2"/*.yaml\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    bundle, out = short(tmp_path / "bundle").path, tmp_path / "out"
    relative = os.path.relpath(python)
    done = sweepcp("export", bundle, "--to", "hf-trainer", "--out", out, "--verify", relative)
    assert done.returncode == 1, done.stdout + done.stderr
    assert (
        "the recipe says [0.9, 0.95, 1e-08, 0.1], the trainer [0.9, 0.95, 1e-08, 0.2]"
        in done.stdout
    )
    assert "setting weight_decay: written 0.1, parsed 0.2" in done.stdout
    assert "NOT VERIFIED: transformers" in (out / "training_args.yaml").read_text()
    assert "optimizer: the recipe says" in (out / "SUMMARY.md").read_text()


def test_an_interpreter_without_the_trainer_is_said(tmp_path):
    bundle, out = short(tmp_path / "bundle").path, tmp_path / "out"
    done = sweepcp("export", bundle, "--to", "axolotl", "--out", out, "--verify", sys.executable)
    assert done.returncode == 2
    assert "No module named 'axolotl'" in done.stderr
    assert not out.exists()
