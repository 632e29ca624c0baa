"""The command line. Modules import what a command needs when it runs, so that it starts fast."""

from sweepcp.cli.entry import main, run_program

__all__ = ["main", "run_program"]
