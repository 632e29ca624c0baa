"""The shape of a Llama-like model: its parameters, and what a token costs, without the model."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from sweepcp.config.types import PositiveInt
from sweepcp.config.validation import ConfigModel

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What is fixed in Llama 3's scaling of rotary positions."""
COUNTED = ("llama", "mistral")
"""Model types whose parameters the formula counts: gated MLP, no biases."""


class ModelDimensions(ConfigModel):
    """What decides size and cost, named as in a transformers configuration."""

    model_type: str = "llama"
    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    intermediate_size: PositiveInt
    vocab_size: PositiveInt
    max_position_embeddings: PositiveInt
    tie_word_embeddings: bool = False
    head_dim: PositiveInt | None = None
    """By default hidden_size / num_attention_heads."""
    rope_theta: PositiveFloat | None = None
    """Base of the rotary positions."""
    rope_type: str = "default"
    """`default`: not scaled; `llama3`: as Llama 3.1 (frequency factors 1 and 4, 8,192 original positions)."""
    rope_factor: PositiveFloat | None = None
    rms_norm_eps: PositiveFloat | None = None
    parameters: PositiveInt | None = None
    """Stated for model types other than llama and mistral, whose parameters are counted."""

    @model_validator(mode="after")
    def _countable(self) -> Self:
        if self.parameters is None and self.model_type not in COUNTED:
            rule = f"parameters are counted for {' and '.join(COUNTED)} only"
            raise ValueError(f"{rule}, this is {self.model_type}; fix: add `parameters: ...`")
        return self

    @property
    def layer(self) -> int:
        """Parameters of one layer: attention, gated MLP, two norms."""
        head = self.head_dim or self.hidden_size // self.num_attention_heads
        attention = (
            2 * head * (self.num_attention_heads + self.num_key_value_heads) * self.hidden_size
        )
        return attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size

    @property
    def size(self) -> int:
        """All parameters, tied embeddings counted once."""
        if self.parameters is not None:
            return self.parameters
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_hidden_layers * self.layer + embeddings + self.hidden_size

    @property
    def largest_module(self) -> int:
        """Parameters of the largest module: what ZeRO-3 gathers at a time."""
        return max(self.vocab_size, self.intermediate_size) * self.hidden_size

    def flops_per_token(self, seq_len: int) -> float:
        """Floating-point operations a token, forward and backward: 6 N + 12 · layers · hidden · sequence length.

        Chowdhery et al. 2022 (PaLM, arXiv 2204.02311), appendix B; what is recomputed does not count.
        """
        return 6.0 * self.size + 12.0 * self.num_hidden_layers * self.hidden_size * seq_len


def dimensions_of(config: dict[str, Any], parameters: int | None = None) -> ModelDimensions | None:
    """The shape that a transformers configuration describes, None where its keys do not tell its size."""
    heads = config.get("num_attention_heads")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = str(rope.get("rope_type", rope.get("type", "default")))
    if kind == "llama3" and any(rope.get(key) != value for key, value in LLAMA3.items()):
        kind = "llama3 with other factors"
    rotary = {"rope_theta": rope.get("rope_theta", config.get("rope_theta")), "rope_type": kind}
    config = (
        config
        | {key: value for key, value in rotary.items() if value}
        | {"rope_factor": rope.get("factor")}
    )
    known: dict[str, Any] = {"num_key_value_heads": heads, "tie_word_embeddings": False} | {
        name: config[name]
        for name in ModelDimensions.model_fields
        if name != "parameters" and config.get(name) is not None
    }
    required = [name for name, field in ModelDimensions.model_fields.items() if field.is_required()]
    if any(known.get(name) is None for name in required):
        return None
    if parameters is None and known.get("model_type", "") not in COUNTED:
        return None
    return ModelDimensions(**known, parameters=parameters)
