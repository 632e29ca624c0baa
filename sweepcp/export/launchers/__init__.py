"""One module a launcher: `write(source, handoff)` gives the files that start a trainer on the machines."""
