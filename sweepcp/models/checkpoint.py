"""Which tensor of a model's files is which of the model's, checked before any weight is read.

Everything that loads a model goes through `match_tensors`, so that trials, scores, pretraining and
the full run accept the same files. The rules are transformers' own (its renamings of older names,
the names that an architecture declares ignorable, tied weights), but where transformers warns and
fills a tensor at random, this is an error.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from sweepcp.errors import InvalidInput
from sweepcp.models.files import SafetensorsFile, TensorInfo, read_model_json

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Dtypes of weights, by safetensors' name: those that fp32 holds exactly."""
SAVE_AGAIN = "save the model again with `save_pretrained` of this version of transformers"
COMPARED_ROWS = 4096
"""Rows of tied tensors that are in memory at a time."""
SHOWN_NAMES = 3


@dataclass(frozen=True)
class MatchedTensor:
    """A tensor of a file, and where it belongs."""

    shard: SafetensorsFile
    info: TensorInfo
    name: str
    """The parameter or buffer of the model."""
    converted: bool
    """Whether transformers computes the parameter from this tensor and others, such as the experts
    of a layer that it stacks."""


def match_tensors(shards: list[SafetensorsFile], model: PreTrainedModel) -> list[MatchedTensor]:
    """Match the tensors of a model's files with the parameters and persistent buffers of a model.

    Tensors that the architecture declares ignorable are left out.

    Args:
        shards: The files.
        model: The model that their configuration describes; it may be on the meta device.

    Raises:
        InvalidInput: A tensor is missing, unexpected, stored twice, of another shape or dtype, or
            tied to one with other values.
    """
    _check_config(shards[0].path.parent)
    expected = model.state_dict(keep_vars=True)
    matched = _match_names(shards, model, expected)
    by_name: dict[str, list[MatchedTensor]] = {}
    for tensor in matched:
        by_name.setdefault(tensor.name, []).append(tensor)
    _check_stored_once(by_name)
    _check_shapes(matched, expected)
    names_of = _names_by_tensor(expected)
    _check_missing(shards, model, names_of, by_name)
    for names in names_of:
        _check_tied([by_name[name][0] for name in names if name in by_name])
    return matched


def _check_config(folder: Path) -> None:
    config = read_model_json(folder / "config.json")
    if config.get("quantization_config"):
        raise InvalidInput(
            file=folder / "config.json",
            key="quantization_config",
            found=config["quantization_config"],
            rule="weights in 16 or 32 bits, which can be trained",
            fix="dequantise the model and save it again",
        )
    if (folder / "adapter_config.json").is_file():
        raise InvalidInput(
            file=folder / "adapter_config.json",
            found="an adapter",
            rule="a model without adapters",
            fix="merge the adapter into the model and save it again, or remove its files",
        )


def _match_names(
    shards: list[SafetensorsFile], model: PreTrainedModel, expected: dict[str, torch.Tensor]
) -> list[MatchedTensor]:
    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    ignorable = _ignorable_pattern(model)
    prefix = model.base_model_prefix
    matched, unexpected = [], []
    for shard in shards:
        for info in shard.tensors:
            # As in transformers' `convert_and_load_state_dict_in_model`.
            name, pattern = rename_source_key(info.name, renamings, converters, prefix, expected)
            if name not in expected and info.name in expected:
                name, pattern = info.name, None
            if name in expected:
                matched.append(MatchedTensor(shard, info, name, converted=pattern is not None))
            elif not (ignorable and ignorable.search(name)):
                unexpected.append((shard, info.name))
    if unexpected:
        raise InvalidInput(
            file=unexpected[0][0].path,
            key=_list_names(name for _, name in unexpected),
            found="unexpected",
            rule=f"tensors that the model ({type(model).__name__}) has a parameter for",
            fix=f"use the config.json of the model that the file belongs to, or {SAVE_AGAIN}",
        )
    return matched


def _ignorable_pattern(model: PreTrainedModel) -> re.Pattern[str] | None:
    """Return what matches the names that an architecture ignores in files."""
    # As in transformers' `_adjust_missing_and_unexpected_keys`.
    patterns = set(model._keys_to_ignore_on_load_unexpected or ())
    buffers = [name for name, _ in model.named_buffers()]
    if any(name.endswith("rotary_emb.inv_freq") for name in buffers):
        patterns.add(r"rotary_emb\.inv_freq")
    if any(name.endswith("position_ids") for name in buffers):
        patterns.add(r"(^|\.)position_ids$")
    return re.compile("|".join(f"({pattern})" for pattern in patterns)) if patterns else None


def _check_stored_once(by_name: dict[str, list[MatchedTensor]]) -> None:
    for name, tensors in by_name.items():
        stored = {tensor.info.name for tensor in tensors}
        # A tensor that is converted is made of several, each of which has a name of its own.
        if len(stored) < len(tensors) or (len(tensors) > 1 and not tensors[0].converted):
            raise InvalidInput(
                file=tensors[-1].shard.path,
                key=tensors[-1].info.name,
                found=f"stored as {_list_names(tensor.info.name for tensor in tensors)} in "
                f"{_list_names(tensor.shard.path.name for tensor in tensors)}",
                rule=f"one tensor for {name}",
                fix=SAVE_AGAIN,
            )


def _check_shapes(matched: list[MatchedTensor], expected: dict[str, torch.Tensor]) -> None:
    for tensor in matched:
        parameter = expected[tensor.name]
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        if not tensor.converted and tensor.info.shape != shape:
            raise InvalidInput(
                file=tensor.shard.path,
                key=tensor.info.name,
                found=list(tensor.info.shape),
                rule=f"shape {list(shape)}, as config.json states",
                fix="use the model's own config.json",
            )
        if parameter.is_floating_point() and tensor.info.dtype not in DTYPES:
            raise InvalidInput(
                file=tensor.shard.path,
                key=tensor.info.name,
                found=tensor.info.dtype,
                rule=f"one of {', '.join(DTYPES)}",
                fix="convert the weights to float32 or bfloat16, and save the model again",
            )


def _names_by_tensor(expected: dict[str, torch.Tensor]) -> list[tuple[str, ...]]:
    """Return the names of every tensor of the model: several where weights are tied."""
    names: dict[int, list[str]] = {}
    for name, tensor in expected.items():
        names.setdefault(id(tensor), []).append(name)
    return [tuple(group) for group in names.values()]


def _check_missing(
    shards: list[SafetensorsFile],
    model: PreTrainedModel,
    names_of: list[tuple[str, ...]],
    by_name: dict[str, list[MatchedTensor]],
) -> None:
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    ignorable = re.compile("|".join(model._keys_to_ignore_on_load_missing or ()) or r"(?!)")
    missing = [
        names[0]
        for names in names_of
        # A missing parameter would be random, whatever the architecture ignores; a missing buffer
        # has the value that the architecture gives it.
        if not any(name in by_name for name in names)
        and (names[0] in parameters or not ignorable.search(names[0]))
    ]
    if missing:
        single = len(shards) == 1
        raise InvalidInput(
            file=shards[0].path if single else shards[0].path.parent,
            key=_list_names(missing),
            found="missing",
            rule=f"a tensor for every parameter of the model ({type(model).__name__})",
            fix=f"copy the file from its origin again, or {SAVE_AGAIN}",
        )


def _check_tied(tensors: list[MatchedTensor]) -> None:
    """Check that tied tensors, where the files have several of them, have the same values."""
    for other in tensors[1:]:
        if not _is_equal(tensors[0], other):
            raise InvalidInput(
                file=other.shard.path,
                key=other.info.name,
                found=f"other values than {tensors[0].info.name}",
                rule="equal values: config.json ties the two",
                fix="set `tie_word_embeddings` to false in config.json if the model has two "
                "different tensors, or remove the one that is not used",
            )


def _is_equal(one: MatchedTensor, other: MatchedTensor) -> bool:
    with (
        safe_open(one.shard.path, framework="pt") as first,
        safe_open(other.shard.path, framework="pt") as second,
    ):
        ours, theirs = first.get_slice(one.info.name), second.get_slice(other.info.name)
        for start in range(0, one.info.shape[0], COMPARED_ROWS):
            rows = slice(start, start + COMPARED_ROWS)
            if not torch.equal(ours[rows].float(), theirs[rows].float()):
                return False
    return True


def _list_names(names: Iterable[str]) -> str:
    """Return names, the first three of many."""
    unique = list(dict.fromkeys(names))
    more = len(unique) - SHOWN_NAMES
    return ", ".join(unique[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
