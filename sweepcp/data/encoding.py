"""Texts to token ids, in processes that import nothing but `tokenizers`."""

import functools
from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE


def byte_level_tokenizer() -> Tokenizer:
    """256 tokens, the bytes of UTF-8."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@dataclass(frozen=True)
class Encoder:
    """A fast tokenizer as plain data, with the tokens that stand around each document."""

    tokenizer: str
    """Its tokenizer.json."""
    before: tuple[int, ...]
    after: tuple[int, ...]
    size: int
    """Token ids are below this."""

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of documents, with the boundary tokens; what transformers gives with `add_special_tokens=False`."""
        encoded = _load_tokenizer(self.tokenizer).encode_batch_fast(texts, add_special_tokens=False)
        return [[*self.before, *e.ids, *self.after] for e in encoded]

    def count(self, texts: list[str]) -> int:
        """Tokens of documents, with the boundary tokens."""
        return sum(map(len, self.encode(texts)))


def byte_encoder() -> Encoder:
    """The tokenizer `bytes`: 256 bytes, BOS (256) and EOS (257)."""
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return Encoder(tokenizer.to_str(), (256,), (257,), 258)


@functools.lru_cache(maxsize=1)
def _load_tokenizer(text: str) -> Tokenizer:
    return Tokenizer.from_str(text)
