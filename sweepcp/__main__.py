"""Run the command line: `python -m sweepcp`."""

import sys

# `python -m` puts the working folder in front, where a file may have the name of a module.
if not sys.flags.safe_path:
    del sys.path[0]

from sweepcp.cli import run_program

run_program()
