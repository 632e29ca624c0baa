"""Shared contexts against `lm_eval.simple_evaluate`: hard items, tokenizers and architectures.

A member is within 1e-4 nats of stock lm-eval with equal accuracies, or scored by exact mode.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from sweepcp.data.stream import IGNORED
from sweepcp.models.architecture import build_model
from sweepcp.models.loading import byte_tokenizer
from sweepcp.training.engine import PlainEngine
from tests.integration.test_architectures import EXPECTED, build_tiny, tiny_config
from tests.make import recipe
from tests.packed import packed_batch
from tests.scoring_cases import (
    CLOSE,
    SPLITS,
    build_tasks,
    compare,
    hostile_items,
    score,
    stock_score,
    trained_tokenizer,
    verdict_of,
    write_hostile_task,
)

LONGEST = 128
"""Tokens that the models take."""
SETTINGS = recipe(seq_len=32, batch_tokens=96, tokens=960)
TOKENIZERS = ("bytes", "words", "spanning", "spanning_bos")
"""Bytes with a BOS; merges within words; merges across words, and so across the joint of context
and answer, without and with a BOS."""
SHARING = ("llama", "gpt2", "gemma2", "mixtral", "qwen2", "gpt_neox", "phi3", "cohere", "granite")
"""Their members are scored in shared mode; `gpt2` learns its positions, `gemma2` caps its logits,
`mixtral` has experts."""
SCALINGS: dict[str, dict[str, Any]] = {
    name: {"rope_type": name, "factor": 4.0, "rope_theta": 1e4}
    for name in ("dynamic", "yarn", "linear")
} | {
    "longrope": {
        "rope_type": "longrope",
        "factor": 2.0,
        "rope_theta": 1e4,
        "original_max_position_embeddings": LONGEST // 2,
        "short_factor": [1.0] * 4,
        "long_factor": [3.0] * 4,
    }
}
"""Rotary embeddings of texts that are longer than those of pretraining."""
REFUSED = ("mamba", "bloom", "lfm2")
"""Their members are scored in exact mode: a state that is carried over, biases by distance."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_tokenizer(name: str) -> PreTrainedTokenizerBase:
    if name == "bytes":
        return byte_tokenizer()
    return trained_tokenizer(splits_words=name == "words", bos=name.endswith("bos"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    """The tokenizers, and the folders of the hostile task for each."""
    made = {}
    for name in TOKENIZERS:
        folder = tmp_path_factory.mktemp(name)
        tokenizer = make_tokenizer(name)
        write_hostile_task(folder, tokenizer, hostile_items(LONGEST))
        made[name] = tokenizer, folder
    return made


def make_model(model_type: str, **changes: Any) -> PreTrainedModel:
    """Build a tiny model with windows of 512 tokens, so that none is shorter than an item."""
    config = tiny_config(model_type)
    settings = config.to_dict()
    for key, number in (
        ("max_position_embeddings", LONGEST),
        ("n_positions", LONGEST),
        ("sliding_window", 512),
    ):
        if settings.get(key) is not None:
            settings[key] = number
    settings |= changes
    torch.manual_seed(0)
    config = AutoConfig.for_model(**settings)
    model = build_model(config, attention="sdpa", dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(3)
    return model


def slow_but(names: tuple[str, ...], fast: tuple[str, ...]) -> list[Any]:
    return [pytest.param(name, marks=[] if name in fast else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("model_type", slow_but(SHARING, ("gpt2", "gemma2")))
def test_hard_items_share_their_contexts(model_type: str, folders: dict[str, Any]):
    tokenizer, folder = folders["bytes"]
    verdict = verdict_of(make_model(model_type), tokenizer, folder)
    assert verdict.scoring == "shared"
    assert verdict.equal
    assert verdict.difference <= CLOSE


@pytest.mark.parametrize("tokens", slow_but(TOKENIZERS[1:], ("spanning",)))
def test_merges_across_the_joint(tokens: str, folders: dict[str, Any]):
    tokenizer, folder = folders[tokens]
    assert verdict_of(make_model("llama"), tokenizer, folder).holds


def test_a_text_that_is_divided_in_several_ways_is_scored_as_lm_eval_does(tmp_path: Path):
    tokenizer, model = byte_tokenizer(), make_model("llama").eval()
    write_hostile_task(tmp_path, tokenizer, SPLITS)
    stock = stock_score(model, tokenizer, tmp_path)
    for scoring in ("exact", "shared"):
        tasks = build_tasks(model, tokenizer, tmp_path, scoring=scoring)
        verdict = compare(score(tasks)["hostile"], stock)
        assert (verdict.scoring, verdict.difference) == ("exact", 0.0)


@pytest.mark.parametrize("model_type", slow_but(REFUSED, ("bloom",)))
def test_exact_mode_takes_over_where_contexts_cannot_be_shared(
    model_type: str, folders: dict[str, Any]
):
    tokenizer, folder = folders["bytes"]
    model = build_tiny(model_type)
    tasks = build_tasks(model, tokenizer, folder)
    assert tasks.scoring.startswith("shared; exact: hostile (")
    verdict = compare(score(tasks)["hostile"], stock_score(model.eval(), tokenizer, folder))
    assert (verdict.scoring, verdict.difference, verdict.equal) == ("exact", 0.0, True)


@pytest.mark.parametrize(
    ("window", "scoring"),
    [(8, "exact"), pytest.param(512, "shared", marks=pytest.mark.slow)],
)
def test_a_window_shorter_than_an_item_is_for_exact_mode(
    window: int, scoring: str, folders: dict[str, Any]
):
    tokenizer, folder = folders["bytes"]
    model = make_model("mistral", sliding_window=window)
    tasks = build_tasks(model, tokenizer, folder)
    # The reason is that of the architecture, which no sample of the items decides.
    assert ("sliding_window 8" in tasks.scoring) is (window == 8)
    verdict = compare(score(tasks)["hostile"], stock_score(model.eval(), tokenizer, folder))
    assert verdict.scoring == scoring
    assert verdict.holds


@pytest.mark.parametrize("kind", slow_but(tuple(SCALINGS), ("longrope",)))
def test_angles_that_depend_on_the_longest_row(kind: str, folders: dict[str, Any]):
    """With `dynamic` and `longrope` the angles of all rows of a batch depend on its longest."""
    tokenizer, folder = folders["bytes"]
    model = make_model("llama", rope_parameters=SCALINGS[kind])
    verdict = verdict_of(model, tokenizer, folder)
    assert verdict.holds
    assert (verdict.scoring == "exact") is (kind == "longrope")


@pytest.mark.parametrize("model_type", slow_but(("llama", "gpt2"), ("llama",)))
def test_scores_follow_the_weights(model_type: str, folders: dict[str, Any]):
    """The mode is decided on the base; trials have other weights."""
    tokenizer, folder = folders["words"]
    model = make_model(model_type).eval()
    tasks = build_tasks(model, tokenizer, folder)
    before = score(tasks)["hostile"]
    for seed in range(2):
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        model.train()
        after = score(tasks)["hostile"]
        stock = stock_score(model.eval(), tokenizer, folder)
        assert compare(after, stock).holds
        assert np.abs(after[1].answers[:, 0] - before[1].answers[:, 0]).max() > 0.1
    # Nothing of a call is left over for the next one.
    assert np.array_equal(score(tasks)["hostile"][1].answers, after[1].answers)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_heads_may_be_tied(tied: bool, folders: dict[str, Any]):
    tokenizer, folder = folders["words"]
    assert verdict_of(make_model("qwen2", tie_word_embeddings=tied), tokenizer, folder).holds


def test_bf16_differs_no_more_than_its_rounding(folders: dict[str, Any]):
    tokenizer, folder = folders["bytes"]
    model = make_model("llama").eval()
    mode, ours = score(build_tasks(model, tokenizer, folder, precision="bf16"))["hostile"]
    in_bf16: dict[str, Any] = {
        "mixed_precision_dtype": torch.bfloat16,
        "softmax_dtype": torch.float32,
    }
    stock = stock_score(model, tokenizer, folder, **in_bf16).answers[:, 0]
    rounding = np.abs(stock - stock_score(model, tokenizer, folder).answers[:, 0]).max()
    difference = np.abs(ours.answers[:, 0] - stock).max()
    assert difference <= (4 * rounding if mode == "shared" else 0)
    assert rounding > 1e-3


@pytest.mark.parametrize(
    ("scoring", "kind"),
    [
        ("shared", None),
        pytest.param("shared", "dynamic", marks=pytest.mark.slow),
        pytest.param("exact", None, marks=pytest.mark.slow),
        pytest.param("exact", "longrope", marks=pytest.mark.slow),
    ],
)
def test_scoring_within_training_changes_no_later_loss(
    scoring: Any, kind: str | None, folders: dict[str, Any]
):
    tokenizer, folder = folders["bytes"]
    changes = {"rope_parameters": SCALINGS[kind]} if kind else {}
    losses = []
    for scores_between in (False, True):
        model = make_model("llama", **changes)
        tasks = build_tasks(model, tokenizer, folder, scoring=scoring)
        losses.append(train(model, partial(score, tasks) if scores_between else lambda: None))
        assert model.training
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == len(losses[0])


def train(model: PreTrainedModel, between: Callable[[], object]) -> list[float]:
    """Train for a few steps, and call a function between them; return their summed losses."""
    torch.manual_seed(0)
    engine = PlainEngine(model, SETTINGS, micro_batch=None, precision="fp32")
    losses = []
    for seed in range(3):
        batch = packed_batch(seed=seed)
        targets = int((batch.targets != IGNORED).sum())
        row_losses, grad_norm = engine.step(batch, target_tokens=targets, lr=0.01)
        losses += [*row_losses.tolist(), grad_norm]
        between()
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(EXPECTED))
def test_every_architecture_is_close_to_stock(model_type: str, folders: dict[str, Any]):
    """With windows and chunks that are shorter than most items."""
    tokenizer, folder = folders["bytes"]
    model = build_tiny(model_type)
    try:
        stock = stock_score(model.eval(), tokenizer, folder)
    except Exception as error:
        pytest.skip(f"stock lm-eval cannot score it: {error}")
    verdict = compare(score(build_tasks(model, tokenizer, folder))["hostile"], stock)
    assert verdict.holds, verdict
