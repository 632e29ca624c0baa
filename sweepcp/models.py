"""Models and tokenizers in memory: loading a base, and pretraining a small one."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

from sweepcp.base import BaseSpec, Pretrain
from sweepcp.data.encode import Encoder, byte_model
from sweepcp.data.store import Store, boundary_tokens
from sweepcp.data.stream import Stream
from sweepcp.engine import Engine
from sweepcp.errors import BadInput
from sweepcp.recipe import Mixture, Portion, Recipe
from sweepcp.train import Row, train

disable_progress_bar()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 258 tokens: the 256 bytes of UTF-8, `<s>` (256) and `</s>` (257)."""
    return PreTrainedTokenizerFast(tokenizer_object=byte_model(), bos_token="<s>", eos_token="</s>", pad_token="</s>")


def load_tokenizer(base: BaseSpec) -> PreTrainedTokenizerBase:
    """The base's tokenizer."""
    if base.tokenizer == "bytes":
        return byte_tokenizer()
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            base.tokenizer, revision=base.revision or "main", trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        rule = "a tokenizer that transformers reads, beside the model"
        said = str(error).strip().splitlines()[0]
        raise BadInput(base.tokenizer, "the tokenizer", said, rule, "save it there with `save_pretrained`") from None
    return tokenizer


def load_encoder(base: BaseSpec) -> Encoder:
    """The base's tokenizer as plain data; `BadInput` when it is not a fast one."""
    tokenizer = load_tokenizer(base)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rule = "a fast tokenizer (tokenizer.json)"
        raise BadInput(base.tokenizer, "the tokenizer", type(tokenizer).__name__, rule, "save one with the model")
    before, after = boundary_tokens(tokenizer)
    return Encoder(backend.to_str(), tuple(before), tuple(after), len(tokenizer))


def load_model(model: str, revision: str | None, device: torch.device) -> PreTrainedModel:
    """A causal LM with fp32 weights from a folder or the hub; safetensors only, no remote code."""
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        model,
        revision=revision or "main",
        dtype=torch.float32,
        attn_implementation="sdpa",
        trust_remote_code=False,
        use_safetensors=True,
    )
    return loaded.to(device)  # type: ignore[arg-type, no-any-return]


def pretrain(
    spec: Pretrain, max_lr: float, path: Path, stores: list[Store], tokenizer: PreTrainedTokenizerBase
) -> Iterator[Row]:
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
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, asked by transformers, warns of it
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32).to(device)
    recipe = pretrain_recipe(spec, stores)
    yield from train(Engine(model, recipe, None, "fp32"), recipe, max_lr, Stream(recipe, stores))
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


def pretrain_recipe(spec: Pretrain, stores: list[Store]) -> Recipe:
    """Pretraining as a recipe: the whole of the max LR, shares as stated. Roles play no part in it."""
    known = {store.source for store in stores}
    portions = tuple(
        Portion(source=name, role="general", language="en", share=share)
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
