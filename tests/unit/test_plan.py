from pathlib import Path

import pytest

from sweepcp.config.base_model import BaseSpec
from sweepcp.corpora.experiment import load_experiment
from sweepcp.models.loading import byte_tokenizer
from sweepcp.search.plan import _token_counter, make_plan


def test_numbers_of_the_e_llama_plan_by_hand():
    plan = make_plan(*load_experiment("e-llama"))
    assert plan.first.steps == 480
    assert plan.parameters == 8_030_261_248
    assert plan.trial_flops == pytest.approx(6 * 8_030_261_248 * 503_316_480)
    hours = 6 * 8_030_261_248 * 503_316_480 / 297e12 / 3600
    assert plan.trial_hours == pytest.approx((hours, 1.75 * hours))
    curve = dict(plan.lr_curve())
    assert curve[10] == pytest.approx(3e-5)  # the peak, 10 % of 3e-4
    assert curve[1] == pytest.approx(3e-6)
    assert curve[480] == pytest.approx(3e-6)
    by_name = {e.source.name: e for e in plan.epochs}
    assert by_name["web-en"].first_share == pytest.approx(0.45)  # 90 % of the general half
    assert by_name["web-de"].first_share == pytest.approx(0.02)
    assert by_name["listings-en"].first_epochs == pytest.approx(0.35 * 503_316_480 / 350e9)
    assert by_name["listings-en"].most_epochs == pytest.approx(0.7 * 503_316_480 / 350e9)
    assert by_name["web-de"].most_epochs == pytest.approx(0.5 * 0.4 * 503_316_480 / 20e9)


def test_warnings():
    sets = [
        "budget.trials=4",
        "budget.tokens=20_971_520",
        "space.lr_fraction.high=2",
        "sources.0.planned_tokens=1000",
    ]
    sets += [f"sources.{i}.planned_tokens=1000" for i in range(1, 9)]
    text = "\n".join(make_plan(*load_experiment("e-llama", sets)).warnings)
    assert "none of the 4 trials is proposed by TPE" in text
    assert "beyond the base's own max LR" in text
    assert "listings-en" in text
    assert "more than max_epochs 4" in text


def test_tokens_of_documents_count_their_marks(tmp_path: Path):
    """Two bytes each, BOS and EOS; unknown tokenizers have four bytes to a token."""
    texts = ["ab", "é"]
    pretrained = load_experiment("quickstart")[0].base
    assert _token_counter(pretrained)(texts) == 8.0
    byte_tokenizer().save_pretrained(tmp_path)
    assert _token_counter(BaseSpec(path=str(tmp_path), max_lr=1.0))(texts) == 8.0
    assert _token_counter(BaseSpec(hub="some/model", max_lr=1.0))(texts) == 1.0


@pytest.mark.parametrize("more", [0, 1])
def test_warnings_begin_where_they_say(more: int):
    """One step and one trial more, and they are gone."""
    experiment, _ = load_experiment("e-llama")
    trials = len(experiment.space.anchors) + 4 + more
    steps = 19 + more
    sets = [f"budget.trials={trials}", f"budget.tokens={steps * experiment.training.batch_tokens}"]
    text = "\n".join(make_plan(*load_experiment("e-llama", sets)).warnings)
    assert (f"none of the {trials} trials is proposed by TPE" in text) == (not more)
    assert (f"{steps} steps per trial are too few" in text) == (not more)
    # 16 bytes for each of 8.03 billion parameters.
    assert "needs 128 GB for weights, gradients and optimizer" in text


def test_a_plan_of_sources_on_disk_estimates_their_tokens():
    plan = make_plan(*load_experiment("quickstart"))
    assert plan.parameters == 111_040
    for count in plan.epochs:
        assert plan.token_origins[count.source.name] in ("estimated", "counted")
        assert 1e6 < count.tokens < 2e7
