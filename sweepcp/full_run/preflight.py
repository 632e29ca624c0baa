"""Checks that a bundle can be run on this machine, made before anything is written."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sweepcp.data.token_store import TokenStore
from sweepcp.errors import InvalidInput, located
from sweepcp.models.files import SafetensorsFile, model_fingerprint, read_config, read_shards
from sweepcp.promote.bundle import Bundle, CorpusPlan, LoadedBundle
from sweepcp.util.files import file_sha256

if TYPE_CHECKING:
    from sweepcp.training.process_group import ProcessGroup

HUB_PATTERNS = ["*.safetensors", "*.json", "tokenizer.model", "*.txt"]
"""Files of a hub model that are fetched: weights, configuration and tokenizer."""


def check_ready(bundle: LoadedBundle) -> None:
    """Check the token stores, the model and the trackers of a bundle.

    A hub model is checked by `fetch_model_files` instead.

    Raises:
        InvalidInput: A store is planned, missing or changed, the model was changed, or a tracker is
            not installed.
    """
    content = bundle.bundle
    with located(bundle.path / "bundle.json"):
        for corpus in content.corpora:
            _check_corpus(corpus)
        for tracker in content.target.tracking:
            if find_spec(tracker) is None:
                raise InvalidInput(
                    key="target.tracking",
                    found=tracker,
                    rule="an installed package",
                    fix=f"pip install {tracker}",
                )
        if content.model.path is not None:
            _check_model(Path(content.model.path), content.model.fingerprint)


def stores_of_bundle(bundle: Bundle) -> list[TokenStore]:
    """Return the token stores of a bundle that `check_ready` has passed."""
    return [TokenStore(Path(str(corpus.store)), corpus.name) for corpus in bundle.corpora]


def fetch_model_files(bundle: LoadedBundle, group: "ProcessGroup") -> list[SafetensorsFile]:
    """Return the weight files of the bundle's model, fetched from the hub if it is there.

    Raises:
        InvalidInput: The hub model is not the one that the bundle was made with.
    """
    model = bundle.bundle.model
    with located(bundle.path / "bundle.json"):
        if model.path is not None:  # checked by `check_ready`
            with located("", "model"):
                return read_shards(Path(model.path))

        from huggingface_hub import snapshot_download

        assert model.hub is not None
        # The first process of each node downloads, so that a node fetches every file once. Then the
        # others find the files in its cache.
        for downloads in (True, False):
            if (os.environ["LOCAL_RANK"] == "0") == downloads:
                folder = snapshot_download(
                    model.hub, revision=model.revision or "main", allow_patterns=HUB_PATTERNS
                )
            group.barrier()
        return _check_model(Path(folder), model.fingerprint)


def _check_corpus(corpus: CorpusPlan) -> None:
    key = f"corpora.{corpus.name}"
    if corpus.store is None:
        raise InvalidInput(
            key=key,
            found="planned",
            rule="a token store; a planned one has no tokens to train on",
            fix="build the store, name it in the target in place of `planned`, and promote again",
        )
    record = Path(corpus.store) / "store.json"
    if not record.is_file():
        raise InvalidInput(
            key=key,
            found=corpus.store,
            rule="the folder of a token store",
            fix="mount the store there, or promote again with its new path",
        )
    if file_sha256(record) != corpus.store_id:
        raise InvalidInput(
            key=key,
            found=f"{corpus.store}, changed",
            rule="the store that the bundle was made with",
            fix="promote again",
        )
    if TokenStore(Path(corpus.store), corpus.name).train().tokens.size != corpus.tokens:
        raise InvalidInput(
            key=key,
            found=corpus.store,
            rule=f"a store of {corpus.tokens:,} tokens",
            fix="rebuild the store",
        )


def _check_model(folder: Path, fingerprint: str | None) -> list[SafetensorsFile]:
    with located("", "model"):
        shards = read_shards(folder)
        read_config(folder)
        if fingerprint is not None and model_fingerprint(folder, shards) != fingerprint:
            raise InvalidInput(
                found=f"{folder}, changed",
                rule=f"the model that the bundle was made with (fingerprint {fingerprint})",
                fix="restore the model, or promote again",
            )
    return shards
