"""The entry point: run a command, and turn what ends it into a message and an exit status.

Everything else is imported after the handlers of signals are installed, because that takes time.
"""

import atexit
import os
import signal
import sys
from typing import NoReturn

from sweepcp.cli.output import flush_output, open_standard_streams, say
from sweepcp.cli.rank import launcher_rank
from sweepcp.util.signals import StopSignals

STOPPED = "Stopped. Finished work is kept. Run the same command to resume."


def main() -> NoReturn:
    """Run the command line in this process.

    Exit statuses: 0 success, 1 failure, 2 invalid input, 3 a full run that diverged or exceeded its
    bound, 70 an error that was not foreseen, 128 + signal after one of `STOP_SIGNALS`.

    Raises:
        SystemExit: Always, with the exit status.
    """
    with StopSignals(STOPPED) as signals:
        status = _run(signals)
    sys.exit(status)


def run_program() -> NoReturn:
    """Run the command line, and end the process with the status of `main` in any case.

    Libraries in C++, such as Ray's, may abort the process when Python unloads them after a signal.
    They are not unloaded: once the exit functions of Python have run, nothing is left to be done.
    """
    with StopSignals(STOPPED) as signals:
        signals.status = _run(signals)
        atexit._run_exitfuncs()
        flush_output()
        os._exit(signals.status)


def _run(signals: StopSignals) -> int:
    """Run the command, report how it ended, and return the exit status."""
    # Python would import modules of the working folder, which may be somebody's data, in every
    # process that this one starts: `signal.py` there would take the place of Python's own.
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        open_standard_streams()
        _run_command()
        ending: BaseException = SystemExit(0)
    except BaseException as error:  # interrupted libraries raise all kinds
        ending = error
    status, message = _describe_ending(ending, signals)
    failed = flush_output()
    if failed is not None and status == 0:
        status, message = _describe_ending(failed, signals)
    if message:
        say(message)
    return status


def _run_command() -> None:
    from sweepcp.util.environment import check_working_folder
    from sweepcp.util.streams import make_streams_printable, read_files_as_utf_8

    make_streams_printable()
    read_files_as_utf_8()
    check_working_folder()
    _check_installation()
    from sweepcp.cli.commands import app

    app()


def _describe_ending(error: BaseException, signals: StopSignals) -> tuple[int, str]:
    """Return the exit status, and what remains to be said."""
    if isinstance(error, SystemExit) and not error.code:
        return 0, ""  # the work was finished before a signal had an effect
    number = signals.received
    if isinstance(error, KeyboardInterrupt):
        number = number or signal.SIGINT
    if not number:
        from sweepcp.errors import Stopped

        number = error.signal if isinstance(error, Stopped) else 0
    if number:
        return 128 + number, STOPPED if launcher_rank() == "0" else ""
    if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):
        # typer takes any broken pipe for that of standard output.
        error = error.__context__
    if isinstance(error, SystemExit):
        return (error.code, "") if isinstance(error.code, int) else (1, str(error.code))
    from sweepcp.cli.failures import describe_failure

    return describe_failure(error)


def _check_installation() -> None:
    """Raise `InvalidInput` in a checkout that is not installed.

    Records name the version of every package, so a search would otherwise end after hours of work.
    """
    from importlib.metadata import PackageNotFoundError, version

    from sweepcp.errors import InvalidInput
    from sweepcp.util.files import PACKAGE

    try:
        version("sweepcp")
    except PackageNotFoundError:
        raise InvalidInput(
            file=PACKAGE,
            key="the installation",
            found="no metadata of the package sweepcp",
            rule="an installed package: every record names its version",
            fix=f"run `pip install -e {PACKAGE.parent}` in this environment",
        ) from None
