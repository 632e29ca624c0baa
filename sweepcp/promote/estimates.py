"""What the full run needs and takes: memory of a GPU, hours, money."""

from sweepcp.config.model_dimensions import ModelDimensions
from sweepcp.config.recipe import Recipe
from sweepcp.config.target import Target
from sweepcp.promote.bundle import Expense, Memory


def estimate_memory(shape: ModelDimensions, target: Target) -> Memory:
    """Bytes on one GPU under ZeRO-3, an estimate but for the model states.

    States: weights in the precision of the run, fp32 master weights, gradients and two AdamW moments, each over all
    GPUs (18 bytes a parameter in bf16, as DeepSpeed's `estimate_zero3_model_states_mem_needs` has it). Activations of
    a layer: 34 · sequence · micro batch · hidden bytes in 16 bits, 5 · heads · sequence² · micro batch more where the
    attention keeps its scores (Korthikanti et al. 2022, arXiv 2205.05198, eq. 2; made for another MLP). Logits: in the
    precision of the run with their gradients, and the same in fp32.
    """
    world, compute = target.hardware.world_size, target.compute
    width = 2 if compute.precision == "bf16" else 4
    share = -(-shape.parameter_count // world)
    tokens = compute.micro_batch * target.seq_len
    layer = 34 * tokens * shape.hidden_size
    if compute.attention == "eager":
        layer += 5 * shape.num_attention_heads * target.seq_len * tokens
    layer = layer * width // 2
    kept = 2 * tokens * shape.hidden_size * width // 2 * shape.num_hidden_layers
    states = {
        "weights": width * share,
        "master": 4 * share,
        "gradients": 4 * share,
        "optimizer": 8 * share,
    }
    waiting = {"none": (), "optimizer": ("master", "gradients", "optimizer"), "all": tuple(states)}[
        compute.offload
    ]
    return Memory(
        **{name: 0 if name in waiting else size for name, size in states.items()},
        gathered=2 * width * shape.largest_module_parameters,
        activations=kept + layer if compute.recompute else layer * shape.num_hidden_layers,
        logits=tokens * shape.vocab_size * (2 * width + 8),
        host=sum(states[name] for name in waiting) * target.hardware.per_node,
    )


def estimate_expense(shape: ModelDimensions, recipe: Recipe, target: Target) -> Expense:
    """FLOPs of the run, and the hours that they take at the stated utilisation of the stated peak."""
    hardware = target.hardware
    flops = shape.flops_per_token(recipe.seq_len) * recipe.tokens
    hours = None
    if hardware.peak_tflops is not None:
        hours = flops / (hardware.world_size * hardware.peak_tflops * 1e12 * hardware.mfu) / 3600
    device_hours = None if hours is None else hours * hardware.world_size
    price = hardware.usd_per_hour
    usd = None if device_hours is None or price is None else device_hours * price
    return Expense(flops=flops, mfu=hardware.mfu, hours=hours, device_hours=device_hours, usd=usd)
