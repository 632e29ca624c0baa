from pathlib import Path

from sweepcp.config.space import Range
from sweepcp.runs.caveats import caveats_of
from sweepcp.runs.run_folder import read_run
from tests.make_run import write_run


def test_a_choice_near_an_end_of_a_range_is_a_caveat(tmp_path: Path):
    run = read_run(write_run(tmp_path, 3))
    axis = run.experiment.space.axes["lr_fraction"]
    assert isinstance(axis, Range)
    for unit, warned in ((0.0, True), (0.015, True), (0.03, False), (0.97, False), (0.985, True)):
        point = {"lr_fraction": axis.from_unit(unit), "general_share": 0.3}
        trial = run.trials[0].model_copy(update={"point": point})
        caveats = "\n".join(caveats_of(run, trial))
        assert ("lr_fraction" in caveats) == warned
        assert ("0.01 to 1: the optimum may lie outside the range" in caveats) == warned
        assert "general_share" not in caveats
