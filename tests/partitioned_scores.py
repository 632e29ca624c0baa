"""Scores of lm-eval tasks under ZeRO-3, on each of the ranks that torchrun starts.

torchrun -m tests.partitioned_scores BUNDLE TASKS OUT MEMBER...
"""

import json
import sys
from pathlib import Path
from typing import Any

from sweepcp.config.base_model import BaseSpec
from sweepcp.full_run.preflight import ds_config_for, fetch_model_files
from sweepcp.models.loading import load_tokenizer
from sweepcp.promote.bundle import load_bundle
from sweepcp.scoring import lm_eval_batches
from sweepcp.scoring.lm_eval_tasks import LmEvalTasks
from sweepcp.training.zero_engine import ZeroEngine, join_process_group
from tests.lm_eval_suite import describe, member


def main(bundle: Path, tasks: Path, out: Path, *names: str) -> None:
    loaded = load_bundle(bundle)
    group = join_process_group("cpu")
    shards = fetch_model_files(loaded, group)
    config = ds_config_for(loaded, group.world_size)
    engine = ZeroEngine(
        shards, loaded.bundle.recipe, config, group, attention="auto", recompute=False
    )
    tokenizer = load_tokenizer(BaseSpec(path=str(shards[0].path.parent), max_lr=0.1))
    members: Any = [("general", "en", member(tasks, name)) for name in names]
    # So that every member has several batches.
    lm_eval_batches.MAX_LOGITS = 8 * 100 * 300
    made = LmEvalTasks(
        members, engine.model, tokenizer, generated_tasks=None, precision="fp32", group=group
    )
    (out / f"{group.rank}-of-{group.world_size}.json").write_text(json.dumps(describe(made)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
