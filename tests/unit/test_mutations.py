"""The list of faults of `tests/mutations`, and how one is applied."""

from pathlib import Path

import pytest

from tests.mutations.run import ROOT, Mutation, read_mutations


def test_names_of_faults_differ_and_their_tests_exist():
    mutations = read_mutations()
    assert len({mutation.name for mutation in mutations}) == len(mutations)
    for test in {test for mutation in mutations for test in mutation.tests}:
        path, separator, name = test.partition("::")
        text = (ROOT / path).read_text(encoding="utf-8")
        assert not separator or f"def {name.partition('[')[0]}(" in text, test


def test_a_fault_replaces_a_text_that_occurs_once(tmp_path: Path):
    (tmp_path / "module.py").write_text("value = 1 + 2\n")
    fault = Mutation("the sign is wrong", "module.py", old="1 + 2", new="1 - 2", tests=())
    assert fault.mutated_text(tmp_path) == "value = 1 - 2\n"
    (tmp_path / "module.py").write_text("value = 1 + 2 + 1 + 2\n")
    with pytest.raises(ValueError, match="2 times"):
        fault.mutated_text(tmp_path)
