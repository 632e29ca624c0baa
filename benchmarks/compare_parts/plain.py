"""The arms `plain` and `plain-warm`: Ray Tune, OptunaSearch, HF Trainer and `simple_evaluate`.

    python -m compare_parts.plain INPUTS TRIALS OUT [--warm]

The script of a competent user. It writes the trials to OUT as JSON. With `--warm` the processes of
the trials are reused, which Ray Tune does not do by default.
"""

import json
import sys
from pathlib import Path
from typing import Any

import optuna
import ray
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from compare_parts.inputs import Inputs
from compare_parts.trial import run_trial

CONCURRENCY = 2


def trainable(config: dict[str, Any]) -> None:
    """Run a trial in a process of Ray."""
    tune.report(
        run_trial(
            Inputs.read(Path(config["inputs"])),
            lr_fraction=config["lr_fraction"],
            domain_share=config["domain_share"],
        )
    )


def search(folder: Path, trials: int, out: Path, *, warm: bool) -> None:
    """Run the search and write its trials."""
    inputs = Inputs.read(folder)
    ray.init(num_cpus=CONCURRENCY, include_dashboard=False, log_to_driver=False)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space={
            "lr_fraction": tune.loguniform(*inputs.lr_fractions),
            "domain_share": tune.uniform(0, 1),
            "inputs": str(folder),
        },
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(
                metric=["domain_bpb", "general_bpb"],
                mode=["min", "min"],
                sampler=optuna.samplers.TPESampler(multivariate=True, seed=inputs.seed),
            ),
            num_samples=trials,
            max_concurrent_trials=CONCURRENCY,
            reuse_actors=warm,
        ),
        run_config=tune.RunConfig(storage_path=str(out.parent / "ray"), verbose=0),
    )
    results = tuner.fit()
    if results.errors:
        raise results.errors[0]
    out.write_text(
        json.dumps([results[index].metrics for index in range(len(results))], default=str)
    )


if __name__ == "__main__":
    search(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), warm="--warm" in sys.argv)
