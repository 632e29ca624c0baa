"""Numbers that trainers are given, of a recipe that is nowhere at its defaults."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweepcp.config.target import ComputeSettings, Parallelism
from sweepcp.export.export_plan import round_to_12_digits
from sweepcp.export.recipe_facts import recipe_facts
from sweepcp.export.transformers_keys import _readable_bytes, mix_size_note
from sweepcp.export.write import TRAINERS
from sweepcp.promote.bundle import LoadedBundle
from sweepcp.training.deepspeed_config import zero_config
from tests.exports import make_input, promoted_short

RECIPE = {
    "lr_fraction": 0.2,
    "warmup": 0.13,
    "final_fraction": 0.25,
    "decay": 0.31,
    "betas": (0.8, 0.99),
    "weight_decay": 0.05,
    "epsilon": 1e-6,
    "clip": 0.5,
    "seed": 5,
}
COMPUTE = ComputeSettings(micro_batch=4, precision="fp32", attention="eager", recompute=False)
MAX_LR = 6e-5
"""A fifth of Llama 3.1's 3e-4."""


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> LoadedBundle:
    """100 steps of 512 sequences of 8,192 tokens on 4 × 8 GPUs."""
    return promoted_short(tmp_path_factory.mktemp("short"))


def changed(loaded: LoadedBundle, **recipe_changes: Any) -> LoadedBundle:
    bundle = loaded.bundle
    recipe = bundle.recipe.model_copy(update=RECIPE | recipe_changes)
    parallelism = Parallelism(tensor=2, pipeline=4)
    target = bundle.target.model_copy(update={"compute": COMPUTE, "parallelism": parallelism})
    model = bundle.model.model_copy(update={"revision": "c" * 40})
    bundle = bundle.model_copy(update={"recipe": recipe, "target": target, "model": model})
    return replace(loaded, bundle=bundle, ds_config=zero_config(recipe, target, world_size=32))


def settings(loaded: LoadedBundle, trainer: str) -> dict[str, Any]:
    export_input = make_input(loaded, Path("/export"))
    return TRAINERS[trainer].make_export_plan(export_input).settings


ADAMW = {
    "adam_beta1": 0.8,
    "adam_beta2": 0.99,
    "adam_epsilon": 1e-6,
    "weight_decay": 0.05,
    "max_grad_norm": 0.5,
    "learning_rate": MAX_LR,
    "warmup_steps": 13,
    "max_steps": 100,
    "gradient_accumulation_steps": 4,
    "bf16": False,
    "seed": 5,
    "save_steps": 500,
    "save_total_limit": 3,
    "ds_config.json.gradient_clipping": 0.5,
    "ds_config.json.train_batch_size": 512,
}
EXPECTED: dict[str, dict[str, Any]] = {
    "hf-trainer": ADAMW
    | {
        "per_device_train_batch_size": 4,
        "activation_checkpointing": False,
        "REVISION": "c" * 40,
        "ATTENTION": "eager",
    },
    "llama-factory": ADAMW
    | {
        "per_device_train_batch_size": 4,
        "cutoff_len": 8192,
        "disable_gradient_checkpointing": True,
        "model_revision": "c" * 40,
        "flash_attn": "disabled",
    },
    "axolotl": ADAMW
    | {
        "micro_batch_size": 4,
        "sequence_len": 8192,
        "gradient_checkpointing": False,
        "revision_of_model": "c" * 40,
        "attn_implementation": "eager",
    },
    "megatron-lm": {
        "--train-iters": 100,
        "--micro-batch-size": 4,
        "--global-batch-size": 512,
        "--seq-length": 8192,
        "--lr": MAX_LR,
        "--lr-decay-iters": 100,
        "--lr-warmup-iters": 13,
        "--adam-beta1": 0.8,
        "--adam-beta2": 0.99,
        "--adam-eps": 1e-6,
        "--weight-decay": 0.05,
        "--clip-grad": 0.5,
        "--seed": 5,
        "--bf16": False,
        "--tensor-model-parallel-size": 2,
        "--pipeline-model-parallel-size": 4,
        "--sequence-parallel": True,
        "--save-interval": 500,
        "--rotary-base": 500_000,
        "--rope-scaling-factor": 8.0,
        "--num-query-groups": 8,
        "--kv-channels": 128,
    },
    "torchtitan": {
        "optimizer.param_groups.0.optimizer_kwargs": {
            "lr": MAX_LR,
            "betas": [0.8, 0.99],
            "eps": 1e-6,
            "weight_decay": 0.0,
        },
        "optimizer.param_groups.1.optimizer_kwargs": {
            "lr": MAX_LR,
            "betas": [0.8, 0.99],
            "eps": 1e-6,
            "weight_decay": 0.05,
        },
        "lr_scheduler.warmup_steps": 13,
        "lr_scheduler.min_lr_factor": 0.25,
        # The 512 sequences of 4 replicas: a pipeline splits them itself.
        "training.local_batch_size": 128,
        "training.global_batch_size": 512,
        "training.seq_len": 8192,
        "training.max_norm": 0.5,
        "training.steps": 100,
        "training.mixed_precision_param": "float32",
        "parallelism.tensor_parallel_degree": 2,
        "parallelism.pipeline_parallel_degree": 4,
        "parallelism.pipeline_parallel_microbatch_size": 4,
        "checkpoint.interval": 500,
        "checkpoint.keep_latest_k": 3,
        "checkpoint.export_dtype": "float32",
        "activation_checkpoint": None,
        "debug.seed": 5,
    },
}


@pytest.mark.parametrize("trainer", EXPECTED)
def test_a_trainer_is_given_the_numbers_of_the_recipe(short: LoadedBundle, trainer: str):
    written = settings(changed(short), trainer)
    assert {key: written.get(key) for key in EXPECTED[trainer]} == EXPECTED[trainer]


SCHEDULES: dict[str, dict[str, dict[str, Any]]] = {
    "cosine": {
        "transformers": {"name": "cosine_with_min_lr", "arguments": {"min_lr_rate": 0.25}},
        "megatron-lm": {"--lr-decay-style": "cosine", "--min-lr": 1.5e-5},
        "torchtitan": {"decay_ratio": None, "decay_type": "cosine"},
    },
    "linear": {
        "transformers": {"name": "polynomial", "arguments": {"lr_end": 1.5e-5, "power": 1.0}},
        "megatron-lm": {"--lr-decay-style": "linear", "--min-lr": 1.5e-5},
        "torchtitan": {"decay_ratio": None, "decay_type": "linear"},
    },
    "wsd": {
        "transformers": {
            "name": "warmup_stable_decay",
            "arguments": {"num_decay_steps": 31, "min_lr_ratio": 0.25, "decay_type": "linear"},
        },
        "megatron-lm": {
            "--lr-decay-style": "WSD",
            "--min-lr": 1.5e-5,
            "--lr-wsd-decay-iters": 31,
            "--lr-wsd-decay-style": "linear",
        },
        "torchtitan": {"decay_ratio": 0.31, "decay_type": "linear"},
    },
    "wsd-1-sqrt": {
        "transformers": {
            "name": "warmup_stable_decay",
            "arguments": {"num_decay_steps": 31, "min_lr_ratio": 0.25, "decay_type": "1-sqrt"},
        },
        "megatron-lm": {
            "--lr-decay-style": "WSD",
            "--min-lr": 1.5e-5,
            "--lr-wsd-decay-iters": 31,
            "--lr-wsd-decay-style": "minus_sqrt",
        },
        "torchtitan": {"decay_ratio": 0.31, "decay_type": "sqrt"},
    },
    "constant": {
        "transformers": {"name": "constant_with_warmup", "arguments": {}},
        "megatron-lm": {"--lr-decay-style": "constant", "--min-lr": MAX_LR},
        "torchtitan": {"decay_ratio": 0.0, "decay_type": "linear"},
    },
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_trainer_is_given_the_schedule_of_the_recipe(short: LoadedBundle, schedule: str):
    loaded, expected = changed(short, schedule=schedule), SCHEDULES[schedule]
    for trainer, name in (
        ("hf-trainer", "lr_scheduler_type"),
        ("llama-factory", "lr_scheduler_type"),
        ("axolotl", "lr_scheduler"),
    ):
        written = settings(loaded, trainer)
        given = {"name": written[name], "arguments": dict(written["lr_scheduler_kwargs"])}
        # 100 steps without 13 of warmup and 31 of the fall: by default LLaMA-Factory holds 29.
        held = given["arguments"].pop("num_stable_steps", None)
        wsd = schedule in ("wsd", "wsd-1-sqrt")
        assert held == (56 if wsd and trainer == "llama-factory" else None)
        assert given == expected["transformers"]
    written = settings(loaded, "megatron-lm")
    wanted = expected["megatron-lm"]
    assert {key: written[key] for key in wanted} == wanted
    assert ("--lr-wsd-decay-iters" in written) == (schedule in ("wsd", "wsd-1-sqrt"))
    written = settings(loaded, "torchtitan")
    wanted = expected["torchtitan"]
    assert {key: written[f"lr_scheduler.{key}"] for key in wanted} == wanted


@pytest.mark.parametrize(
    ("schedule", "arguments"),
    [
        ("cosine", {"min_lr": 2e-6}),
        ("linear", {"lr_end": 2e-6, "power": 1.0}),
        # A thirtieth of 6e-5.
        ("wsd", {"num_decay_steps": 31, "min_lr_ratio": 0.0333333333333, "decay_type": "linear"}),
    ],
)
def test_a_trainer_is_given_the_minimum_lr_and_the_steps_of_warmup(
    short: LoadedBundle, schedule: str, arguments: dict[str, Any]
):
    """By its own key for an absolute number where it has one, and as a fraction elsewhere."""
    absolute = {"min_lr": 2e-6, "final_fraction": None, "warmup_steps": 7, "warmup": None}
    loaded = changed(short, schedule=schedule, **absolute)
    for trainer in ("hf-trainer", "axolotl"):
        written = settings(loaded, trainer)
        assert (written["lr_scheduler_kwargs"], written["warmup_steps"]) == (arguments, 7)
    written = settings(loaded, "megatron-lm")
    assert (written["--min-lr"], written["--lr-warmup-iters"]) == (2e-6, 7)
    written = settings(loaded, "torchtitan")
    assert written["lr_scheduler.min_lr_factor"] == 0.0333333333333
    assert written["lr_scheduler.warmup_steps"] == 7


@pytest.mark.parametrize("recomputes", [False, True])
def test_activations_are_recomputed_if_the_target_says_so(short: LoadedBundle, recomputes: bool):
    loaded = changed(short)
    compute = COMPUTE.model_copy(update={"recompute": recomputes})
    target = loaded.bundle.target.model_copy(update={"compute": compute})
    loaded = replace(loaded, bundle=loaded.bundle.model_copy(update={"target": target}))
    full = "FullAC" if recomputes else None
    for trainer, key, expected in (
        ("hf-trainer", "activation_checkpointing", recomputes),
        ("axolotl", "gradient_checkpointing", recomputes),
        ("llama-factory", "disable_gradient_checkpointing", not recomputes),
        ("megatron-lm", "--recompute-granularity", "full" if recomputes else None),
        ("torchtitan", "activation_checkpoint", full),
    ):
        assert settings(loaded, trainer).get(key) == expected, trainer


@pytest.mark.parametrize(
    ("final_fraction", "differs"),
    # 2 / 13 is 0.1538: the LR of the second of 13 steps of warmup.
    [(0.15, False), (0.16, True)],
)
def test_a_warmup_that_starts_high_is_a_difference(
    short: LoadedBundle, final_fraction: float, differs: bool
):
    for schedule in ("wsd", "cosine"):
        loaded = changed(short, schedule=schedule, final_fraction=final_fraction)
        plan = TRAINERS["hf-trainer"].make_export_plan(make_input(loaded, Path("/export")))
        stated = "lr" in {difference.fact for difference in plan.differences}
        assert stated == (differs and schedule == "wsd")
    # The same end as an absolute number: 6e-5 of a fraction.
    loaded = changed(
        short, schedule="wsd-1-sqrt", final_fraction=None, min_lr=MAX_LR * final_fraction
    )
    plan = TRAINERS["hf-trainer"].make_export_plan(make_input(loaded, Path("/export")))
    assert ("lr" in {difference.fact for difference in plan.differences}) == differs


def test_megatron_is_given_the_dimensions_of_the_model(short: LoadedBundle):
    changes = {"head_dim": 64, "rope_factor": 32.0, "rope_theta": 1e4, "tie_word_embeddings": True}
    bundle = short.bundle
    shape = bundle.model.shape.model_copy(update=changes)
    model = bundle.model.model_copy(update={"shape": shape})
    written = settings(
        replace(short, bundle=bundle.model_copy(update={"model": model})), "megatron-lm"
    )
    assert (written["--kv-channels"], written["--rotary-base"]) == (64, 10_000)
    assert (written["--rope-scaling-factor"], written["--norm-epsilon"]) == (32.0, 1e-5)
    assert written["--untie-embeddings-and-output-weights"] is False
    sizes = ("--num-layers", "--hidden-size", "--ffn-hidden-size", "--num-attention-heads")
    assert [written[name] for name in sizes] == [32, 4096, 14_336, 32]
    assert written["--max-position-embeddings"] == 131_072


@pytest.mark.parametrize("crosses", [False, True])
def test_documents_are_isolated_unless_the_recipe_says_otherwise(
    short: LoadedBundle, crosses: bool
):
    loaded = changed(short, cross_documents=crosses)
    written = settings(loaded, "megatron-lm")
    for key in ("--reset-position-ids", "--reset-attention-mask", "--eod-mask-loss"):
        assert written[key] is not crosses
    stated = {}
    for trainer in ("axolotl", "llama-factory", "megatron-lm"):
        plan = TRAINERS[trainer].make_export_plan(make_input(loaded, Path("/export")))
        stated[trainer] = "attention" in {difference.fact for difference in plan.differences}
    # Axolotl always isolates documents; LLaMA-Factory and Megatron-LM never do.
    assert stated == {
        "axolotl": crosses,
        "llama-factory": not crosses,
        "megatron-lm": not crosses,
    }


def test_a_source_without_a_share_is_no_part_of_the_blend(short: LoadedBundle):
    first, second, *others = short.bundle.recipe.mixture.portions
    portions = (
        first.model_copy(update={"share": 0.0}),
        second.model_copy(update={"share": first.share + second.share}),
        *others,
    )
    mixture = short.bundle.recipe.mixture.model_copy(update={"portions": portions})
    blend = settings(changed(short, mixture=mixture), "megatron-lm")["--data-path"]
    assert blend[:2] == [repr(0.35 + 0.05), f"/planned/{second.source}/train"]
    assert len(blend) == 2 * len(portions) - 2


def test_facts_are_those_of_the_recipe(short: LoadedBundle):
    facts = recipe_facts(changed(short, cross_documents=True).bundle)
    assert facts["optimizer"] == [0.8, 0.99, 1e-6, 0.05]
    assert (facts["clip"], facts["seed"], facts["precision"]) == (0.5, 5, "fp32")
    assert (facts["attention"], facts["targets"]) == ("across", "across")
    assert facts["lr"][:2] == [0.0, pytest.approx(MAX_LR / 13)]
    # 0.4 of a step is no warmup.
    facts = recipe_facts(changed(short, warmup=0.004).bundle)
    assert facts["lr"][0] == pytest.approx(MAX_LR)


def test_numbers_are_written_to_twelve_digits():
    assert round_to_12_digits(0.1 * 1.5e-4) == 1.5e-5
    assert round_to_12_digits(2 / 3) == 0.666666666667


def test_the_size_of_the_mix_is_nine_bytes_per_token(short: LoadedBundle):
    # 100 · 512 · 8192 · 9 bytes.
    assert "419,430,400 tokens to disk: 3.77 GB" in mix_size_note(
        make_input(short, Path("/export"))
    )


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (9, "9 bytes"),
        (92_160, "92.2 kB"),
        (999_499, "999 kB"),
        (999_999, "1 MB"),
        (9_024_307_200_000, "9.02 TB"),
        (5 * 10**18, "5e+03 PB"),
    ],
)
def test_bytes_have_a_unit_in_which_they_are_read(count, text):
    assert _readable_bytes(count) == text
