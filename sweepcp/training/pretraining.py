"""Pretraining of a small base, for experiments that have no base model at hand."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from sweepcp.config.base_model import PretrainSpec
from sweepcp.config.recipe import Mixture, Recipe, SourceShare
from sweepcp.data.stream import MixtureStream
from sweepcp.data.token_store import TokenStore
from sweepcp.errors import located
from sweepcp.models.architecture import build_model
from sweepcp.models.loading import default_device
from sweepcp.models.randomness import make_deterministic
from sweepcp.training.engine import PlainEngine
from sweepcp.training.isolation import check_isolation
from sweepcp.training.loop import StepMetrics, run_training
from sweepcp.training.process_group import ProcessGroup


def pretrain_base(
    spec: PretrainSpec,
    max_lr: float,
    path: Path,
    stores: list[TokenStore],
    tokenizer: PreTrainedTokenizerBase,
) -> Iterator[StepMetrics]:
    """Pretrain a base and save it with its tokenizer, yielding the metrics of each step.

    Args:
        spec: Configuration of the model, mixture, tokens and optimizer settings.
        max_lr: The peak of the schedule.
        path: The folder to write once the last step is taken; it appears complete or not at all.
        stores: Token stores of the experiment's sources; those outside the mixture are not used.
        tokenizer: The one that the stores were made with.

    Raises:
        InvalidInput: The configuration cannot be built, or does not isolate packed documents.
        Diverged: The loss or the gradient norm of a step is not finite.
    """
    recipe = pretraining_recipe(spec, stores)
    with located("", "base.pretrain.config"):
        model = _initialize_model(spec, tokenizer)
        check_isolation(
            model,
            ProcessGroup(device=model.device),
            seq_len=recipe.seq_len,
            packed=not recipe.cross_documents,
        )
    engine = PlainEngine(model, recipe, micro_batch=None, precision="fp32")
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


def _initialize_model(spec: PretrainSpec, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Build the model of a spec with random weights that its seed determines."""
    settings = dict(spec.config)
    config = AutoConfig.for_model(
        settings.pop("model_type"),
        **{"vocab_size": len(tokenizer)} | settings,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    make_deterministic(config)
    torch.manual_seed(spec.seed)
    device = default_device()
    if device.type == "cpu":
        # transformers asks DeepSpeed whether ZeRO-3 is on, which otherwise warns of a missing GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    model = build_model(config, attention="sdpa", dtype=torch.float32)
    return model.to(device)  # type: ignore[arg-type, no-any-return]


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=path.parent, prefix=".building-"))
    try:
        # With the model's own tensors rather than those of older checkpoints, from which some
        # architectures compute them: a full run reads its shards of them.
        model.save_pretrained(work, save_original_format=False)
        tokenizer.save_pretrained(work)
        # A folder that is not empty cannot be replaced: then another process has saved the same
        # base in the meantime, and that one is kept.
        work.replace(path)
    except OSError:
        if not (path / "config.json").exists():
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
