"""Whether a bundle can be run here, and the files of its model. Checked before anything is written."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sweepcp.data.store import Store
from sweepcp.errors import BadInput
from sweepcp.files import file_sha256
from sweepcp.model_files import Shard, fingerprint, read_config, shards_of
from sweepcp.promote.bundle import Bundle, Opened

if TYPE_CHECKING:
    from sweepcp.ranks import Ranks

PATTERNS = ["*.safetensors", "*.json", "tokenizer.model", "*.txt"]


def check_ready(folder: Path, bundle: Bundle) -> None:
    """Raise `BadInput` for planned, missing or changed stores, a changed model, and a tracker that is missing."""
    where = folder / "bundle.json"
    for corpus in bundle.corpora:
        key = f"corpora.{corpus.name}"
        if corpus.store is None:
            fix = "build the store, name it in the target in place of `planned`, and promote again"
            raise BadInput(where, key, "planned", "training reads tokens; a planned store has none", fix)
        content = Path(corpus.store) / "store.json"
        if not content.is_file():
            fix = "mount it there, or promote again with the store's new place"
            raise BadInput(where, key, corpus.store, "the folder of a token store", fix)
        if file_sha256(content) != corpus.store_id:
            rule = "the store that the bundle was made with"
            raise BadInput(where, key, f"{corpus.store}, changed", rule, "promote again")
        if Store(Path(corpus.store), corpus.name).train().tokens.size != corpus.tokens:
            raise BadInput(where, key, corpus.store, f"a store of {corpus.tokens:,} tokens", "build the store again")
    for name in bundle.target.tracking:
        if find_spec(name) is None:
            raise BadInput(where, "target.tracking", name, "the package is installed", f"pip install {name}")
    if bundle.model.path is not None:
        _check_model(Path(bundle.model.path), bundle, where)


def stores_of(bundle: Bundle) -> list[Store]:
    """The token stores of a bundle that `check_ready` has passed."""
    return [Store(Path(str(corpus.store)), corpus.name) for corpus in bundle.corpora]


def _check_model(folder: Path, bundle: Bundle, where: Path) -> list[Shard]:
    shards = shards_of(folder, where, "model")
    read_config(folder, where, "model")
    expected = bundle.model.fingerprint
    if expected is not None and fingerprint(folder, shards) != expected:
        rule = f"the model that the bundle was made with (fingerprint {expected})"
        raise BadInput(where, "model", f"{folder}, changed", rule, "restore the model, or promote again")
    return shards


def model_folder(opened: Opened, ranks: "Ranks") -> list[Shard]:
    """The shards of the bundle's model; a hub model is fetched by the first rank of each node, the others wait."""
    model, where = opened.bundle.model, opened.path / "bundle.json"
    if model.path is not None:
        return shards_of(Path(model.path), where, "model")  # `check_ready` has checked it
    from huggingface_hub import snapshot_download

    assert model.hub is not None
    for turn in (True, False):
        if (os.environ["LOCAL_RANK"] == "0") == turn:
            place = snapshot_download(model.hub, revision=model.revision or "main", allow_patterns=PATTERNS)
        ranks.wait()
    return _check_model(Path(place), opened.bundle, where)
