"""The dimensions of a Llama-like model: its parameters and cost per token, without its weights."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from sweepcp.config.types import PositiveFloat
from sweepcp.config.validation import ConfigModel, validate
from sweepcp.errors import InvalidInput

MAX_SIZE, MAX_LAYERS, MAX_PARAMETERS = 2**31 - 1, 10_000, 10**16
"""Beyond what a model can have; larger numbers are mistakes."""
Size = Annotated[int, Field(ge=1, le=MAX_SIZE)]

LLAMA3_ROPE = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""Parameters of Llama 3's RoPE scaling that a model must have to count as `llama3`."""
COUNTED_MODEL_TYPES = ("llama", "mistral")
"""Model types whose parameters the formula counts: gated MLP, no biases."""


class ModelDimensions(ConfigModel):
    """What decides size and cost, named as in a transformers configuration."""

    model_type: str = "llama"
    """The architecture."""
    hidden_size: Size
    """Size of the residual stream."""
    num_hidden_layers: Annotated[int, Field(ge=1, le=MAX_LAYERS)]
    """Number of layers."""
    num_attention_heads: Size
    """Query heads per layer."""
    num_key_value_heads: Size
    """Key and value heads per layer."""
    intermediate_size: Size
    """Inner size of the MLP."""
    vocab_size: Size
    """Number of token embeddings."""
    max_position_embeddings: Size
    """The longest sequence, in tokens."""
    tie_word_embeddings: bool = False
    """Whether input and output embeddings are one tensor."""
    head_dim: Size | None = None
    """By default hidden_size / num_attention_heads."""
    rope_theta: PositiveFloat | None = None
    """Base of the rotary position embeddings."""
    rope_type: str = "default"
    """`default`: not scaled; `llama3`: as in Llama 3.1 (frequency factors 1 and 4, 8,192 original
    positions)."""
    rope_factor: PositiveFloat | None = None
    """Factor of `llama3` scaling."""
    rms_norm_eps: PositiveFloat | None = None
    """Epsilon of the norms."""
    parameters: Annotated[int, Field(ge=1, le=MAX_PARAMETERS)] | None = None
    """For model types other than llama and mistral, whose parameters are counted."""
    text_parameters: Annotated[int, Field(ge=1, le=MAX_PARAMETERS)] | None = None
    """Of `parameters`, those that compute on text; by default all. Others belong to the towers of
    models that also read images or sound."""

    @model_validator(mode="after")
    def _check_countable(self) -> Self:
        if self.parameters is None and self.model_type not in COUNTED_MODEL_TYPES:
            raise ValueError(
                f"parameters are counted for {' and '.join(COUNTED_MODEL_TYPES)} only, "
                f"this is {self.model_type}; fix: add `parameters: ...`"
            )
        return self

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer: attention, gated MLP, two norms."""
        head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        heads = self.num_attention_heads + self.num_key_value_heads
        attention = 2 * head_dim * heads * self.hidden_size
        mlp = 3 * self.hidden_size * self.intermediate_size
        norms = 2 * self.hidden_size
        return attention + mlp + norms

    @property
    def parameter_count(self) -> int:
        """All parameters; tied embeddings count once."""
        if self.parameters is not None:
            return self.parameters
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_hidden_layers * self.layer_parameters + embeddings + self.hidden_size

    @property
    def largest_module_parameters(self) -> int:
        """Parameters of the largest module: what ZeRO-3 gathers at a time."""
        return max(self.vocab_size, self.intermediate_size) * self.hidden_size

    def flops_per_token(self, seq_len: int) -> float:
        """Return the floating-point operations per token of a forward and a backward pass.

        6 · parameters + 12 · layers · hidden size · sequence length (Chowdhery et al. 2022, PaLM,
        arXiv 2204.02311, appendix B). Recomputed activations do not count.
        """
        attention = 12.0 * self.num_hidden_layers * self.hidden_size * seq_len
        return 6.0 * (self.text_parameters or self.parameter_count) + attention


def dimensions_of(config: dict[str, Any], parameters: int | None = None) -> ModelDimensions | None:
    """Return the dimensions that a transformers configuration describes.

    Args:
        config: The content of config.json.
        parameters: The number of parameters, where it is known from the weights.

    Returns:
        None if a required key is missing, or if `parameters` is missing for a model type whose
        parameters cannot be counted.

    Raises:
        InvalidInput: A value is not what the key holds. The error names no file.
    """
    dimensions: dict[str, Any] = {
        "num_key_value_heads": config.get("num_attention_heads"),
        "tie_word_embeddings": False,
    }
    config = config | _rope_dimensions(config)
    for name in ModelDimensions.model_fields:
        if name not in ("parameters", "text_parameters") and config.get(name) is not None:
            dimensions[name] = config[name]
    for name, field in ModelDimensions.model_fields.items():
        if field.is_required() and dimensions.get(name) is None:
            return None
    if parameters is None and dimensions.get("model_type", "") not in COUNTED_MODEL_TYPES:
        return None
    return validate(ModelDimensions, dimensions | {"parameters": parameters}, "")


def _rope_dimensions(config: dict[str, Any]) -> dict[str, Any]:
    """Return RoPE settings as `ModelDimensions` names them.

    `rope_scaling` and `type` are older names of `rope_parameters` and `rope_type`.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise InvalidInput(
            key="rope_parameters",
            found=rope,
            rule="the settings of the rotary position embeddings, a mapping",
            fix="correct the configuration",
        )
    rope_type = str(rope.get("rope_type", rope.get("type", "default")))
    if rope_type == "llama3" and any(rope.get(key) != value for key, value in LLAMA3_ROPE.items()):
        # No exporter can write such a model, so it must not pass for one of type llama3.
        rope_type = "llama3 with other factors"
    dimensions = {"rope_type": rope_type, "rope_factor": rope.get("factor")}
    rope_theta = rope.get("rope_theta", config.get("rope_theta"))
    if rope_theta is not None:
        dimensions["rope_theta"] = rope_theta
    return dimensions
