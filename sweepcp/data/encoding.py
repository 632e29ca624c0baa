"""The one way from text to token ids, in processes that import nothing but `tokenizers`.

A tokenizer file holds more than the tokenizer: truncation, padding and dropout that were set when
it was saved, and special tokens whose names would become control tokens wherever a text quotes
them. `text_encoder` removes all of it.
"""

import functools
import json
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from sweepcp.data.spelling import BYTE_PIECE, missing_bytes, model_vocabulary, token_texts
from sweepcp.errors import InvalidInput

HIDDEN = "\U0010fffe"
"""Precedes the names of special tokens, so that no text contains them: it is a noncharacter."""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A fast tokenizer as plain data, with the tokens around each document; see `text_encoder`."""

    tokenizer_json: str
    """The content of a `tokenizer.json` without state."""
    prefix: tuple[int, ...]
    """Token ids before each document."""
    suffix: tuple[int, ...]
    """Token ids after each document."""
    vocab_size: int
    """Token ids are below this."""

    def encode(self, documents: list[str]) -> list[list[int]]:
        """Return the token ids of each document, between prefix and suffix."""
        return [[*self.prefix, *ids, *self.suffix] for ids in self.encode_text(documents)]

    def encode_text(self, documents: list[str]) -> list[list[int]]:
        """Return the token ids of each document alone.

        Names of special tokens are encoded as any other text. Otherwise the ids are those that
        transformers returns with `add_special_tokens=False`.

        Raises:
            InvalidInput: A document has no tokens, and the tokenizer has no unknown token.
        """
        tokenizer = _load_tokenizer(self.tokenizer_json)
        try:
            encodings = tokenizer.encode_batch_fast(documents, add_special_tokens=False)
        # `tokenizers` raises Exceptions of no further type.
        except Exception as error:
            raise InvalidInput(
                key="the tokenizer",
                found=str(error),
                rule="a tokenizer that can encode every text",
                fix="use a model whose tokenizer covers the text, such as a byte-level one, or add "
                "an unknown token to the tokenizer",
            ) from None
        return [encoding.ids for encoding in encodings]

    def lost_bytes(self, document: str, ids: list[int]) -> int:
        """Return how many bytes of a document its tokens do not stand for; see `missing_bytes`.

        Args:
            document: The text.
            ids: What `encode_text` returned for it.
        """
        texts = token_texts(self.tokenizer_json)
        spelled = b"".join(map(texts.__getitem__, ids))
        return missing_bytes(document, spelled, _load_tokenizer(self.tokenizer_json).normalizer)


def text_encoder(tokenizer_json: str, *, prefix: list[int], suffix: list[int]) -> Encoder:
    """Return the encoder of a tokenizer file.

    Args:
        tokenizer_json: The content of a `tokenizer.json`, or what `Tokenizer.to_str` returned.
        prefix: Token ids before each document.
        suffix: Token ids after each document.

    Raises:
        InvalidInput: `tokenizers` cannot read the content. The error names no file.
    """
    try:
        content = json.loads(tokenizer_json)
        vocab_size = _remove_state(content, {*prefix, *suffix})
        stateless = json.dumps(content, ensure_ascii=False)
        _load_tokenizer(stateless)
    # Whatever `tokenizers` does not understand, it reports by an Exception of no further type.
    except Exception as error:
        raise InvalidInput(
            key="tokenizer.json",
            found=str(error),
            rule="a tokenizer that the library `tokenizers` can read",
            fix="save the tokenizer with the model again, by `save_pretrained`",
        ) from None
    return Encoder(
        tokenizer_json=stateless,
        prefix=tuple(prefix),
        suffix=tuple(suffix),
        vocab_size=vocab_size,
    )


def byte_level_tokenizer() -> Tokenizer:
    """Return a tokenizer of 256 tokens, the bytes of UTF-8."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_encoder() -> Encoder:
    """Return the encoder of the tokenizer `bytes`: 256 bytes, BOS (256) and EOS (257)."""
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return text_encoder(tokenizer.to_str(), prefix=[256], suffix=[257])


def _remove_state(content: dict[str, Any], boundaries: set[int]) -> int:
    """Remove from a tokenizer file what does not belong to text; return its vocabulary size."""
    content |= {"truncation": None, "padding": None, "post_processor": None}
    if "dropout" in content["model"]:
        content["model"]["dropout"] = None
    _hide_special_tokens(content, boundaries)
    ids = [token["id"] for token in content["added_tokens"]]
    return max([*ids, *model_vocabulary(content["model"]).values()], default=-1) + 1


def _hide_special_tokens(content: dict[str, Any], boundaries: set[int]) -> None:
    """Rename the special tokens of a tokenizer file to names that no text contains."""
    model = content["model"]
    special: set[str] = set()
    for token in content["added_tokens"]:
        if token["special"] or token["id"] in boundaries:
            token["special"] = True
            special.add(token["content"])
    kept = _kept_names(model, special)
    names = {name: HIDDEN + name for name in special - kept}
    for token in content["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    if model["type"] == "Unigram":
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
        return
    model["vocab"] = {names.get(piece, piece): i for piece, i in model["vocab"].items()}
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]


def _kept_names(model: dict[str, Any], names: set[str]) -> set[str]:
    """Return the names that words are spelled with: single symbols, bytes, and parts of merges."""
    kept = {name for name in names if len(name) == 1}
    if model.get("byte_fallback"):
        kept |= {name for name in names if BYTE_PIECE.fullmatch(name)}
    if model["type"] != "BPE" or names.isdisjoint(model["vocab"]):
        return kept
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        kept.update(names & {left, right, left + right})
    return kept


@functools.lru_cache(maxsize=1)
def _load_tokenizer(tokenizer_json: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    # Not part of the file. Without it, names that were kept would be found before all else.
    tokenizer.encode_special_tokens = True
    return tokenizer
