"""Text to token ids, in processes that import nothing but `tokenizers`."""

import functools
from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A fast tokenizer as plain data, with the tokens around each document."""

    tokenizer_json: str
    """The content of its `tokenizer.json`."""
    prefix: tuple[int, ...]
    """Token ids before each document."""
    suffix: tuple[int, ...]
    """Token ids after each document."""
    vocab_size: int
    """Token ids are below this."""

    def encode(self, documents: list[str]) -> list[list[int]]:
        """Return the token ids of each document, between prefix and suffix.

        Inside these they are what transformers returns with `add_special_tokens=False`.
        """
        tokenizer = _load_tokenizer(self.tokenizer_json)
        encodings = tokenizer.encode_batch_fast(documents, add_special_tokens=False)
        return [[*self.prefix, *encoding.ids, *self.suffix] for encoding in encodings]

    def count(self, documents: list[str]) -> int:
        """Return the total number of tokens of the documents, with prefixes and suffixes."""
        return sum(map(len, self.encode(documents)))


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
    return Encoder(tokenizer_json=tokenizer.to_str(), prefix=(256,), suffix=(257,), vocab_size=258)


@functools.lru_cache(maxsize=1)
def _load_tokenizer(tokenizer_json: str) -> Tokenizer:
    return Tokenizer.from_str(tokenizer_json)
