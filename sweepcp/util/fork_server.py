"""Processes that start with libraries imported: forks of one process that has imported them.

To import torch and transformers takes seconds of CPU time in every worker. The fork server imports
them once, while its parent does other work; what would start a Python process then runs this file
as a client, which has the server fork one in its place. Where there is no server, the client runs
Python itself.

The client runs without site packages, so this module imports the standard library only, and
nothing of sweepcp while a server or a client starts.
"""

import contextlib
import fcntl
import gc
import importlib
import json
import os
import resource
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

SIZE_BYTES = 8
STANDARD_STREAMS = (0, 1, 2)
STARTED = b"1"
OOM_SCORE = Path("/proc/self/oom_score_adj")
"""Which processes the kernel ends first when memory runs out."""


@contextlib.contextmanager
def fork_server(modules: Sequence[str], folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """Start a server that imports modules; it ends with the context, and with this process.

    Args:
        modules: What its forks have imported. They may open no devices; forks lack their threads
            (those of OpenBLAS and Arrow are meant for that).
        folder: A private folder for its socket.
        environment: Variables of the server besides those of this process. A fork has those of its
            client.

    Yields:
        A shell command that takes the arguments of `python`.
    """
    address = str(folder / "fork")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        # Clients that come while the server imports wait for it.
        listener.listen()
        handle = listener.fileno()
        # What it imports may warn; a worker that imports it itself does so into its log.
        server = subprocess.Popen(
            [sys.executable, "-P", __file__, "serve", str(handle), *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | environment,
            pass_fds=[handle],
        )
    try:
        yield shlex.join([sys.executable, "-I", "-S", __file__, "run", address])
    finally:
        server.kill()
        server.wait()
        if server.stdin is not None:
            server.stdin.close()


def _serve(handle: int, modules: Sequence[str]) -> None:
    """Import modules, and fork a process for every client until the parent ends."""
    _end_with_parent()
    with socket.socket(fileno=handle) as listener:
        listener.set_inheritable(False)
        # What is imported is kept: searching it for garbage would take a fifth of the time.
        gc.disable()
        for module in modules:
            importlib.import_module(module)
        # The collector of a fork would write to memory that all share. To collect garbage first
        # would take half a second, and free no memory.
        gc.freeze()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no child is left as a zombie
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                break
            connection.close()
    _become_client(connection)


def _end_with_parent() -> None:
    """Have the kernel end this process when its parent ends, killed or not.

    The parent holds the other end of standard input. When it is closed, the kernel sends a SIGIO,
    which ends a process that does not handle it, in the middle of an import, too.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)  # the parent may ignore it
    fcntl.fcntl(sys.stdin, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(sys.stdin, fcntl.F_SETFL, fcntl.fcntl(sys.stdin, fcntl.F_GETFL) | os.O_ASYNC)
    ended, _, _ = select.select([sys.stdin], [], [], 0)
    if ended:
        sys.exit(1)


def _become_client(connection: socket.socket) -> None:
    """Run what a client was asked to run, with its streams, folder, environment and limits."""
    # Ray ends a worker together with its process group.
    os.setpgid(0, 0)
    # The server has turned it off, and ignores its children.
    gc.enable()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, streams, _, _ = socket.recv_fds(connection, SIZE_BYTES, len(STANDARD_STREAMS))
    size, content = int.from_bytes(head, "big"), b""
    while len(content) < size:
        part = connection.recv(size - len(content))
        if not part:  # the client was killed
            sys.exit(1)
        content += part
    request = json.loads(content)
    for target, source in zip(STANDARD_STREAMS, streams, strict=True):
        os.dup2(source, target)
        os.close(source)
    # Ray raises both for its workers: the files that they may open, and that they are ended first.
    resource.setrlimit(resource.RLIMIT_NOFILE, request["open_files"])
    with contextlib.suppress(OSError):
        OOM_SCORE.write_text(request["oom_score"], encoding="ascii")
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["arguments"]
    connection.sendall(STARTED)
    # The client waits until this process has ended: `connection` stays open until then.
    runpy.run_path(sys.argv[0], run_name="__main__")


def _run(address: str, arguments: list[str]) -> None:
    """Have the server run a script with arguments, and wait for its end."""
    request = {
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": os.getcwd(),  # noqa: PTH109  # what JSON takes
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "oom_score": "",
    }
    with contextlib.suppress(OSError):
        request["oom_score"] = OOM_SCORE.read_text(encoding="ascii")
    content = json.dumps(request).encode()
    started = False
    with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
        connection.connect(address)
        head = len(content).to_bytes(SIZE_BYTES, "big")
        socket.send_fds(connection, [head], STANDARD_STREAMS)
        connection.sendall(content)
        started = connection.recv(1) == STARTED
        connection.recv(1)
    if not started:  # there is no server, or it ended before it had forked
        os.execv(sys.executable, [sys.executable, *arguments])


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        _serve(int(sys.argv[2]), sys.argv[3:])
    else:
        _run(sys.argv[2], sys.argv[3:])
