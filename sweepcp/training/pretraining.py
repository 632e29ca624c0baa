"""Pretraining of a small base, for experiments that have no base model at hand."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sweepcp.config.base_model import PretrainSpec
from sweepcp.config.recipe import Mixture, Recipe, SourceShare
from sweepcp.data.stream import MixtureStream
from sweepcp.data.token_store import TokenStore
from sweepcp.errors import InvalidInput, located
from sweepcp.models.architecture import build_model
from sweepcp.models.attention import resolve_attention
from sweepcp.models.randomness import make_deterministic
from sweepcp.training.engine import PlainEngine
from sweepcp.training.isolation import ensure_isolation
from sweepcp.training.loop import StepMetrics, run_training
from sweepcp.training.process_group import ProcessGroup
from sweepcp.util.temporary import temporary_folder


def pretrain_base(
    spec: PretrainSpec,
    max_lr: float,
    path: Path,
    stores: list[TokenStore],
    tokenizer: PreTrainedTokenizerBase,
    *,
    device: torch.device,
) -> Iterator[StepMetrics]:
    """Pretrain a base and save it with its tokenizer, yielding the metrics of each step.

    Args:
        spec: Configuration of the model, mixture, tokens and optimizer settings.
        max_lr: The peak of the schedule.
        path: The folder to write once the last step is taken; it appears complete or not at all.
        stores: Token stores of the experiment's sources; those outside the mixture are not used.
        tokenizer: The one that the stores were made with.
        device: Where it is trained, in fp32.

    Raises:
        InvalidInput: The configuration cannot be built, or does not isolate packed documents.
        Diverged: The loss or the gradient norm of a step is not finite.
    """
    recipe = pretraining_recipe(spec, stores)
    with located("", "base.pretrain.config"):
        model = _initialize_model(spec, tokenizer, recipe, device)
        ensure_isolation(
            model,
            ProcessGroup(device=model.device),
            wanted="auto",
            seq_len=recipe.seq_len,
            packed=not recipe.cross_documents,
        )
    engine = PlainEngine(model, recipe, micro_batch=None, precision="fp32", halves=True)
    yield from run_training(engine, recipe, MixtureStream(recipe, stores), max_lr=max_lr)
    _save(model, tokenizer, path)


def pretraining_recipe(spec: PretrainSpec, stores: list[TokenStore]) -> Recipe:
    """Express pretraining as a recipe: the full max LR, and the shares that the spec states."""
    known = {store.source for store in stores}
    # A mixture needs roles and languages, which pretraining makes no use of: any will do.
    portions = tuple(
        SourceShare(source=name, role="general", language="en", share=share)
        for name, share in spec.mixture.items()
        if name in known
    )
    settings = {name: getattr(spec.training, name) for name in type(spec.training).model_fields}
    return Recipe(
        **settings,
        lr_fraction=1.0,
        mixture=Mixture(portions=portions),
        tokens=spec.tokens,
        seed=spec.seed,
    )


def model_config_of(spec: PretrainSpec, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """Return the configuration of the model that a spec describes.

    Raises:
        InvalidInput: transformers does not know it, it is not that of a causal LM, or it states
            other special tokens than the tokenizer.
    """
    settings = {"vocab_size": len(tokenizer)} | spec.config
    model_type = settings.pop("model_type")
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token = getattr(tokenizer, key)
        if settings.get(key) not in (None, token):
            rule = f"{token}, that of the tokenizer"
            raise InvalidInput(key=key, found=settings[key], rule=rule, fix="remove it")
        settings[key] = token
    try:
        config: PretrainedConfig = AutoConfig.for_model(model_type, **settings)
    # A configuration checks its values by errors of many types.
    except Exception as error:
        raise _unknown_model(" ".join(str(error).split())) from None
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise _unknown_model(str(model_type))
    make_deterministic(config)
    return config


def _unknown_model(found: str) -> InvalidInput:
    return InvalidInput(
        found=found,
        rule="the configuration of a causal language model that transformers implements",
        fix="correct model_type or the value",
    )


def _initialize_model(
    spec: PretrainSpec, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, device: torch.device
) -> PreTrainedModel:
    """Build the model of a spec with random weights that its seed determines."""
    config = model_config_of(spec, tokenizer)
    torch.manual_seed(spec.seed)
    if device.type == "cpu":
        # transformers asks DeepSpeed whether ZeRO-3 is on, which otherwise warns of a missing GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    attention = resolve_attention(
        "auto",
        config,
        device=device,
        in_bf16=False,
        seq_len=recipe.seq_len,
        isolated=not recipe.cross_documents,
    )
    model = build_model(config, attention=attention, dtype=torch.float32)
    return model.to(device)  # type: ignore[arg-type, no-any-return]


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(path.parent, path.name) as work:
        # With the model's own tensors rather than those of older checkpoints, from which some
        # architectures compute them: a full run reads its shards of them.
        model.save_pretrained(work, save_original_format=False)
        tokenizer.save_pretrained(work)
        # A folder that is not empty cannot be replaced: then another process has saved the same
        # base in the meantime, and that one is kept.
        try:
            work.replace(path)
        except OSError:
            if not (path / "config.json").exists():
                raise
