"""Verification by the trainers that sweepcp depends on; tests/peers has the others."""

import os
import sys

import pytest

from tests.exports import (
    CASES,
    export_alterations,
    export_cases,
    promoted_short,
    verify_exports,
)
from tests.integration.conftest import sweepcp


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["hf-trainer", "deepspeed"])
def test_trainers_parse_what_was_exported(tmp_path, trainer):
    verifications = verify_exports(sys.executable, trainer, export_cases(tmp_path, trainer))
    for case, verification in zip(CASES, verifications, strict=True):
        assert verification.passed, (case, verification.problems)
        assert not verification.pending


@pytest.mark.slow
def test_every_altered_key_for_the_hf_trainer_is_detected(tmp_path):
    loaded = promoted_short(tmp_path / "bundle")
    exports = export_alterations(tmp_path / "out", loaded, "hf-trainer")
    results = verify_exports(sys.executable, "hf-trainer", list(exports.values()))
    verifications = dict(zip(exports, results, strict=True))
    assert verifications.pop("nothing").passed
    assert len(verifications) > 40
    assert [key for key, verification in verifications.items() if verification.passed] == []


@pytest.mark.slow
def test_every_file_of_a_verified_trainer_says_so(tmp_path):
    bundle, out = promoted_short(tmp_path / "bundle").path, tmp_path / "out"
    options = ("--to", "hf-trainer", "--to", "slurm", "--out", out, "--verify", sys.executable)
    done = sweepcp("export", bundle, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "18 facts and" in done.stdout
    for name in ("train.py", "training_args.yaml", "ds_config.json", "SUMMARY.md", "export.json"):
        assert "verified: parsed by transformers 5." in (out / name).read_text(), name
    assert "NOT VERIFIED" in (out / "job.sbatch").read_text()
    assert (out / "job.sbatch").stat().st_mode & 0o111
    assert "sbatch --test-only" in (out / "SUMMARY.md").read_text()


@pytest.mark.slow
def test_the_command_fails_when_another_value_is_parsed(tmp_path):
    # An interpreter that changes a value before the reader reads it.
    python = tmp_path / "python"
    alter = 'sed -i "s/^weight_decay: .*/weight_decay: 0.2/" "$2"/*.yaml'
    python.write_text(f'#!/bin/sh\n{alter}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    bundle, out = promoted_short(tmp_path / "bundle").path, tmp_path / "out"
    relative = os.path.relpath(python)
    done = sweepcp("export", bundle, "--to", "hf-trainer", "--out", out, "--verify", relative)
    assert done.returncode == 1, done.stdout + done.stderr
    assert (
        "the recipe has [0.9, 0.95, 1e-08, 0.1], the trainer [0.9, 0.95, 1e-08, 0.2]" in done.stdout
    )
    assert "setting weight_decay: written 0.1, parsed 0.2" in done.stdout
    assert "NOT VERIFIED: transformers" in (out / "training_args.yaml").read_text()
    assert "weight decay: the recipe has" in (out / "SUMMARY.md").read_text()


def test_an_interpreter_without_the_trainer_is_refused(tmp_path):
    bundle, out = promoted_short(tmp_path / "bundle").path, tmp_path / "out"
    done = sweepcp("export", bundle, "--to", "axolotl", "--out", out, "--verify", sys.executable)
    assert done.returncode == 2
    assert "No module named 'axolotl'" in done.stderr
    assert not out.exists()
