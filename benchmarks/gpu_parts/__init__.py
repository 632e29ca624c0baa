"""Parts of `benchmarks/gpu`."""
