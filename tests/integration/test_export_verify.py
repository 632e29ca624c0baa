"""Verification by the trainers that sweepcp itself depends on; tests/peers has the others."""

import sys

import pytest

from tests.exports import CASES, cases_of, short, verdicts, with_each_key_altered


@pytest.mark.parametrize("trainer", ["hf-trainer", "deepspeed"])
def test_what_is_exported_is_what_is_parsed(tmp_path, trainer):
    for case, checked in zip(CASES, verdicts(sys.executable, trainer, cases_of(tmp_path, trainer)), strict=True):
        assert checked.good, (case, checked.wrong, checked.missing)
        assert not checked.open


def test_every_key_for_the_hf_trainer_is_checked(tmp_path):
    variants = with_each_key_altered(tmp_path / "out", short(tmp_path / "bundle"), "hf-trainer")
    checked = dict(zip(variants, verdicts(sys.executable, "hf-trainer", list(variants.values())), strict=True))
    assert checked.pop("nothing").good
    assert len(checked) > 40
    assert [what for what, found in checked.items() if found.good] == []
