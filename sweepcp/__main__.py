"""Run the command line: `python -m sweepcp`."""

from sweepcp.cli import main

main()
