"""Target files, and the size, memory, time and cost that follow from them."""

import json
from pathlib import Path

import pytest

from sweepcp.config.deepspeed_settings import DeepSpeedSettings
from sweepcp.config.model_dimensions import ModelDimensions, dimensions_of
from sweepcp.config.target import Target, TargetCorpus, load_target
from sweepcp.config.validation import validate
from sweepcp.errors import InvalidInput
from sweepcp.promote.candidate import candidate_from_publication
from sweepcp.promote.estimates import estimate_expense, estimate_memory
from sweepcp.promote.translate import promote
from sweepcp.util.files import shipped_folder
from tests.make import SMALL, target_content

SHIPPED = sorted(path.stem for path in shipped_folder("experiments/targets").glob("*.yaml"))


def test_every_shipped_target_is_read():
    assert SHIPPED == [
        "llama-3.1-70b-60x8",
        "llama-3.1-8b-4x8",
        "quickstart-cpu",
        "smollm2-135m-1gpu",
    ]
    for name in SHIPPED:
        load_target(name)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-3.1-70b-60x8", 70_553_706_496),
        ("llama-3.1-8b-4x8", 8_030_261_248),
        ("smollm2-135m-1gpu", 134_515_008),
    ],
)
def test_parameters_are_those_of_the_published_models(name: str, parameters: int):
    dimensions = load_target(name)[0].model.shape
    assert dimensions is not None
    assert dimensions.parameter_count == parameters


def test_e_llama_by_its_own_numbers(tmp_path: Path):
    target, file = load_target("llama-3.1-70b-60x8")
    candidate = candidate_from_publication("e-llama")
    bundle = promote(candidate, target, file=file, out=tmp_path / "bundle")
    recipe = bundle.recipe
    assert target.hardware.world_size == 480
    assert recipe.steps == 85_000
    assert round(recipe.batch_tokens / 1e6, 1) == 11.8
    assert round(recipe.tokens / 1e12, 2) == 1.00
    assert recipe.sequences == 3 * 480
    # The peak: a tenth of 1.5e-4.
    assert recipe.lr(1700, max_lr=bundle.model.max_lr) == pytest.approx(1.5e-5)
    assert recipe.lr(85_000, max_lr=bundle.model.max_lr) == pytest.approx(1.5e-6)
    assert recipe.domain_share == pytest.approx(0.5)
    assert recipe.mixture.non_english_share == pytest.approx(0.1)
    config = json.loads((tmp_path / "bundle" / "ds_config.json").read_text())
    assert (config["train_batch_size"], config["gradient_accumulation_steps"]) == (1440, 3)
    by_name = {corpus.name: corpus for corpus in bundle.corpora}
    assert by_name["web-en"].epochs == pytest.approx(0.45 * recipe.tokens / 450e9, rel=1e-6)
    lines = (tmp_path / "bundle" / "plan.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    assert (steps[0]["step"], steps[-1]["step"], len(steps)) == (1, 85_000, 1000)
    assert sum(steps[-1]["tokens"].values()) == recipe.tokens
    assumptions = "\n".join(bundle.assumptions)
    assert "the paper does not state" in assumptions
    assert "meta-llama/Llama-3.1-70B@main is not a commit" in assumptions


def test_time_and_cost_by_hand():
    target, _ = load_target("llama-3.1-70b-60x8")
    dimensions = target.model.shape
    assert dimensions is not None
    recipe = type("R", (), {"tokens": target.tokens, "seq_len": 8192})
    expense = estimate_expense(dimensions, recipe, target)  # type: ignore[arg-type]
    flops = (6 * 70_553_706_496 + 12 * 80 * 8192 * 8192) * 1_002_700_800_000
    assert expense.flops == pytest.approx(flops)
    hours = flops / (480 * 989e12 * 0.3) / 3600
    assert expense.hours == pytest.approx((hours, 1.75 * hours))
    assert expense.device_hours == pytest.approx((480 * hours, 480 * 1.75 * hours))
    assert expense.usd == pytest.approx((480 * 2.5 * hours, 480 * 2.5 * 1.75 * hours))


@pytest.mark.parametrize(
    ("name", "published"), [("llama-3.1-8b-4x8", 1.46e6), ("llama-3.1-70b-60x8", 7.0e6)]
)
def test_the_hours_that_llama_3_1_took_are_within_the_interval(name: str, published: float):
    """H100 hours for 15 T tokens, as its model card states them."""
    target, _ = load_target(name)
    dimensions = target.model.shape
    assert dimensions is not None
    recipe = type("R", (), {"tokens": 15e12, "seq_len": 8192})
    device_hours = estimate_expense(dimensions, recipe, target).device_hours  # type: ignore[arg-type]
    assert device_hours is not None
    assert device_hours[0] <= published <= device_hours[1]


def test_a_target_that_states_no_mfu_assumes_three_tenths(tmp_path: Path):
    content = target_content(tmp_path)
    assert validate(Target, content, "target.yaml").hardware.mfu == 0.3
    content["hardware"] = {"device": "cpu", "nodes": 1, "per_node": 2, "mfu": 0.5}
    assert validate(Target, content, "target.yaml").hardware.mfu == 0.5


def test_devices_that_share_a_model_are_one_replica(tmp_path: Path):
    content = target_content(tmp_path, hardware={"device": "cpu", "nodes": 3, "per_node": 8})
    assert validate(Target, content, "target.yaml").replicas == 24
    content["parallelism"] = {"tensor": 4, "pipeline": 2}
    assert validate(Target, content, "target.yaml").replicas == 3


@pytest.mark.parametrize("offload", ["none", "optimizer", "all"])
def test_memory_of_states_is_what_deepspeed_estimates(offload: str):
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

    target, _ = load_target("llama-3.1-70b-60x8")
    compute = target.compute.model_copy(update={"offload": offload})
    # DeepSpeed's estimate knows no hierarchical partitioning.
    target = target.model_copy(update={"compute": compute, "deepspeed": DeepSpeedSettings()})
    dimensions = target.model.shape
    assert dimensions is not None
    memory = estimate_memory(dimensions, target, isolated=True)
    _, on_gpu, _ = estimate_zero3_model_states_mem_needs(
        dimensions.parameter_count,
        dimensions.largest_module_parameters,
        num_gpus_per_node=8,
        num_nodes=60,
        cpu_offload=offload != "none",
        cpu_offload_params=offload == "all",
    )
    states = memory.weights + memory.master + memory.gradients + memory.optimizer + memory.gathered
    assert states == pytest.approx(on_gpu, rel=1e-6)


def test_memory_of_activations_by_hand():
    """One sequence of 8,192 tokens in bf16, recomputed, on Llama 3.1 8B."""
    target, _ = load_target("llama-3.1-8b-4x8")
    dimensions = target.model.shape
    assert dimensions is not None
    memory = estimate_memory(dimensions, target, isolated=True)
    tokens, vocabulary = 8192, 128_256
    # The last norm with its output in bf16, cosines and sines, ids and positions.
    outside = (4 + 2 + 2) * 4096 + 4 + 2 * 2 * 128 + 16
    assert memory.activations == tokens * (32 * 2 * 4096 + outside)
    # The most is needed while the gradient of the logits is computed, in their own dtype.
    assert memory.logits == 2 * 2 * tokens * vocabulary
    assert memory.masks == 0
    states = 18 * -(-8_030_261_248 // 32)
    gathered = 2 * 2 * vocabulary * 4096
    assert memory.total == states + gathered + memory.activations + memory.logits
    eager = target.model_copy(
        update={"compute": target.compute.model_copy(update={"attention": "eager"})}
    )
    # With eager the most is needed by the layer that is recomputed, for its scores.
    norms, scores = 2 * (4 + 2 + 2) * 4096 + 2 * 4, (4 + 2) * 8192 * 32
    attention, mlp = 2 * 4 * 4096, 4 * 2 * 14_336
    gradients = 2 * 2 * 14_336
    memory = estimate_memory(dimensions, eager, isolated=True)
    layer = norms + scores + attention + mlp + gradients
    assert memory.activations == tokens * (32 * 2 * 4096 + outside + layer)
    assert (memory.masks, memory.logits) == (2 * tokens**2, 0)


def test_a_configuration_without_its_size_has_no_dimensions():
    assert dimensions_of({"model_type": "gpt2", "n_embd": 768}) is None
    uncounted = {"model_type": "qwen2", "vocab_size": 10, **SMALL}
    assert dimensions_of(uncounted) is None
    dimensions = dimensions_of(uncounted, parameters=5)
    assert dimensions is not None
    assert dimensions.parameter_count == 5


def test_memory_in_single_precision_and_without_recomputation_by_hand(tmp_path: Path):
    """Two processes, micro batches of 2 sequences of 32 tokens."""
    dimensions = dimensions_of({"model_type": "llama", "vocab_size": 10, **SMALL})
    assert dimensions is not None
    target = validate(Target, target_content(tmp_path), "target.yaml")
    memory = estimate_memory(dimensions, target, isolated=True)
    # An odd number of parameters would be rounded up.
    half = dimensions.parameter_count // 2
    assert dimensions.parameter_count == 2 * half
    assert (memory.weights, memory.master, memory.gradients) == (4 * half, 4 * half, 4 * half)
    assert memory.optimizer == 8 * half
    assert memory.gathered == 2 * 4 * 64 * 32
    norms, attention, mlp = 24 * 32 + 2 * 4, 4 * 4 * 32 + 4 * 2, 4 * 4 * 64
    outside = 12 * 32 + 4 + 2 * 4 * 16 + 16
    # The gradients within the last norm need more than those of a vocabulary of 10.
    gradients = 20 * 32
    layers = 2 * (norms + attention + mlp)
    assert memory.activations == 64 * (layers + outside + gradients)
    # A boolean mask, and one in fp32 in each of two layers.
    assert memory.masks == 2 * 32 * 32 * (1 + 4 * 2)
    assert memory.logits == 0
    assert memory.total == 20 * half + memory.gathered + memory.activations + memory.masks
    assert memory.host == 0
    compute = target.compute.model_copy(update={"offload": "optimizer"})
    target = target.model_copy(update={"compute": compute})
    offloaded = estimate_memory(dimensions, target, isolated=True)
    assert (offloaded.weights, offloaded.master, offloaded.optimizer) == (4 * half, 0, 0)
    # Of both processes of the node.
    assert offloaded.host == 2 * 16 * half


LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize("name", ["rope_parameters", "rope_scaling"])
def test_rotary_positions_are_read_under_both_of_their_names(name: str):
    config = {"model_type": "llama", "vocab_size": 10, **SMALL, "rope_theta": 1e4}
    dimensions = dimensions_of(config)
    assert dimensions is not None
    assert (dimensions.rope_type, dimensions.rope_theta) == ("default", 1e4)
    dimensions = dimensions_of(config | {name: LLAMA_3_ROPE})
    assert dimensions is not None
    assert (dimensions.rope_type, dimensions.rope_factor) == ("llama3", 32.0)
    assert dimensions.rope_theta == 500_000.0
    for key in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"):
        other = dimensions_of(config | {name: LLAMA_3_ROPE | {key: 2.0}})
        assert other is not None
        assert other.rope_type == "llama3 with other factors"


def test_what_a_configuration_leaves_out_is_what_transformers_takes():
    """As many key-value heads as heads, and embeddings of their own for the output."""
    config = {"model_type": "llama", "vocab_size": 10, **SMALL, "num_key_value_heads": None}
    dimensions = dimensions_of(config)
    assert dimensions is not None
    assert (dimensions.num_key_value_heads, dimensions.tie_word_embeddings) == (2, False)
    # Per layer 4 · 32² of attention, 3 · 32 · 64 of the MLP, two norms; embeddings, a last norm.
    assert dimensions.parameter_count == 2 * (4096 + 6144 + 64) + 2 * 320 + 32
    assert ModelDimensions(**dict(dimensions) | {"head_dim": 8}).parameter_count == (
        2 * (2048 + 6144 + 64) + 2 * 320 + 32
    )


def test_defaults_of_a_target_are_those_of_its_reference(tmp_path: Path):
    content = target_content(tmp_path, spikes={"factor": 2.0})
    for name in ("compute", "watch"):
        del content[name]
    content["watch"] = {"every": 10}
    target = validate(Target, content, "target.yaml")
    assert target.compute.model_dump() == {
        "micro_batch": 1,
        "precision": "bf16",
        "attention": "auto",
        "recompute": False,
        "offload": "none",
    }
    assert target.spikes is not None
    assert (target.spikes.window, target.spikes.at_most) == (64, 3)
    assert (target.watch.max_regression, target.watch.stop) == (None, False)
    assert (target.checkpoints.keep, target.checkpoints.folder) == (2, None)
    assert (target.warmup, target.final_fraction) == (None, None)
    corpus = TargetCorpus(store="a")
    assert (corpus.max_epochs, corpus.beyond_max_epochs) == (4.0, "refuse")


WRONG = {
    "trust_remote_code": (
        {"model": {"path": "m", "max_lr": 1.0, "trust_remote_code": True}},
        "own code is never run",
    ),
    "no max LR": ({"model": {"path": "m"}}, "add `max_lr"),
    "two models": (
        {"model": {"path": "m", "hub": "a/b", "max_lr": 1.0}},
        "exactly one of run_base, path and hub",
    ),
    "hub without shape": ({"model": {"hub": "a/b", "max_lr": 1.0}}, "add `shape"),
    "planned without tokens": (
        {"corpora": {"code": {"store": "planned"}}},
        "tokens are stated for a planned store",
    ),
    "model parallel": ({"parallelism": {"tensor": 3}}, "divides the 2 devices"),
    "one checkpoint": ({"checkpoints": {"every": 5, "keep": 1}}, "an integer of at least 2"),
    "no spike": ({"spikes": {"factor": 1.0}}, "a number above 1"),
    "unknown key": ({"hardware": {"nodes": 1, "gpus": 2}}, "unknown key"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_targets_say_what_to_do(tmp_path: Path, case: str):
    changes, message = WRONG[case]
    with pytest.raises(InvalidInput) as error:
        validate(Target, target_content(tmp_path, **changes), "target.yaml")  # type: ignore[arg-type]
    assert message in str(error.value)
