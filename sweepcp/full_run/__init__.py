"""The full run of a bundle under DeepSpeed ZeRO-3: preflight, training, checkpoints and logs."""
