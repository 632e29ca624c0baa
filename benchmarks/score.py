"""Seconds of scoring 2,000 requests, compared with stock lm-eval on the same model and items.

    python benchmarks/score.py [--model FOLDER]... [--only NAME]... [--items 500] [--rounds 5]

The task has four-way items made of the documentation inside the standard library. Each round scores
the same weights in five ways, in turn, on one thread:

naive      a new `TaskManager` with lm-eval's own tasks, a new `HFLM`, `simple_evaluate`
well-used  the same call with both objects made once, no index of lm-eval's own tasks, no bootstrap
evaluate   `lm_eval.evaluate` with tasks that are loaded once, for comparison: it reports no
           environment, for which `simple_evaluate` starts other programs
exact      what a trial pays on a warm worker with `suites.scoring: exact`
shared     the same with `suites.scoring: shared`

The weights change from round to round, as they do from trial to trial. The models are small ones
with random weights of several architectures, and any local causal LM with `--model`. All rounds are
compared with the stock call: log-likelihoods and accuracies. An answer is the next three words of a
text, or three words from elsewhere; with `--words 1` it is often one token, and lm-eval itself
computes one row for all answers of an item that are one token. The exit status is 1 if a goal is
not met.
"""

import argparse
import json
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

os.environ.update(
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    TRANSFORMERS_VERBOSITY="error",
)

import numpy as np
import torch
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from measuring import (
    Goal,
    Spread,
    add_output_options,
    describe_machine,
    finish,
    markdown_table,
    ratios_of,
    show_number,
    spread_of,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from sweepcp.config.suites import MemberSpec
from sweepcp.models.architecture import build_model
from sweepcp.models.loading import byte_tokenizer
from sweepcp.scoring.generated_tasks import choice_task
from sweepcp.scoring.lm_eval_batches import MAX_REQUESTS
from sweepcp.scoring.lm_eval_tasks import LmEvalTasks

TASK = "continuations"
STOCK = ("naive", "well-used", "evaluate")
OURS = ("exact", "shared")
ARMS = (*STOCK, *OURS)
CONTEXT = 100
"""Characters before the answer."""
CLOSE = 1e-4
"""Largest difference of a shared log-likelihood from stock, in nats."""
NUDGE = 0.01
"""Weights change between rounds by noise of so many standard deviations of each tensor."""
VOCABULARY = 2048
ROPE = {"bos_token_id": 0, "eos_token_id": 0, "max_position_embeddings": 512}
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}
SIZES = LAYERS | ROPE | {"vocab_size": VOCABULARY, "intermediate_size": 160}
RANDOM: dict[str, dict[str, Any]] = {
    "llama": {
        **{
            "vocab_size": 258,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "tie_word_embeddings": True,
        },
        **{"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 160},
        **{"max_position_embeddings": 256, "bos_token_id": 256, "eos_token_id": 257},
    },
    "gpt2": {
        **{"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512},
        **{"bos_token_id": 0, "eos_token_id": 0},
    },
    "gpt_neox": SIZES | {"intermediate_size": 256},
    "qwen2": SIZES | {"num_key_value_heads": 2},
    "mistral": SIZES | {"num_key_value_heads": 2, "sliding_window": 256},
    "gemma2": SIZES | {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 256},
}
"""Model type → its configuration; the first is the quickstart's, over bytes."""


@dataclass(frozen=True)
class Answers:
    """What a model makes of the items."""

    log_likelihoods: np.ndarray
    """In nats, shape (items, choices)."""
    accuracy: float


@dataclass(frozen=True)
class Comparison:
    """The measurements of one model."""

    model: str
    parameters: int
    seconds: dict[str, list[float]]
    """Of each arm, round by round."""
    difference: dict[str, float]
    """Largest difference of a log-likelihood from the well-used stock call, in nats."""
    equal_accuracy: dict[str, bool]
    mode: str
    """How shared mode computes: `shared`, or why exact mode takes over."""

    def ratio(self, stock: str, ours: str) -> Spread:
        """Return how many times as long as ours a stock call takes."""
        return ratios_of(self.seconds[stock], self.seconds[ours])


def documentation() -> list[str]:
    """Return the topics of Python's own help."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def write_task(folder: Path, texts: list[str], *, count: int, words: int) -> None:
    """Write an lm-eval task: how a text continues, in four ways, drawn with a fixed seed."""
    rng = np.random.default_rng(0)
    pattern = re.compile(rf"(?<=\w)( [a-z]+){{{words}}}\b")
    places = [(text, found) for text in texts for found in pattern.finditer(text, CONTEXT)]
    if len(places) < count:
        raise SystemExit(f"--items: at most {len(places)}")
    continuations = sorted({found.group() for _, found in places})
    items = []
    for index in rng.permutation(len(places))[:count]:
        text, found = places[index]
        others = [each for each in rng.choice(continuations, 4) if each != found.group()]
        choices = [found.group(), *others[:3]]
        gold = int(rng.integers(4))
        choices[0], choices[gold] = choices[gold], choices[0]
        context = text[found.start() - CONTEXT : found.start()]
        items.append({"context": context, "choices": choices, "gold": gold})
    data = folder / f"{TASK}.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in items))
    # JSON is YAML without anchors.
    (folder / f"{TASK}.yaml").write_text(json.dumps(choice_task(TASK, data)))


def merging_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of `VOCABULARY` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def make_random(
    model_type: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Build a model of `RANDOM`, and return it with its tokenizer."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **RANDOM[model_type])
    model = build_model(config, attention="sdpa", dtype=torch.float32).eval()
    return model, byte_tokenizer() if config.vocab_size == 258 else tokenizer


def load_local(folder: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal LM and its tokenizer from a folder."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def nudge(model: PreTrainedModel, seed: int) -> None:
    """Change all weights a little, as training does between two scorings."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise, alpha=NUDGE * float(parameter.std()))


def answers_of_stock(result: dict[str, Any]) -> Answers:
    """Return what `simple_evaluate` found."""
    samples = sorted(result["samples"][TASK], key=lambda sample: sample["doc_id"])
    rows = [[response[0][0] for response in sample["resps"]] for sample in samples]
    return Answers(np.array(rows), result["results"][TASK]["acc,none"])


def answers_of_ours(tasks: LmEvalTasks) -> Answers:
    """Return what the last call of `score` found."""
    scores = {item.unit: item for item in tasks.score()}["accuracy"]
    task = tasks.members[0].loaded.tasks[0]
    rows = [[instance.resps[0][0] for instance in item] for item in task.instances]
    return Answers(np.array(rows), float(np.mean(scores.amount)))


def naive_call(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Call stock with objects of its own, as a script does at the end of a trial."""
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=MAX_REQUESTS)
    manager = TaskManager(include_path=str(folder))
    return dict(evaluator.simple_evaluate(lm, tasks=[TASK], task_manager=manager))


def load_once(manager: TaskManager) -> dict[str, Any]:
    """Load the task with the settings of `simple_evaluate`."""
    loaded = dict(manager.load([TASK]))
    for task in loaded["tasks"].values():
        task.set_config("num_fewshot", 0)
    return loaded


def make_arms(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, Callable[[], Answers]], str]:
    """Return each way to score the model as it is at the time of a call, and the mode of `shared`.

    The mode tells whether exact mode answers in its place, and why.
    """
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=MAX_REQUESTS)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    loaded = load_once(manager)
    well_used = partial(
        evaluator.simple_evaluate, lm, tasks=[TASK], task_manager=manager, bootstrap_iters=0
    )
    members: Any = [("general", "en", MemberSpec(task=TASK, path=str(folder)))]
    build = partial(LmEvalTasks, members, model, tokenizer, generated_tasks=None, precision="fp32")
    exact, shared = (build(scoring=mode) for mode in ("exact", "shared"))
    arms = {
        "naive": lambda: answers_of_stock(naive_call(folder, model, tokenizer)),
        "well-used": lambda: answers_of_stock(dict(well_used())),
        "evaluate": lambda: answers_of_stock(
            dict(evaluator.evaluate(lm, loaded, bootstrap_iters=0))
        ),
        "exact": lambda: answers_of_ours(exact),
        "shared": lambda: answers_of_ours(shared),
    }
    return arms, shared.scoring


def compare(
    name: str,
    made: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    folder: Path,
    rounds: int,
) -> Comparison:
    """Score a model in every way, round by round, each round starting with another."""
    model, tokenizer = made
    arms, mode = make_arms(folder, model, tokenizer)
    with redirect_stderr(StringIO()):
        for arm in ARMS[1:]:
            arms[arm]()
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    difference = dict.fromkeys(ARMS, 0.0)
    equal = dict.fromkeys(ARMS, True)
    for turn in range(rounds):
        nudge(model, turn)
        answers = {}
        for arm in (*ARMS[turn % len(ARMS) :], *ARMS[: turn % len(ARMS)]):
            # The bars of lm-eval, which no option turns off, would be drawn on the terminal.
            with redirect_stderr(StringIO()):
                started = time.perf_counter()
                answers[arm] = arms[arm]()
                seconds[arm].append(time.perf_counter() - started)
        stock = answers["well-used"]
        for arm, found in answers.items():
            distance = np.abs(found.log_likelihoods - stock.log_likelihoods).max()
            difference[arm] = max(difference[arm], float(distance))
            equal[arm] &= found.accuracy == stock.accuracy
    return Comparison(name, model.num_parameters(), seconds, difference, equal, mode)


def tables(found: list[Comparison]) -> str:
    """Return the seconds and the agreement of all models."""
    header = ["model", "parameters", *ARMS]
    header += [f"{stock} / {ours}" for ours in OURS for stock in STOCK]
    speed = [
        [
            each.model,
            f"{each.parameters:,}",
            *(spread_of(each.seconds[arm]).show("s") for arm in ARMS),
            *(each.ratio(stock, ours).show() for ours in OURS for stock in STOCK),
        ]
        for each in found
    ]
    agreement = [
        [
            each.model,
            *(show_number(each.difference[arm]) for arm in OURS),
            "yes" if all(each.equal_accuracy.values()) else "NO",
            each.mode,
        ]
        for each in found
    ]
    columns = ["model", "exact, nats", "shared, nats", "accuracies equal", "shared mode"]
    return (
        f"Seconds, and how many times as long stock takes:\n\n{markdown_table(header, speed)}\n"
        "Largest difference of a log-likelihood from stock:\n\n"
        f"{markdown_table(columns, agreement)}"
    )


def goals_of(each: Comparison) -> list[Goal]:
    """Return what is to be reached on a model."""
    bounds: dict[str, dict[str, float]] = {
        "exact": {"naive": 7, "well-used": 2},
        "shared": {"naive": 15, "well-used": 4.5},
    }
    goals = [
        Goal(f"{each.model}: {stock} / {ours}", each.ratio(stock, ours).median, bound)
        for ours, by_stock in bounds.items()
        for stock, bound in by_stock.items()
    ]
    for arm, most in (("exact", 0.0), ("shared", CLOSE)):
        name = f"{each.model}: difference of {arm}, nats"
        goals.append(Goal(name, each.difference[arm], most, at_least=False))
        equal = float(each.equal_accuracy[arm])
        goals.append(Goal(f"{each.model}: accuracy of {arm} is that of stock", equal, 1))
    return goals


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", default=[], metavar="FOLDER")
    parser.add_argument("--only", action="append", choices=RANDOM, help="of the random models")
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--words", type=int, default=3, help="of an answer")
    parser.add_argument("--rounds", type=int, default=5)
    add_output_options(parser)
    asked = parser.parse_args()
    machine = describe_machine()
    torch.set_num_threads(1)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    texts = documentation()
    tokenizer = merging_tokenizer(texts)
    makers: dict[str, Any] = {
        name: partial(make_random, name, tokenizer) for name in asked.only or RANDOM
    }
    makers |= {Path(folder).name: partial(load_local, folder) for folder in asked.model}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        write_task(Path(folder), texts, count=asked.items, words=asked.words)
        for name, make in makers.items():
            found.append(compare(name, make(), Path(folder), asked.rounds))
            print(f"{name}: {found[-1].seconds}", file=sys.stderr, flush=True)
    goals = [goal for each in found for goal in goals_of(each)]
    results = {"items": asked.items, "words": asked.words, "models": found}
    sys.exit(finish(asked, machine=machine, results=results, text=tables(found), goals=goals))


if __name__ == "__main__":
    main()
