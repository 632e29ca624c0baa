"""Local lm-eval tasks of all kinds, two tiny models, and their scores as plain data.

`python -m tests.lm_eval_suite FOLDER MODEL` prints the scores of a fresh process as JSON;
`torchrun -m tests.lm_eval_suite FOLDER MODEL OUT MEMBER...` writes those of members on each rank.
"""

import json
import random
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from sweepcp.config.suites import MemberSpec
from sweepcp.config.types import ScoringMode
from sweepcp.models.loading import byte_tokenizer
from sweepcp.scoring.lm_eval_tasks import LmEvalTasks
from sweepcp.scoring.scorecard import ItemScores
from sweepcp.training.process_group import ALONE, ProcessGroup

MODELS = ("gpt2", "llama")
"""The tokens of the first have merges and no BOS; those of the second are bytes, with a BOS."""
FEW_SHOT = {"shots_asked_for": 2, "shots_fixed_at_zero": 5, "shots_of_file_overruled": 0}
"""Members with `few_shot`; the others have the number of their task's file."""
ITEMS = {"sampled": 7, "sampled_shots": 7}
"""Members with `items`."""
MEMBERS = (
    "zero_shot",
    "shots_of_file",
    "shots_asked_for",
    "shots_fixed_at_zero",
    "shots_of_file_overruled",
    "shots_first",
    "shots_listed",
    "sampled",
    "sampled_shots",
    "normalised",
    "several_targets",
    "several_inputs",
    "string_labels",
    "last_word",
    "group_by_size",
    "group_by_task",
    "rolling",
    "generated",
    "generated_targets",
)
COLOURS = ["red", "green", "dark blue", "white and very light grey"]
NOUNS = ["stone", "river", "table", "paper", "light", "cloud", "horse", "music", "house", "water"]


def write_tasks(folder: Path) -> None:
    """Write the task files and their data; the items are sorted by label."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("test", 12), ("train", 8), ("small", 5)):
        lines = [json.dumps(item(split, number, count)) for number in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    for name, config in task_configs(folder).items():
        # JSON is YAML without anchors.
        (folder / f"{name}.yaml").write_text(json.dumps(config))


def item(split: str, number: int, count: int) -> dict[str, Any]:
    """Return an item; the label is known by its number."""
    rnd = random.Random(f"{split} {number}")
    first, second = rnd.sample(NOUNS, 2)
    label = 4 * number // count
    return {
        "question": f"Which colour has the {first} beside the {second}?",
        "choices": COLOURS,
        "label": label,
        "labels": sorted({label, rnd.randrange(4)}),
        "name": COLOURS[label],
        "names": [COLOURS[label], first],
        "sentences": [f"The {first} is near the {noun}" for noun in (second, "sky")],
        "side": str(label % 2 + 1),
        "text": " ".join(rnd.choices(NOUNS, k=30)) + ", größer als 3 m².",
    }


def task_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the content of each task file by its name."""
    files = {split: str(folder / f"{split}.jsonl") for split in ("test", "train", "small")}
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test"}
    accuracy = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
    normalised = accuracy | {"metric": "acc_norm"}
    exact = accuracy | {"metric": "exact_match"}
    choice = data | {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": [accuracy],
    }
    from_train = {"training_split": "train", "fewshot_split": "train"}
    generate = data | {
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "name",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6},
        "metric_list": [exact],
    }
    first_word = [{"function": "regex", "regex_pattern": "(\\w+)"}, {"function": "take_first"}]
    listed = [item("listed", number, 4) for number in range(4)]
    configs: dict[str, dict[str, Any]] = {
        "zero_shot": choice,
        # Examples come from the items themselves, other than the one that is asked.
        "shots_of_file": choice | {"num_fewshot": 3, "fewshot_split": "test"},
        "shots_asked_for": choice | from_train,
        "shots_fixed_at_zero": choice | from_train | {"num_fewshot": 0},
        "shots_of_file_overruled": choice | from_train | {"num_fewshot": 4},
        "shots_first": choice
        | from_train
        | {"num_fewshot": 2, "fewshot_config": {"sampler": "first_n"}},
        "shots_listed": choice | {"num_fewshot": 2, "fewshot_config": {"samples": listed}},
        "sampled": choice,
        "sampled_shots": choice | from_train | {"num_fewshot": 2},
        "normalised": choice | {"metric_list": [accuracy, normalised], "target_delimiter": " -> "},
        "several_targets": choice
        | {"doc_to_target": "labels", "metric_list": [accuracy, normalised]},
        "several_inputs": choice
        | {
            "doc_to_text": "{{side | int - 1}}",
            "doc_to_choice": "sentences",
            "doc_to_target": "{{'because of the ' + name}}",
        },
        "string_labels": choice | {"doc_to_target": "name", "doc_to_text": "{{question}} It is "},
        "last_word": data
        | {
            "output_type": "loglikelihood",
            "doc_to_text": "{{question}} It is",
            "doc_to_target": "{{' ' + name}}",
            "num_fewshot": 1,
            "training_split": "train",
            "metric_list": [{"metric": "perplexity"}, accuracy],
        },
        "rolling": data
        | {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "text",
            "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
        },
        "generated": generate
        | {
            "filter_list": [
                {"name": "first-word", "filter": first_word},
                {"name": "all", "filter": [{"function": "take_first"}]},
            ]
        },
        "generated_targets": generate
        | from_train
        | {"doc_to_target": "names", "num_fewshot": 1, "repeats": 2},
    }
    for group, by_size in (("group_by_size", True), ("group_by_task", False)):
        members = {f"{group}_large": choice, f"{group}_small": choice | {"test_split": "small"}}
        configs |= members
        configs[group] = {
            "group": group,
            "task": list(members),
            "aggregate_metric_list": [{"metric": "acc", "weight_by_size": by_size}],
        }
    return {name: {"task": name} | config for name, config in configs.items()}


def save_model(folder: Path, name: str) -> None:
    """Save a tiny model of random weights with its tokenizer."""
    torch.manual_seed(11)
    model: PreTrainedModel
    if name == "llama":
        tokenizer = byte_tokenizer()
        llama = LlamaConfig(
            vocab_size=258,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            initializer_range=0.3,
            bos_token_id=256,
            eos_token_id=257,
        )
        model = LlamaForCausalLM(llama)
    else:
        tokenizer = merging_tokenizer()
        gpt2 = GPT2Config(
            vocab_size=400,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=512,
            initializer_range=0.3,
            bos_token_id=0,
            eos_token_id=0,
        )
        model = GPT2LMHeadModel(gpt2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with merges, and an EOS but no BOS."""
    texts = [
        item("tokenizer", number, 200)[key] for number in range(200) for key in ("text", "question")
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def member(folder: Path, name: str) -> MemberSpec:
    """Return the member of a suite that scores a task."""
    return MemberSpec(
        task=name, path=str(folder), few_shot=FEW_SHOT.get(name), items=ITEMS.get(name)
    )


def load(folder: Path) -> tuple[PreTrainedModel, Any]:
    """Load what `save_model` saved."""
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(
        folder
    )


def make_tasks(
    tasks: Path,
    model: Path,
    names: tuple[str, ...] = MEMBERS,
    group: ProcessGroup = ALONE,
    *,
    scoring: ScoringMode = "exact",
) -> LmEvalTasks:
    """Build members of a suite for a model, which the ranks of a group score together."""
    loaded, tokenizer = load(model)
    members: Any = [("general", "en", member(tasks, name)) for name in names]
    return LmEvalTasks(
        members,
        loaded,
        tokenizer,
        generated_tasks=None,
        precision="fp32",
        scoring=scoring,
        group=group,
    )


def describe(tasks: LmEvalTasks) -> dict[str, Any]:
    """Score a model; return items, prompts and responses by member."""
    items: dict[str, dict[str, ItemScores]] = {}
    for scores in tasks.score():
        items.setdefault(scores.name, {})[scores.unit] = scores
    described = {}
    for entry in tasks.members:
        requests = []
        for task in entry.loaded.tasks:
            for number, instances in zip(task.numbers, task.instances, strict=True):
                requests += [[task.name, number, list(i.args), i.resps] for i in instances]
        units = {unit: s.model_dump(mode="json") for unit, s in items[entry.spec.name].items()}
        described[entry.spec.name] = {"requests": requests, "items": units}
    plain: dict[str, Any] = json.loads(json.dumps(described))
    return plain


def describe_on_ranks(tasks: Path, model: Path, out: Path, names: tuple[str, ...]) -> None:
    """Score a model on the ranks that torchrun started, which wait for each other in every pass."""
    dist.init_process_group("gloo", timeout=timedelta(minutes=2))
    group = ProcessGroup(rank=dist.get_rank(), world_size=dist.get_world_size())
    made = make_tasks(tasks, model, names, group)
    # As a partitioned model does, whose weights are gathered from all ranks.
    made.model.register_forward_pre_hook(lambda *_: group.barrier())
    (out / f"rank-{group.rank}.json").write_text(json.dumps(describe(made)))
    dist.destroy_process_group()


if __name__ == "__main__":
    tasks_folder, model_folder, *rest = sys.argv[1:]
    folders = Path(tasks_folder), Path(model_folder)
    if rest:
        describe_on_ranks(*folders, Path(rest[0]), tuple(rest[1:]))
    else:
        print(json.dumps(describe(make_tasks(*folders))))
