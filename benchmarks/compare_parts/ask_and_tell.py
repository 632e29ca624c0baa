"""The arm `optuna`: ask and tell in two processes that stay, without Ray.

    python -m compare_parts.ask_and_tell INPUTS TRIALS OUT

It runs the trial of the arm `plain`, and writes the trials to OUT as JSON.
"""

import json
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import optuna

from compare_parts.inputs import Inputs
from compare_parts.trial import run_trial

CONCURRENCY = 2


def search(folder: Path, trials: int, out: Path) -> None:
    """Run the search and write its trials."""
    inputs = Inputs.read(folder)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        directions=["minimize", "minimize"],
        sampler=optuna.samplers.TPESampler(multivariate=True, seed=inputs.seed),
    )
    finished: list[dict[str, Any]] = []
    running: dict[Future[dict[str, Any]], optuna.Trial] = {}
    with ProcessPoolExecutor(CONCURRENCY, mp_context=get_context("spawn")) as pool:
        while len(finished) < trials:
            while len(running) < CONCURRENCY and len(finished) + len(running) < trials:
                trial = study.ask()
                lr_fraction = trial.suggest_float("lr_fraction", *inputs.lr_fractions, log=True)
                domain_share = trial.suggest_float("domain_share", 0, 1)
                point = {"lr_fraction": lr_fraction, "domain_share": domain_share}
                running[pool.submit(run_trial, inputs, **point)] = trial
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                result = future.result()
                study.tell(running.pop(future), [result["domain_bpb"], result["general_bpb"]])
                finished.append(result)
    out.write_text(json.dumps(finished))


if __name__ == "__main__":
    search(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
