"""The full run under DeepSpeed ZeRO-3."""
