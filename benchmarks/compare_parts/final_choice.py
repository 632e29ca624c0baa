"""Choose a trial of each arm by one rule, and score it again by stock lm-eval.

    python -m compare_parts.final_choice INPUTS SEARCHES OUT

No arm writes the weights of its trials while the clock runs. A trial is a function of its point and
the seed, so the chosen one is trained again here: by the function that trained it, in one thread.
The bits per byte of held-out text show that it became the same model.
"""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from compare_parts.arms import all_arms
from compare_parts.inputs import Inputs
from compare_parts.levers import evaluate_samples, gold_bits, train_by_trainer
from compare_parts.trial import held_out_bpb, train

MAX_REGRESSION = 0.02
"""The largest part of the base's bits per byte on general text by which a choice may be worse."""


def choose_trial(trials: Sequence[dict[str, Any]], base_general_bpb: float) -> dict[str, Any]:
    """Return the trial with the best domain whose general text is not much worse than the base's.

    If there is none, the one with the best general text is returned.

    Args:
        trials: The trials of a search; `domain_bpb` and `general_bpb` are those of held-out text.
        base_general_bpb: Of the base.
    """
    bound = (1 + MAX_REGRESSION) * base_general_bpb
    allowed = [trial for trial in trials if trial["general_bpb"] <= bound]
    if not allowed:
        return min(trials, key=lambda trial: trial["general_bpb"])
    return min(allowed, key=lambda trial: trial["domain_bpb"])


def retrain(inputs: Inputs, trial: dict[str, Any], *, with_trainer: bool) -> Any:
    """Return the model of a trial, trained again from the base.

    Args:
        inputs: Of the comparison.
        trial: One of any arm.
        with_trainer: Whether sweepcp trained it by HF Trainer.
    """
    from transformers import AutoModelForCausalLM

    if trial["folder"] is None:
        model = AutoModelForCausalLM.from_pretrained(inputs.base)
        train(model, inputs, **trial["point"])
        return model
    return _retrain_ours(Path(trial["folder"]), with_trainer=with_trainer)


def _retrain_ours(folder: Path, *, with_trainer: bool) -> Any:
    import torch

    from sweepcp.config.types import Attention
    from sweepcp.corpora.provenance import base_model_of_run, stores_of_run
    from sweepcp.data.stream import MixtureStream
    from sweepcp.models.loading import load_model
    from sweepcp.runs.run_folder import read_run
    from sweepcp.training.engine import PlainEngine
    from sweepcp.training.loop import run_training

    run = read_run(folder.parents[1])
    assert run.base is not None
    (trial,) = (trial for trial in run.trials if trial.id == folder.name)
    model = load_model(
        base_model_of_run(run),
        revision=None,
        device=torch.device("cpu"),
        attention=cast(Attention, run.base.environment["attention"]),
        in_bf16=False,
    )
    torch.manual_seed(trial.recipe.seed)
    assert trial.cost is not None
    engine = PlainEngine(model, trial.recipe, micro_batch=trial.cost.micro_batch, precision="fp32")
    stream = MixtureStream(trial.recipe, list(stores_of_run(run).values()))
    run_steps = train_by_trainer if with_trainer else run_training
    for _ in run_steps(engine, trial.recipe, stream, max_lr=run.experiment.base.max_lr):
        pass
    return model


def score_again(inputs: Inputs, model: Any, trial: dict[str, Any]) -> dict[str, Any]:
    """Score the retrained model by stock lm-eval, and compare with the arm's own scores.

    Differences of answers are in nats.
    """
    from transformers import AutoTokenizer

    from sweepcp.scoring.lm_eval_batches import MAX_REQUESTS

    tokenizer = AutoTokenizer.from_pretrained(inputs.tokenizer)
    samples: dict[str, list[dict[str, Any]]] = {}
    # An answer depends on its batch by rounding. Those of sweepcp are of one task, of this size.
    for task in inputs.tasks:
        samples |= evaluate_samples(
            model,
            tokenizer,
            folder=Path(inputs.task_folder),
            tasks=[task],
            batch_size=MAX_REQUESTS,
        )
    accuracies = {
        task: sum(float(sample["acc"]) for sample in found) / len(found)
        for task, found in samples.items()
    }
    bpb = {role: held_out_bpb(model, inputs, role) for role in inputs.held_out}
    differences = [
        abs(gold_bits(sample) - own) * math.log(2)
        for task, bits in trial["gold_bits"].items()
        for sample, own in zip(samples[task], bits, strict=True)
    ]
    return {
        "point": trial["point"],
        "bpb": {role: trial[f"{role}_bpb"] for role in bpb},
        "bpb_difference": max(abs(bpb[role] - trial[f"{role}_bpb"]) for role in bpb),
        "accuracies": trial["accuracies"],
        "stock_accuracies": accuracies,
        "accuracy_difference": max(
            abs(accuracies[task] - trial["accuracies"][task]) for task in accuracies
        ),
        "answer_difference": max(differences) if differences else None,
    }


def main(folder: Path, searches: Path, out: Path) -> None:
    """Choose, train and score a trial of every arm."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    inputs = Inputs.read(folder)
    base = AutoModelForCausalLM.from_pretrained(inputs.base).eval()
    base_bpb = {role: held_out_bpb(base, inputs, role) for role in inputs.held_out}
    found: dict[str, Any] = {"base_bpb": base_bpb, "arms": {}}
    arms = all_arms()
    for arm, search in json.loads(searches.read_text()).items():
        trial = choose_trial(search["trials"], base_bpb["general"])
        model = retrain(inputs, trial, with_trainer="trainer" in arms[arm].levers)
        found["arms"][arm] = score_again(inputs, model, trial)
    out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
