"""One module a trainer: `write(source)` gives its files, and how every process starts it."""
