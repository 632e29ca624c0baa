"""Models and tokenizers: their files, what can be read of a base without loading it, loading."""
