"""Whether a bundle can be run here, and the files of its model. Checked before anything is written."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sweepcp.data.token_store import TokenStore
from sweepcp.errors import InvalidInput
from sweepcp.models.files import SafetensorsFile, model_fingerprint, read_config, read_shards
from sweepcp.promote.bundle import Bundle, LoadedBundle
from sweepcp.util.files import file_sha256

if TYPE_CHECKING:
    from sweepcp.training.process_group import ProcessGroup


HUB_PATTERNS = ["*.safetensors", "*.json", "tokenizer.model", "*.txt"]


def check_ready(folder: Path, bundle: Bundle) -> None:
    """Raise `BadInput` for planned, missing or changed stores, a changed model, and a tracker that is missing."""
    where = folder / "bundle.json"
    for corpus in bundle.corpora:
        key = f"corpora.{corpus.name}"
        if corpus.store is None:
            fix = "build the store, name it in the target in place of `planned`, and promote again"
            raise InvalidInput(
                file=where,
                key=key,
                found="planned",
                rule="training reads tokens; a planned store has none",
                fix=fix,
            )
        content = Path(corpus.store) / "store.json"
        if not content.is_file():
            fix = "mount it there, or promote again with the store's new place"
            raise InvalidInput(
                file=where, key=key, found=corpus.store, rule="the folder of a token store", fix=fix
            )
        if file_sha256(content) != corpus.store_id:
            rule = "the store that the bundle was made with"
            raise InvalidInput(
                file=where,
                key=key,
                found=f"{corpus.store}, changed",
                rule=rule,
                fix="promote again",
            )
        if TokenStore(Path(corpus.store), corpus.name).train().tokens.size != corpus.tokens:
            raise InvalidInput(
                file=where,
                key=key,
                found=corpus.store,
                rule=f"a store of {corpus.tokens:,} tokens",
                fix="build the store again",
            )
    for name in bundle.target.tracking:
        if find_spec(name) is None:
            raise InvalidInput(
                file=where,
                key="target.tracking",
                found=name,
                rule="the package is installed",
                fix=f"pip install {name}",
            )
    if bundle.model.path is not None:
        _check_model(Path(bundle.model.path), bundle, where)


def stores_of(bundle: Bundle) -> list[TokenStore]:
    """The token stores of a bundle that `check_ready` has passed."""
    return [TokenStore(Path(str(corpus.store)), corpus.name) for corpus in bundle.corpora]


def _check_model(folder: Path, bundle: Bundle, where: Path) -> list[SafetensorsFile]:
    shards = read_shards(folder, where, "model")
    read_config(folder, where, "model")
    expected = bundle.model.fingerprint
    if expected is not None and model_fingerprint(folder, shards) != expected:
        rule = f"the model that the bundle was made with (fingerprint {expected})"
        raise InvalidInput(
            file=where,
            key="model",
            found=f"{folder}, changed",
            rule=rule,
            fix="restore the model, or promote again",
        )
    return shards


def fetch_model_files(opened: LoadedBundle, ranks: "ProcessGroup") -> list[SafetensorsFile]:
    """The shards of the bundle's model; a hub model is fetched by the first rank of each node, the others wait."""
    model, where = opened.bundle.model, opened.path / "bundle.json"
    if model.path is not None:
        return read_shards(Path(model.path), where, "model")  # `check_ready` has checked it
    from huggingface_hub import snapshot_download

    assert model.hub is not None
    for turn in (True, False):
        if (os.environ["LOCAL_RANK"] == "0") == turn:
            place = snapshot_download(
                model.hub, revision=model.revision or "main", allow_patterns=HUB_PATTERNS
            )
        ranks.wait()
    return _check_model(Path(place), opened.bundle, where)
