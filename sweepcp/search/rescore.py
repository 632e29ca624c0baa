"""Score another model on the suites of a run."""

from pathlib import Path
from typing import TYPE_CHECKING

from sweepcp.config.base_model import BaseSpec
from sweepcp.corpora.provenance import base_items, stores_of_run
from sweepcp.errors import located
from sweepcp.models.files import read_config, read_shards
from sweepcp.runs.run_folder import Run
from sweepcp.scoring.scorecard import Scorecard, compare_with_base
from sweepcp.scoring.spec import experiment_scoring_spec

if TYPE_CHECKING:
    from sweepcp.scoring.scorer import Scorer


def score_model(model: Path, run: Run) -> Scorecard:
    """Score the model in a folder on the suites of a run, against the run's base.

    The model is read with its own tokenizer.

    Raises:
        InvalidInput: The folder holds no model that can be loaded safely, the base has not been
            scored, or a token store of the run is gone.
        Diverged: The loss on a held-out document is not finite.
    """
    base = base_items(run)
    with located("sweepcp score", "MODEL"):
        read_shards(model)
        read_config(model)
    return compare_with_base(trial=_make_scorer(model, run).score(), base=base)


def _make_scorer(model: Path, run: Run) -> "Scorer":
    import torch

    from sweepcp.models.loading import default_device, load_model, load_tokenizer
    from sweepcp.scoring.scorer import Scorer
    from sweepcp.training.process_group import ProcessGroup

    experiment = run.experiment
    spec = experiment_scoring_spec(experiment, stores_of_run(run))
    torch.set_num_threads(experiment.budget.cpus_per_trial)
    device = default_device()
    # The model's own tokenizer, which need not be that of the run's base.
    tokenizer = load_tokenizer(BaseSpec(path=str(model), max_lr=experiment.base.max_lr))
    loaded = load_model(str(model), revision=None, device=device)
    return Scorer(spec, loaded, tokenizer, ProcessGroup(device=device))
