"""TODO training.pretraining."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from sweepcp.config.base_model import PretrainSpec
from sweepcp.config.recipe import Mixture, Recipe, SourceShare
from sweepcp.data.stream import MixtureStream
from sweepcp.data.token_store import TokenStore
from sweepcp.training.engine import PlainEngine
from sweepcp.training.loop import StepMetrics, run_training


def pretrain_base(
    spec: PretrainSpec,
    max_lr: float,
    path: Path,
    stores: list[TokenStore],
    tokenizer: PreTrainedTokenizerBase,
) -> Iterator[StepMetrics]:
    """Pretrain a base and save it with its tokenizer at `path`: complete or not at all. A row a step."""
    settings = dict(spec.config)
    config = AutoConfig.for_model(
        settings.pop("model_type"),
        **{"vocab_size": len(tokenizer)} | settings,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(spec.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        os.environ.setdefault(
            "DS_ACCELERATOR", "cpu"
        )  # else DeepSpeed, asked by transformers, warns of it
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation="sdpa", dtype=torch.float32
    ).to(device)
    recipe = pretraining_recipe(spec, stores)
    yield from run_training(
        PlainEngine(model, recipe, None, "fp32"), recipe, max_lr, MixtureStream(recipe, stores)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=path.parent, prefix=".building-"))
    try:
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
        os.replace(work, path)
    except OSError:
        if not (path / "config.json").exists():  # else another process was faster
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def pretraining_recipe(spec: PretrainSpec, stores: list[TokenStore]) -> Recipe:
    """Pretraining as a recipe: the whole of the max LR, shares as stated. Roles play no part in it."""
    known = {store.source for store in stores}
    portions = tuple(
        SourceShare(source=name, role="general", language="en", share=share)
        for name, share in spec.mixture.items()
        if name in known
    )
    return Recipe(
        **{name: getattr(spec.training, name) for name in type(spec.training).model_fields},
        lr_fraction=1.0,
        mixture=Mixture(portions=portions),
        tokens=spec.tokens,
        seed=spec.seed,
    )
