"""Sizes of the parts, on a GPU and in the rehearsal on a CPU, and what a part returns."""

import os
from dataclasses import dataclass
from typing import Any

TINY = os.environ.get("TINY") == "1"
"""Whether this is a rehearsal on a CPU."""
PEAK = float(os.environ.get("PEAK", "989"))
"""Dense bf16 peak of the card in TFLOP/s, of which MFU is a share: by default that of an H100."""
SHAPE: dict[str, Any] = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49_152,
    "max_position_embeddings": 2048,
}
"""A Llama of 135 M parameters, with tied embeddings."""
SEQ_LEN, SEQUENCES, MICRO_BATCH = 2048, 64, 16
"""Tokens per sequence, sequences per step and sequences per forward pass."""
WARM_STEPS, STEPS, STEP_SECONDS = 3, 40, 6.0
"""Steps before the clock starts; the most under it; and how long it runs at most."""
if TINY:
    SHAPE = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 160,
        "vocab_size": 512,
        "max_position_embeddings": 256,
    }
    SEQ_LEN, SEQUENCES, MICRO_BATCH = 128, 8, 4
    WARM_STEPS, STEPS, STEP_SECONDS = 1, 3, 20.0
DOCUMENT_TOKENS = SEQ_LEN // 4
"""Tokens per document on average, so that packing has something to separate."""


@dataclass(frozen=True)
class Finding:
    """What a part found."""

    text: str
    """For the RESULT line."""
    numbers: dict[str, Any]
    """The same for the JSON file, unrounded."""


class Skipped(Exception):
    """A part cannot run here; the message is the reason."""
