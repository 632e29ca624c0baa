"""The corpora of an experiment: token stores, repetition, contamination check and mining."""
