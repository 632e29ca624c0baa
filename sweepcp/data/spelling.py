"""What the tokens of a tokenizer stand for, to find text that has no tokens."""

import functools
import json
import re
from collections import Counter
from typing import Any

from tokenizers.normalizers import Normalizer

from sweepcp.errors import InvalidInput

MIN_COVERAGE = 0.99
"""Share of the bytes of a text that must have tokens.

Text without tokens costs no bits, so its share is the error of bits per byte, and trials differ by
about 1 %.
"""
WORD_START = "▁"
"""What SentencePiece writes for a space (U+2581)."""
BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")
"""A token of byte fallback."""


def missing_bytes(document: str, spelled: bytes, normalizer: Normalizer | None) -> int:
    """Return how many bytes of a document are missing from what its tokens stand for.

    What a normaliser changes, as lower case or NFKC do, is not missing; letters and digits that it
    removes are. White space is not counted: many tokenizers imply it.

    Args:
        document: The text.
        spelled: The texts of its tokens, joined.
        normalizer: The tokenizer's.

    Returns:
        A number from 0 to the bytes of the document.
    """
    text = document.encode()
    if spelled.strip() == text.strip():
        return 0
    counts = Counter(document)
    expected = counts
    removed: list[str] = []
    if normalizer is not None:
        expected = Counter(normalizer.normalize_str(document))
        removed = [c for c in counts if c.isalnum() and not normalizer.normalize_str(c).strip()]
    # Tokens are compared by their characters, without the order: no tokenizer changes it.
    missing = expected - Counter(spelled.decode(errors="replace"))
    missing.update({character: counts[character] for character in removed})
    lost = 0
    for character, count in missing.items():
        if not character.isspace() and character != WORD_START:
            lost += count * len(character.encode())
    return min(lost, len(text))


def check_coverage(covered: int, *, total: int, text: str) -> None:
    """Raise `InvalidInput` if too few bytes of a text have tokens.

    Args:
        covered: Bytes with tokens, without `missing_bytes`.
        total: Bytes of the text.
        text: What it is, for the message.
    """
    if covered < MIN_COVERAGE * total:
        raise InvalidInput(
            found=f"tokens for {covered / total:.2%} of the {total:,} bytes of {text}",
            rule=f"tokens, other than the unknown token, for at least {MIN_COVERAGE:.0%} of them: "
            "bits per byte of text without tokens are no score",
            fix="use a model whose tokenizer covers the text, such as a byte-level one, or leave "
            "out what it does not cover (filters)",
        )


@functools.lru_cache(maxsize=1)
def token_texts(tokenizer_json: str) -> list[bytes]:
    """Return the text that each token stands for, by token id; none for the unknown token.

    Decoders of tokenizer files are no help: some files have none, and some decoders change the
    text.
    """
    content = json.loads(tokenizer_json)
    model, vocabulary = content["model"], model_vocabulary(content["model"])
    is_byte_level = "ByteLevel" in json.dumps(content["pre_tokenizer"])
    added = {token["id"]: token["content"] for token in content["added_tokens"]}
    texts = [b""] * (max([*vocabulary.values(), *added], default=-1) + 1)
    for piece, index in vocabulary.items():
        texts[index] = _byte_level_text(piece) if is_byte_level else _plain_text(piece, model)
    for index, name in added.items():
        texts[index] = _plain_text(name, model)
    unknown = model.get("unk_id")
    if model["type"] != "Unigram":
        unknown = vocabulary.get(model.get("unk_token"))
    if unknown is not None:
        texts[unknown] = b""
    return texts


def model_vocabulary(model: dict[str, Any]) -> dict[str, int]:
    """Return the token ids of the `model` of a tokenizer file, by token."""
    if model["type"] == "Unigram":
        return {piece: index for index, (piece, _) in enumerate(model["vocab"])}
    vocabulary: dict[str, int] = model["vocab"]
    return vocabulary


def _byte_level_text(piece: str) -> bytes:
    symbols = _byte_symbols()
    return bytes(symbols[c] for c in piece) if symbols.keys() >= set(piece) else piece.encode()


def _plain_text(piece: str, model: dict[str, Any]) -> bytes:
    if model.get("byte_fallback") and BYTE_PIECE.fullmatch(piece):
        return bytes([int(piece[3:5], 16)])
    text = piece.removeprefix(model.get("continuing_subword_prefix") or "")
    text = text.removesuffix(model.get("end_of_word_suffix") or "")
    return text.replace(WORD_START, " ").encode()


@functools.cache
def _byte_symbols() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for.

    Printable bytes of ISO 8859-1 stand for themselves; the others are numbered from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    symbols = {chr(byte): byte for byte in printable}
    return symbols | {chr(0x100 + number): byte for number, byte in enumerate(others)}
