"""How the layers of a model are computed in training: recomputed, or compiled."""

from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from sweepcp.errors import InvalidInput


def recompute_activations(model: PreTrainedModel) -> None:
    """Have the backward pass recompute the activations of each layer from its input.

    Raises:
        InvalidInput: The architecture has no activation checkpointing. The error names no file.
    """
    if not model.supports_gradient_checkpointing:
        raise InvalidInput(
            key="training.recompute",
            found=type(model).__name__,
            rule="an architecture for which transformers has activation checkpointing",
            fix="set training.recompute to false",
        )
    model.activation_checkpointing_enable({"use_reentrant": False})


def compile_layers(model: PreTrainedModel) -> None:
    """Compile each layer of a model at its first call.

    Layers share their code, so one of them is compiled for all; the whole model would take many
    times as long. Names of parameters do not change.

    Raises:
        InvalidInput: The architecture does not mark its layers. The error names no file.
    """
    layers = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    if not layers:
        raise InvalidInput(
            key="training.compile",
            found=type(model).__name__,
            rule="an architecture whose layers transformers marks as such",
            fix="set training.compile to false",
        )
    for layer in layers:
        layer.compile()
