"""Training: process groups, engines (plain and DeepSpeed ZeRO-3) and the training loop."""
