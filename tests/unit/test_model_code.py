"""Nothing that a model's folder, a tokenizer or a corpus brings runs code."""

import json
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sweepcp.config.base_model import BaseSpec
from sweepcp.corpora.experiment import load_experiment
from sweepcp.errors import InvalidInput
from sweepcp.models.encoder import load_encoder
from sweepcp.models.loading import load_model
from sweepcp.search.plan import make_plan
from sweepcp.util.files import write_json
from tests.make import write_model

CODE = """
from pathlib import Path
Path({marker!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig): pass
class Model(LlamaForCausalLM): pass
class Tokenizer(PreTrainedTokenizerFast): pass
def generate(*args, **kwargs): pass
"""


class _Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A model beside code that writes RAN."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    code = CODE.format(marker=str(tmp_path / "RAN"))
    for name in ("evil.py", "custom_generate/generate.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)
    return folder


def change(path: Path, **settings: Any) -> None:
    write_json(path, json.loads(path.read_text()) | settings)


def load(folder: Path) -> Any:
    return load_model(str(folder), revision=None, device=torch.device("cpu"))


AUTO_MAP = {
    "AutoConfig": "evil.Config",
    "AutoModelForCausalLM": "evil.Model",
    "AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"],
}


@pytest.mark.parametrize(
    "settings",
    [
        {"auto_map": AUTO_MAP},
        {"auto_map": AUTO_MAP, "model_type": "evil"},
        {"quantization_config": {"quant_method": "quanto", "weights": "int8"}},
        {"transformers_weights": "adapter_model.bin"},
    ],
)
def test_models_that_run_or_read_something_else_are_refused(model: Path, settings: Any):
    change(model / "config.json", **settings)
    with pytest.raises(InvalidInput):
        load(model)
    assert not (model.parent / "RAN").exists()


def test_no_other_configuration_is_read_than_the_one_that_is_checked(model: Path):
    """transformers reads the newest of these files that is not newer than itself."""
    (model / "config.4.0.0.json").write_text((model / "config.json").read_text())
    change(model / "config.4.0.0.json", quantization_config={"quant_method": "quanto"})
    change(model / "config.json", configuration_files=["config.4.0.0.json"])
    with pytest.raises(InvalidInput, match="configuration_files"):
        load(model)


def test_pickled_weights_are_refused(model: Path):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(_Evil(model.parent / "RAN")))
    with pytest.raises(InvalidInput, match="never loaded"):
        load(model)
    assert not (model.parent / "RAN").exists()


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
def test_no_attention_kernel_is_fetched(model: Path, key: str):
    """transformers takes `org/name` for a repository of compiled code."""
    change(model / "config.json", **{key: "org/kernel"})
    assert load(model).config._attn_implementation == "sdpa"


def test_files_beside_the_weights_are_not_run(model: Path):
    (model / "training_args.bin").write_bytes(pickle.dumps(_Evil(model.parent / "RAN")))
    load(model)
    assert not (model.parent / "RAN").exists()


@pytest.mark.parametrize("changes", [{}, {"tokenizer_class": "EvilTokenizer"}])
def test_tokenizers_run_no_code(model: Path, changes: dict[str, Any]):
    change(model / "tokenizer_config.json", auto_map=AUTO_MAP, **changes)
    with suppress(InvalidInput):
        load_encoder(BaseSpec(path=str(model), max_lr=1.0))
    assert not (model.parent / "RAN").exists()


def test_extension_types_of_a_corpus_are_not_unpickled(tmp_path: Path):
    pickled = pickle.dumps(_Evil(tmp_path / "RAN"))
    extension = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickled,
    }
    field = pa.field("text", pa.string(), metadata=extension)
    table = pa.table({"text": ["some words"] * 40}, schema=pa.schema([field]))
    pq.write_table(table, tmp_path / "text.parquet")
    source = f"{{name: python-docs, role: general, files: [{tmp_path}/text.parquet]}}"
    plan = make_plan(*load_experiment("quickstart", [f"sources.python-docs={source}"]))
    assert plan.token_origins["python-docs"] == "estimated"
    assert not (tmp_path / "RAN").exists()
