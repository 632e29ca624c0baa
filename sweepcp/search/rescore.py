"""Score another model on the suites of a run."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sweepcp.config.base_model import BaseSpec
from sweepcp.corpora.permissions import check_permissions
from sweepcp.corpora.provenance import base_items, check_tasks_of_run, stores_of_run
from sweepcp.errors import located
from sweepcp.models.files import read_config, read_shards
from sweepcp.runs.run_folder import Run
from sweepcp.runs.trial import check_environment
from sweepcp.scoring.scorecard import Scorecard, compare_with_recorded
from sweepcp.scoring.spec import experiment_scoring_spec
from sweepcp.util.gpus import visible_gpus
from sweepcp.util.parallel import usable_cores

if TYPE_CHECKING:
    from sweepcp.config.types import Attention
    from sweepcp.scoring.scorer import Scorer

logger = logging.getLogger(__name__)


def score_model(model: Path, run: Run) -> Scorecard:
    """Score the model in a folder on the suites of a run, against the run's base.

    The model is read with its own tokenizer.

    Raises:
        InvalidInput: The folder holds no model that can be loaded safely, the base has not been
            scored, what it was scored on or with is not what is here, or a task runs code that
            nobody has allowed on this machine.
        Diverged: The loss on a held-out document is not finite.
    """
    base = base_items(run)
    check_tasks_of_run(run)
    check_permissions(run.experiment.suites, run.path)
    with located("sweepcp score", "MODEL"):
        read_shards(model)
        read_config(model)
    scorer = _make_scorer(model, run)
    items = scorer.score()
    for note in scorer.notes:
        logger.warning("%s", note)
    return compare_with_recorded(trial=items, base=base, file=run.path / "base.json")


def _make_scorer(model: Path, run: Run) -> "Scorer":
    import torch

    from sweepcp.models.loading import load_model, load_tokenizer
    from sweepcp.scoring.scorer import Scorer
    from sweepcp.search.trial_runner import environment_of
    from sweepcp.training.device import open_device
    from sweepcp.training.engine import computes_in_bf16
    from sweepcp.training.isolation import check_isolation
    from sweepcp.training.process_group import ProcessGroup

    experiment = run.experiment
    spec = experiment_scoring_spec(experiment, stores_of_run(run), scoring="exact")
    # As the trials were scored, but not more than there are cores here.
    torch.set_num_threads(min(experiment.budget.cpus_per_trial, usable_cores()))
    assert run.base is not None
    # With `auto`, what was visible when the run began has decided.
    on_gpu = run.base.environment.get("device") == "cuda" and visible_gpus()
    device = open_device("cuda" if on_gpu else "cpu")
    # The model's own tokenizer, which need not be that of the run's base.
    tokenizer = load_tokenizer(BaseSpec(path=str(model), max_lr=experiment.base.max_lr))
    # As the base was loaded; runs of earlier versions had no other. What another device lacks would
    # be reported in place of the device, which is checked below.
    is_same = device.type == run.base.environment.get("device")
    attention = run.base.environment.get("attention", "sdpa") if is_same else "sdpa"
    loaded = load_model(
        str(model),
        revision=None,
        device=device,
        attention=cast("Attention", attention),
        in_bf16=computes_in_bf16(device, spec.precision),
    )
    group = ProcessGroup(device=device)
    with located(model):
        check_isolation(
            loaded,
            group,
            seq_len=spec.seq_len,
            packed=spec.packed,
            training=False,
        )
    scorer = Scorer(spec, loaded, tokenizer, group)
    environment = environment_of(scorer, device)
    # An architecture may lack what the base was loaded with: another one is then as good as that.
    del environment["attention"]
    # The trials' answers may be computed with shared contexts, which is within 1e-4 of this.
    del environment["scoring"]
    check_environment(
        environment,
        run.base.environment,
        where=run.path,
        fix="score on a machine like that of the run, with the versions above",
    )
    return scorer
