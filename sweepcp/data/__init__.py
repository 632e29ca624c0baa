"""Texts to token stores, and the stream of a mixture over them."""
