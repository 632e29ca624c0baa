"""The encoder of a base model: its tokenizer as plain data, which is passed to other processes."""

from sweepcp.config.base_model import BaseSpec
from sweepcp.data.encoding import Encoder, byte_encoder
from sweepcp.errors import InvalidInput
from sweepcp.models.base import stated_size


def load_encoder(base: BaseSpec) -> Encoder:
    """Load the tokenizer of a base as an encoder.

    Raises:
        InvalidInput: transformers cannot read it, it is not a fast one, it has neither BOS nor EOS,
            or it has more tokens than the base has embeddings.
    """
    if base.tokenizer == "bytes":
        encoder = byte_encoder()
    else:
        # Imports torch, which takes seconds.
        from sweepcp.models.loading import load_tokenizer, make_encoder

        encoder = make_encoder(load_tokenizer(base))
    embeddings = stated_size(base, "vocab_size")
    if embeddings is not None and encoder.vocab_size > embeddings:
        raise InvalidInput(
            file=base.tokenizer,
            key="the tokenizer",
            found=f"{encoder.vocab_size:,} tokens",
            rule=f"at most the {embeddings:,} tokens that the model has embeddings for",
            fix="use the model's own tokenizer, or give the model more embeddings (vocab_size)",
        )
    return encoder
