"""Target files, and what they say of size, memory, time and cost."""

import json
from pathlib import Path

import pytest

from sweepcp.config.model_dimensions import dimensions_of
from sweepcp.config.target import Target, load_target
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
    shape = load_target(name)[0].model.shape
    assert shape is not None
    assert shape.parameter_count == parameters


def test_e_llama_by_its_own_numbers(tmp_path: Path):
    bundle = promote(
        candidate_from_publication("e-llama"),
        *load_target("llama-3.1-70b-60x8"),
        tmp_path / "bundle",
    )
    recipe, target = bundle.recipe, bundle.target
    assert target.hardware.world_size == 480
    assert recipe.steps == 85_000
    assert round(recipe.batch_tokens / 1e6, 1) == 11.8
    assert round(recipe.tokens / 1e12, 2) == 1.00
    assert recipe.sequences == 3 * 480
    assert recipe.lr(1700, bundle.model.max_lr) == pytest.approx(
        1.5e-5
    )  # the peak, a tenth of 1.5e-4
    assert recipe.lr(85_000, bundle.model.max_lr) == pytest.approx(1.5e-6)
    assert recipe.domain_share == pytest.approx(0.5)
    assert recipe.mixture.non_english_share == pytest.approx(0.1)
    config = json.loads((tmp_path / "bundle" / "ds_config.json").read_text())
    assert (config["train_batch_size"], config["gradient_accumulation_steps"]) == (1440, 3)
    by_name = {c.name: c for c in bundle.corpora}
    assert by_name["web-en"].epochs == pytest.approx(0.45 * recipe.tokens / 450e9, rel=1e-6)
    rows = [
        json.loads(line) for line in (tmp_path / "bundle" / "plan.jsonl").read_text().splitlines()
    ]
    assert (rows[0]["step"], rows[-1]["step"], len(rows)) == (1, 85_000, 1000)
    assert sum(rows[-1]["tokens"].values()) == recipe.tokens
    text = "\n".join(bundle.assumptions)
    assert "the paper does not say" in text
    assert "meta-llama/Llama-3.1-70B@main is no commit" in text


def test_time_and_cost_by_hand():
    target, _ = load_target("llama-3.1-70b-60x8")
    shape = target.model.shape
    assert shape is not None
    recipe = type("R", (), {"tokens": target.tokens, "seq_len": 8192})
    expense = estimate_expense(shape, recipe, target)  # type: ignore[arg-type]
    flops = (6 * 70_553_706_496 + 12 * 80 * 8192 * 8192) * 1_002_700_800_000
    assert expense.flops == pytest.approx(flops)
    hours = flops / (480 * 989e12 * 0.4) / 3600
    assert expense.hours == pytest.approx(hours)
    assert expense.usd == pytest.approx(hours * 480 * 2.5)


@pytest.mark.parametrize("offload", ["none", "optimizer", "all"])
def test_memory_of_states_is_what_deepspeed_estimates(offload: str):
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

    target, _ = load_target("llama-3.1-70b-60x8")
    target = target.model_copy(
        update={"compute": target.compute.model_copy(update={"offload": offload})}
    )
    shape = target.model.shape
    assert shape is not None
    memory = estimate_memory(shape, target)
    _, on_gpu, _ = estimate_zero3_model_states_mem_needs(
        shape.parameter_count, shape.largest_module_parameters, 8, 60, offload != "none", offload == "all"
    )
    states = memory.weights + memory.master + memory.gradients + memory.optimizer + memory.gathered
    assert states == pytest.approx(on_gpu, rel=1e-6)


def test_memory_of_activations_by_hand():
    target, _ = load_target("llama-3.1-8b-4x8")
    shape = target.model.shape
    assert shape is not None
    memory = estimate_memory(shape, target)
    assert memory.activations == 2 * 8192 * 4096 * 32 + 34 * 8192 * 4096
    assert memory.logits == 8192 * 128_256 * 12
    eager = target.model_copy(
        update={"compute": target.compute.model_copy(update={"attention": "eager"})}
    )
    assert estimate_memory(shape, eager).activations - memory.activations == 5 * 32 * 8192 * 8192


def test_a_configuration_that_does_not_tell_its_size_has_no_shape():
    assert dimensions_of({"model_type": "gpt2", "n_embd": 768}) is None
    assert dimensions_of({"model_type": "qwen2", "vocab_size": 10, **SMALL}) is None
    assert dimensions_of({"model_type": "qwen2", "vocab_size": 10, **SMALL}, parameters=5).size == 5  # type: ignore[union-attr]


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
    "one checkpoint": ({"checkpoints": {"every": 5, "keep": 1}}, "greater than or equal to 2"),
    "unknown key": ({"hardware": {"nodes": 1, "gpus": 2}}, "unknown key"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_targets_say_what_to_do(tmp_path: Path, case: str):
    changes, said = WRONG[case]
    with pytest.raises(InvalidInput) as error:
        validate(Target, target_content(tmp_path, **changes), "target.yaml")  # type: ignore[arg-type]
    assert said in str(error.value)
