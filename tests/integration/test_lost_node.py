"""A node is taken out of a Ray cluster while a trial runs on it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import ray
from ray._private.node import Node
from ray.cluster_utils import Cluster

from sweepcp import load_run
from sweepcp.config.recipe import Recipe
from sweepcp.runs.trial import TrialOutcome
from sweepcp.training.loop import StepMetrics
from tests.integration import analytic

WAIT_SECONDS = 120


@dataclass
class WaitingRunner(analytic.AnalyticRunner):
    """Leaves a mark of each attempt with its node, and ends on the node that is not removed."""

    folder: Path

    def run(
        self, recipe: Recipe, *, micro_batch: int | None = None
    ) -> Iterator[StepMetrics | TrialOutcome]:
        attempts = len(list(self.folder.glob(f"{recipe.id}-*")))
        mark = self.folder / f"{recipe.id}-{attempts}"
        node = ray.get_runtime_context().get_node_id()
        mark.write_text(node)
        removed = self.folder / "removed"
        while not removed.exists() or removed.read_text() in ("", node):
            time.sleep(0.05)
            yield StepMetrics(2, 0.1, 2.0, 1.0, {"code": 8}, {"domain": 2.0})
        yield from super().run(recipe, micro_batch=micro_batch)


def remove_when_both_work(cluster: Cluster, node: Node, folder: Path) -> None:
    """Kill a node once a trial runs on each node and has reported."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        nodes = {mark.read_text() for mark in folder.glob("*-0")}
        if len(nodes - {""}) == 2:
            time.sleep(3)
            cluster.remove_node(node, allow_graceful=False)
            break
        time.sleep(0.1)
    (folder / "removed").write_text(node.node_id)


def search_on_two_nodes(folder: Path) -> None:
    """Search on a cluster of two nodes of one core, one of which is killed."""
    marks = folder / "marks"
    marks.mkdir()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    node = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    with ThreadPoolExecutor(1) as pool:
        removal = pool.submit(remove_when_both_work, cluster, node, marks)
        make_runner = partial(WaitingRunner, {}, marks)
        analytic.run(folder / "run", 4, make_runner=make_runner)
        removal.result()
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
def test_the_trial_of_a_node_that_is_removed_runs_again_on_another(tmp_path: Path):
    # In a process of its own: one process connects to clusters of one token only.
    program = [sys.executable, "-m", "tests.integration.test_lost_node", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(program, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    run = load_run(tmp_path / "run")
    assert [(trial.number, trial.status) for trial in run.trials] == [(n, "done") for n in range(4)]
    (again,) = [trial for trial in run.trials if trial.retries]
    assert again.retries == 1
    marks = tmp_path / "marks"
    attempts = sorted(marks.glob(f"{again.recipe_id}-*"))
    assert len(attempts) == 2
    assert attempts[0].read_text() != attempts[1].read_text()
    assert len(list(marks.glob("*-*"))) == 5
    (line,) = (tmp_path / "run" / "trials" / again.id / "metrics.jsonl").read_text().splitlines()
    assert '"step": 1' in line


if __name__ == "__main__":
    search_on_two_nodes(Path(sys.argv[1]))
