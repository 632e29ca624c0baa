"""Check the result of a preempted job: every step once, as planned, and no failure counted."""

import json
import sys
from pathlib import Path


def main(work: Path, trainer: str) -> None:
    job = work / "job"
    assert not (job / "failures").exists(), "a preemption was counted as a failure"
    if trainer != "deepspeed":
        assert (job / "run" / "model" / "model.safetensors").is_file(), "no model was written"
        return
    plan = [json.loads(line) for line in (work / "bundle" / "plan.jsonl").read_text().splitlines()]
    metrics = [
        json.loads(line) for line in (job / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    steps = [{key: row[key] for key in ("step", "lr", "tokens")} for row in metrics]
    assert steps == plan, "metrics.jsonl differs from the plan"
    scores = json.loads((job / "run" / "scorecard.json").read_text())["report"]
    print(f"{len(steps)} steps, each once, with the LR and the tokens of the plan")
    print(f"domain {scores['domain']:+.2f} %, general {scores['general']:+.2f} %")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
