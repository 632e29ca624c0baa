"""What a job that was preempted must have come to: every step once, as planned, and no failure counted."""

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
    rows = [json.loads(line) for line in (job / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [{key: row[key] for key in ("step", "lr", "tokens")} for row in rows]
    assert found == plan, "metrics.jsonl is not the plan"
    card = json.loads((job / "run" / "scorecard.json").read_text())["report"]
    print(f"{len(rows)} steps, each once, with the LR and the tokens of the plan")
    print(f"domain {card['domain']:+.2f} %, general {card['general']:+.2f} %")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
